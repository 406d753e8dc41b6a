"""The Wan 2.2 5B VAE: 16x16x4, 48 channels, patchified pixels, averaging shortcuts (`wan/modules/vae2_2.py`)."""

import torch
from torch import nn

from ..configs import VAEConfig
from .causal import Cache, Decoder, Downsample, Encoder, ResidualBlock, Upsample
from .region import Region, Span
from .vae21 import DOWN_TIME, WIDTHS


class Patchify(nn.Module):
    """2x2 pixels become channels, ordered (channel, column, row) as in the official code."""

    def reads(self, out: Region) -> Region:
        return out.map(Span.fine)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t, h // 2, 2, w // 2, 2).permute(0, 1, 6, 4, 2, 3, 5)  # (B, C, 2, 2, T, H/2, W/2)
        return x.reshape(b, 4 * c, t, h // 2, w // 2), ()


class Unpatchify(nn.Module):
    """The inverse of `Patchify`."""

    def reads(self, out: Region) -> Region:
        return out.map(Span.coarse)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        b, c, t, h, w = x.shape
        x = x.reshape(b, c // 4, 2, 2, t, h, w).permute(0, 1, 4, 5, 3, 6, 2)  # (B, C/4, T, H, 2, W, 2)
        x = x.reshape(b, c // 4, t, 2 * h, 2 * w)
        return out.map(Span.coarse).map(Span.fine).crop(x, out), ()


class AverageDown(nn.Module):
    """Space and time folded into channels and averaged in groups: the shortcut of a downsampling stage."""

    def __init__(self, cin: int, cout: int, time: int, space: int):
        super().__init__()
        self.cin, self.cout, self.time, self.space = cin, cout, time, space

    def reads(self, out: Region) -> Region:
        return out.map(Span.fine) if self.space == 2 else out

    def forward(self, x: torch.Tensor, out: Region, first: bool) -> torch.Tensor:
        """x (B, cin, T, H, W) to (B, cout, T / time, H / space, W / space); a first frame is preceded by zeros."""
        b, c, t, h, w = x.shape
        s, n = self.space, self.time
        if first and n == 2:
            x = torch.cat([torch.zeros_like(x), x], dim=2)
            t = 2 * t
        x = x.reshape(b, c, t // n, n, h // s, s, w // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return x.reshape(b, self.cout, -1, t // n, h // s, w // s).mean(dim=2)  # groups of input channels averaged


class DuplicateUp(nn.Module):
    """Channels repeated and unfolded into time and space: the shortcut of an upsampling stage."""

    def __init__(self, cin: int, cout: int, time: int, space: int = 2):
        super().__init__()
        self.cin, self.cout, self.time, self.space = cin, cout, time, space

    def reads(self, out: Region) -> Region:
        return out.map(Span.coarse)

    def forward(self, x: torch.Tensor, out: Region, first: bool) -> torch.Tensor:
        """x (B, cin, T, H, W) to (B, cout, T time, 2 H, 2 W) on `out`; a first frame stays one frame."""
        b, c, t, h, w = x.shape
        s, n = self.space, self.time
        x = x.repeat_interleave(self.cout * n * s * s // c, dim=1)
        x = x.reshape(b, self.cout, n, s, s, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, C, T, n, H, s, W, s)
        x = x.reshape(b, self.cout, t * n, h * s, w * s)
        if first:
            x = x[:, :, n - 1 :]
        return out.map(Span.coarse).map(Span.fine).crop(x, out)


class Fork(nn.Module):
    """Marks where a stage's shortcut leaves."""

    def reads(self, out: Region) -> Region:
        return out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()


class Join(Fork):
    """Marks where a stage's shortcut is added again."""

    def __init__(self, shortcut: nn.Module):
        super().__init__()
        self.shortcut = shortcut


class DownStage(nn.Module):
    """Residual blocks and a downsampling beside an averaging shortcut (official `Down_ResidualBlock`)."""

    def __init__(self, blocks: list[nn.Module], shortcut: AverageDown):
        super().__init__()
        self.downsamples = nn.Sequential(*blocks)
        self.avg_shortcut = shortcut


class UpStage(nn.Module):
    """Residual blocks and an upsampling beside a duplicating shortcut (official `Up_ResidualBlock`)."""

    def __init__(self, blocks: list[nn.Module], shortcut: DuplicateUp | None):
        super().__init__()
        self.upsamples = nn.Sequential(*blocks)
        self.avg_shortcut = shortcut


def encoder(ops, config: VAEConfig) -> Encoder:
    """The encoder's modules under their official names."""
    stages, cin = [], config.dim
    for i, width in enumerate(WIDTHS):
        cout, down = config.dim * width, i < len(DOWN_TIME)
        blocks = [ResidualBlock(ops, cin, cout), ResidualBlock(ops, cout, cout)]
        if down:
            blocks.append(Downsample(ops, cout, DOWN_TIME[i]))
        shortcut = AverageDown(cin, cout, 2 if down and DOWN_TIME[i] else 1, 2 if down else 1)
        stages.append(DownStage(blocks, shortcut))
        cin = cout
    return Encoder(ops, 12, config.dim, stages, 2 * config.latent_channels)


def decoder(ops, config: VAEConfig) -> Decoder:
    """The decoder's modules under their official names."""
    stages, cin = [], config.dec_dim * WIDTHS[-1]
    for i, width in enumerate(reversed(WIDTHS)):
        cout, shortcut = config.dec_dim * width, None
        blocks = [ResidualBlock(ops, cin, cout), *(ResidualBlock(ops, cout, cout) for _ in range(2))]
        if i < len(DOWN_TIME):
            time = DOWN_TIME[-1 - i]
            blocks.append(Upsample(ops, cout, cout, time))
            shortcut = DuplicateUp(cin, cout, 2 if time else 1)
        stages.append(UpStage(blocks, shortcut))
        cin = cout
    return Decoder(ops, config.latent_channels, config.dec_dim, stages, 12)


def encoder_blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks of the encoder's stages, in order, with the shortcuts' ends marked."""
    blocks = []
    for stage in encoder.downsamples:
        blocks += [Fork(), *stage.downsamples, Join(stage.avg_shortcut)]
    return blocks


def decoder_blocks(decoder: Decoder) -> list[nn.Module]:
    """The blocks of the decoder's stages, in order, with the shortcuts' ends marked."""
    blocks = []
    for stage in decoder.upsamples:
        inner = list(stage.upsamples)
        blocks += inner if stage.avg_shortcut is None else [Fork(), *inner, Join(stage.avg_shortcut)]
    return blocks
