"""HuMo: people from pictures that come last in the latent, moved by sound (`humo/models/wan_modules/model_humo.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import Block, Piece, SelfAttention, by_pieces
from ..runtime import Runtime
from .base import Part
from .sound import check_heard, frame_attention, sound_attention

MASK_CHANNELS = 4  # behind the noisy latent, in the models that read a mask


class Layer(nn.Module):
    """A layer under the name that HuMo's files give it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """As `layer`."""
        return self.layer(x)


class SoundProjection(nn.Module):
    """A window of sound around a latent frame to tokens (`AudioProjModel`).

    channels: of the whole window. tokens, dim: number and width of what is made of it.
    """

    def __init__(self, channels, hidden, tokens, dim, ops, **factory):
        super().__init__()
        self.tokens = tokens
        self.audio_proj_glob_1 = Layer(ops.Linear(channels, hidden, **factory))
        self.audio_proj_glob_2 = Layer(ops.Linear(hidden, hidden, **factory))
        self.audio_proj_glob_3 = Layer(ops.Linear(hidden, tokens * dim, **factory))
        self.audio_proj_glob_norm = Layer(ops.LayerNorm(dim, **factory))

    def forward(self, audio: Tensor) -> Tensor:
        """audio (B, F, ...) -> (B, F, tokens, dim)."""
        hidden = torch.relu(self.audio_proj_glob_1(audio.flatten(2)))
        hidden = torch.relu(self.audio_proj_glob_2(hidden))
        return self.audio_proj_glob_norm(self.audio_proj_glob_3(hidden).unflatten(-1, (self.tokens, -1)))


class SoundAttention(SelfAttention):
    """Attention of `dim` channels to keys and values made of `sound_dim` channels."""

    def __init__(self, dim, sound_dim, heads, eps, ops, **factory):
        super().__init__(dim, heads, eps, ops, **factory)
        self.k = ops.Linear(sound_dim, dim, **factory)
        self.v = ops.Linear(sound_dim, dim, **factory)


class SoundStep(nn.Module):
    """The step of a block between text and feed-forward (`AudioCrossAttentionWrapper`)."""

    def __init__(self, config, sound_dim, ops, **factory):
        super().__init__()
        self.audio_cross_attn = SoundAttention(config.dim, sound_dim, config.heads, config.eps, ops, **factory)
        self.norm1_audio = ops.LayerNorm(config.dim, eps=config.eps, **factory)

    def forward(self, x: Tensor, sound: Tensor, runtime: Runtime) -> Tensor:
        """x (B, F * n, dim) plus attention of each frame's tokens to its sound (B, F, m, sound_dim)."""
        layer, attention = self.audio_cross_attn, sound_attention(runtime)
        k, v = layer.norm_k(layer.k(sound)), layer.v(sound)

        def add(tokens: Piece, frames: Piece) -> tuple[Tensor, ...]:
            q = layer.norm_q(layer.q(self.norm1_audio(x[tokens])))
            return (x[tokens] + layer.o(frame_attention(q, k[frames], v[frames], attention, layer.heads)),)

        return by_pieces(add, x, k, runtime.chunk)[0]


@dataclass(frozen=True)
class HumanMotion(Part):
    """Sound in each block, and reference pictures held in the last latent frames.

    channels: of the sound of one latent frame: 8 video frames of 5 mean hidden states of 1280. hidden, tokens,
    sound_dim: of its projection.
    """

    name = "humo"
    mark = "audio_proj.audio_proj_glob_1.layer.bias"
    conditions = ("audio", "ref_latents")

    channels: int = 8 * 5 * 1280
    hidden: int = 512
    tokens: int = 16
    sound_dim: int = 1536

    @classmethod
    def read(cls, sizes, layers):
        stem, dim = "audio_proj.audio_proj_glob", sizes.size("audio_proj.audio_proj_glob_norm.layer.bias", 0)
        return cls(
            channels=sizes.size(f"{stem}_1.layer.weight", 1),
            hidden=sizes.size(f"{stem}_1.layer.bias", 0),
            tokens=sizes.size(f"{stem}_3.layer.bias", 0) // dim,
            sound_dim=dim,
        )

    def build(self, network, config, ops, **factory):
        network.audio_proj = SoundProjection(self.channels, self.hidden, self.tokens, self.sound_dim, ops, **factory)
        for block in network.blocks:
            block.audio_cross_attn_wrapper = SoundStep(config, self.sound_dim, ops, **factory)

    def check(self, config, given, x):
        audio, references = given.get("audio"), given.get("ref_latents")
        check_heard(config.variant, audio)
        if references is not None:
            self._check_references(config, references, x)
        frames, held = x.shape[2], 1 if references is None else references.shape[2]
        if (
            audio.shape[0] != x.shape[0]
            or audio[0, 0].numel() != self.channels
            or audio.shape[1] not in (frames, frames - held)
        ):
            raise ValueError(
                f"The sound is {tuple(audio.shape)} (batch, latent frames, window, layers, channels), this latent of "
                f"{frames} frames, the last {held} for reference pictures, needs {(x.shape[0], frames - held)} and "
                f"{self.channels} values each: make sound and latent with the same length."
            )

    def _check_references(self, config, references: Tensor, x: Tensor) -> None:
        batch, _, frames, *sides = x.shape
        fits = references.ndim == 5 and references.shape[2] < frames
        if not fits or (*references.shape[:2], *references.shape[3:]) != (batch, config.out_dim, *sides):
            raise ValueError(
                f"The reference latents are {tuple(references.shape)}, this latent of {frames} frames needs "
                f"{(batch, config.out_dim, 'fewer', *sides)}: encode the pictures at the size of the clip."
            )

    def prepare(self, network, draft):
        """Hold `ref_latents` (B, C, n, H, W) in the last n frames, and have each block hear the sound of its frames.

        The latent has n frames behind the clip. The model of 16 channels sees the pictures in place of these frames,
        that of 36 beside them, with a mask of ones, where `y` may hold them already. audio (B, F or F - n, window,
        layers, channels): silence for the frames of the pictures is added.
        """
        references = draft.given.get("ref_latents")
        if references is not None:
            held = network.patch_embedding(_with_references(draft.x, network.pad_to_patch(references.to(draft.x))))
            draft.clip = torch.cat((draft.clip[:, :, : -references.shape[2]], held), dim=2)
        audio, runtime = draft.given["audio"].to(draft.x), draft.runtime
        silence = audio.new_zeros(audio.shape[0], draft.grid[0] - audio.shape[1], *audio.shape[2:])
        sound = network.audio_proj(torch.cat((audio, silence), dim=1))

        def hear(block: Block, x: Tensor) -> Tensor:
            return block.audio_cross_attn_wrapper(x, sound, runtime)

        draft.after_text.append(hear)

    def extra_bytes(self, config, shape, itemsize, shapes):
        return shape[0] * shape[2] * self.tokens * (self.sound_dim + 2 * config.dim) * itemsize


def _with_references(x: Tensor, references: Tensor) -> Tensor:
    """Return the last frames of x (B, in_dim, F, H, W) with `references` (B, C, n, H, W) as the model reads them."""
    frames, channels = x[:, :, -references.shape[2] :], references.shape[1]
    if x.shape[1] == channels:
        return references
    return torch.cat((frames[:, :channels], torch.ones_like(frames[:, :MASK_CHANNELS]), references), dim=1)
