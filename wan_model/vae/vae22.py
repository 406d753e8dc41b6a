"""The Wan 2.2 5B VAE: 16x16x4, 48 channels, patchified pixels, averaging shortcuts (`wan/modules/vae2_2.py`)."""

import torch
from torch import nn

from ..variants import VAEConfig
from .causal import Cache, Chunk, Cost, Decoder, Downsample, Encoder, ResidualBlock, Upsample
from .region import Region, Span
from .vae21 import DOWN_TIME, WIDTHS

WHOLE = 0  # blocks of the decoder's stages that run on whole frames: none, because a shortcut spans the first stage


class Patchify(nn.Module):
    """2x2 pixels become channels, ordered (channel, column, row) as in the official code."""

    def reads(self, out: Region) -> Region:
        return out.map(Span.fine)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        made = 12 * chunk.frames * out.area
        return Cost(0, 2 * made, 0, made, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t, h // 2, 2, w // 2, 2).permute(0, 1, 6, 4, 2, 3, 5)  # (B, C, 2, 2, T, H/2, W/2)
        return x.reshape(b, 4 * c, t, h // 2, w // 2), ()


class Unpatchify(nn.Module):
    """The inverse of `Patchify`."""

    def reads(self, out: Region) -> Region:
        return out.map(Span.coarse)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        made = 3 * chunk.frames * out.area
        return Cost(0, 2 * made, 0, made, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
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

    def forward(self, x: torch.Tensor, y: torch.Tensor, out: Region, first: bool) -> torch.Tensor:
        """y (B, cout, T / time, H / s, W / s) plus the averaged x (B, cin, T, H, W); before a first x are zeros."""
        b, c, t, h, w = x.shape
        s, n = self.space, self.time
        if first and n == 2:
            x = torch.cat([torch.zeros_like(x), x], dim=2)
            t = 2 * t
        x = x.reshape(b, c, t // n, n, h // s, s, w // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
        mean = x.reshape(b, self.cout, -1, t // n, h // s, w // s).mean(dim=2)  # of a group of channels
        return torch.add(y, mean)  # in the memory format of the first, with channels innermost


class DuplicateUp(nn.Module):
    """Channels repeated and unfolded into time and space: the shortcut of an upsampling stage."""

    def __init__(self, cin: int, cout: int, time: int):
        super().__init__()
        self.cin, self.cout, self.time = cin, cout, time

    def reads(self, out: Region) -> Region:
        return out.map(Span.coarse)

    def forward(self, x: torch.Tensor, y: torch.Tensor, out: Region, first: bool) -> torch.Tensor:
        """y (B, cout, T time, H, W), on `out`, plus the duplicated x (B, cin, T, H/2, W/2); a first frame stays one.

        Output channel o in phase p (of 4 or 8 pixels and frames made from one) is input channel
        (o phases + p) // repeats, which is a slice of the channels for each phase: nothing is built but the sum.
        """
        y = y.clone()
        source, phases = self.reads(out), 4 * self.time
        repeats = self.cout * phases // self.cin
        for p in range(phases):
            time, row, col = p // 4, p // 2 % 2, p % 2
            if first and time != self.time - 1:
                continue
            rows, small_rows = _phase(out.rows, source.rows, row)
            cols, small_cols = _phase(out.cols, source.cols, col)
            frames = slice(0 if first else time, None, self.time)
            channels = slice(p // repeats, None, phases // repeats)
            y[:, :, frames, rows, cols] += x[:, channels, :, small_rows, small_cols]
        return y


def _phase(out: Span, source: Span, phase: int) -> tuple[slice, slice]:
    """The pixels of `out` that are even (phase 0) or odd, and the pixels of `source` they are made from."""
    start = (phase - out.lo) % 2
    small = (out.lo + start) // 2 - source.lo
    return slice(start, None, 2), slice(small, small + (len(out) - start + 1) // 2)


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

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        made = self.shortcut.cout * chunk.frames * out.area
        return Cost(0, 2 * made, 0, made, chunk.frames)


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
