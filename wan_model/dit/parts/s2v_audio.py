"""The audio encoder of S2V (`wan/modules/s2v/audio_utils.py` and `auxi_blocks.py` of Wan 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, silu

KERNEL = 3
EPS = 1e-6


class CausalConv(nn.Module):
    """Convolution over time that sees the past only; the first frame is repeated in front."""

    def __init__(self, channels, out_channels, stride, ops, **factory):
        super().__init__()
        self.conv = ops.Conv1d(channels, out_channels, KERNEL, stride=stride, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, channels) -> (B, ceil(T / stride), out_channels)."""
        return self.conv(pad(x.transpose(1, 2), (KERNEL - 1, 0), mode="replicate")).transpose(1, 2)


class TokenEncoder(nn.Module):
    """Features of sound to tokens, at a quarter of their rate (`MotionEncoder_tc`).

    channels: of the features. tokens: local ones for each frame; a learned padding token follows them.
    """

    def __init__(self, channels, tokens, dim, ops, **factory):
        super().__init__()
        self.tokens = tokens
        self.conv1_local = CausalConv(channels, dim // 4 * tokens, 1, ops, **factory)
        self.conv1_global = CausalConv(channels, dim // 4, 1, ops, **factory)
        self.conv2 = CausalConv(dim // 4, dim // 2, 2, ops, **factory)
        self.conv3 = CausalConv(dim // 2, dim, 2, ops, **factory)
        self.final_linear = ops.Linear(dim, dim, **factory)
        self.padding_tokens = nn.Parameter(torch.empty(1, 1, 1, dim, **factory))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, channels) -> tokens (B, T', tokens + 1, dim) and global ones (B, T', dim); T' is ceil(T / 4)."""
        local = self.conv1_local(x).unflatten(-1, (self.tokens, -1)).transpose(1, 2)  # (B, tokens, T, dim / 4)
        local = self.reduce(local.flatten(0, 1)).unflatten(0, (-1, self.tokens)).transpose(1, 2)  # (B, T', n, dim)
        padding = self.padding_tokens.to(local).expand(*local.shape[:2], -1, -1)
        return torch.cat((local, padding), dim=2), self.final_linear(self.reduce(self.conv1_global(x)))

    def reduce(self, x: Tensor) -> Tensor:
        """x (B, T, dim / 4) -> (B, ceil(T / 4), dim)."""
        for conv in (self.conv2, self.conv3):
            x = conv(_activate(x))
        return _activate(x)


class AudioEncoder(nn.Module):
    """Hidden states of a speech model to tokens of latent frames (`CausalAudioEncoder`).

    layers: hidden states, of which it takes a weighted mean. channels: of each.
    """

    def __init__(self, layers, channels, tokens, dim, ops, **factory):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(1, layers, 1, 1, **factory))
        self.encoder = TokenEncoder(channels, tokens, dim, ops, **factory)

    def forward(self, audio: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """audio (B, layers, channels, T) -> local and global tokens as in `TokenEncoder`.

        prefix: how often the first frame of sound is repeated in front.
        """
        weights = silu(self.weights.to(audio))
        features = (audio * weights / weights.sum(dim=1, keepdim=True)).sum(dim=1).transpose(1, 2)  # (B, T, channels)
        features = torch.cat((features[:, :1].expand(-1, prefix, -1), features), dim=1)
        return self.encoder(features)


def _activate(x: Tensor) -> Tensor:
    return silu(layer_norm(x, x.shape[-1:], eps=EPS))
