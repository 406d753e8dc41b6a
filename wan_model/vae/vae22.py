"""The Wan 2.2 5B VAE: 16x16x4, 48 channels, patchified pixels, averaging shortcuts (`wan/modules/vae2_2.py`)."""

import torch
from torch import nn

from .blocks import Decoder, Encoder, Patchify, Pointwise, ResidualBlock, Unpatchify
from .config import VAEConfig
from .convolution import Chunk, Cost
from .rect import Rect, Span
from .resampling import Downsample, Upsample
from .runtime import Runtime
from .vae21 import DOWN_TIME, WIDTHS

WHOLE_FRAME_BLOCKS = 0  # of the decoder's stages: none, because a shortcut spans the first stage


class AverageDown(nn.Module):
    """Space and time folded into channels and averaged in groups: the shortcut of a downsampling stage."""

    def __init__(self, cin: int, cout: int, time: int, space: int):
        super().__init__()
        self.cin, self.cout, self.time, self.space = cin, cout, time, space

    def input_rect(self, out: Rect) -> Rect:
        return out.map(Span.doubled) if self.space == 2 else out

    def forward(self, x: torch.Tensor, y: torch.Tensor, out: Rect, first: bool) -> torch.Tensor:
        """Return y (B, cout, T / time, H / s, W / s) plus the averaged x (B, cin, T, H, W); zeros precede a first x."""
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

    def input_rect(self, out: Rect) -> Rect:
        return out.map(Span.halved)

    def forward(self, x: torch.Tensor, y: torch.Tensor, out: Rect, first: bool) -> torch.Tensor:
        """Return y (B, cout, T time, H, W), on `out`, plus the duplicated x (B, cin, T, H/2, W/2).

        A first frame stays one.

        Output channel o in phase p (of 4 or 8 pixels and frames made from one) is input channel
        (o phases + p) // repeats, which is a slice of the channels for each phase: so only the sum is allocated.
        """
        y = y.clone()
        source, phases = self.input_rect(out), 4 * self.time
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
    """Return the pixels of `out` that are even (phase 0) or odd, and the pixels of `source` they are made from."""
    start = (phase - out.lo) % 2
    small = (out.lo + start) // 2 - source.lo
    return slice(start, None, 2), slice(small, small + (len(out) - start + 1) // 2)


class Fork(Pointwise):
    """Marks where a stage's shortcut branches off."""


class Join(Pointwise):
    """Marks where a stage's shortcut is added."""

    def __init__(self, shortcut: AverageDown | DuplicateUp):
        super().__init__()
        self.shortcut = shortcut

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        output = self.shortcut.cout * chunk.frames * out.area
        return Cost(0, 2 * output, 0, output, chunk.frames)


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
    """Return the encoder's modules under their official names."""
    stages: list[nn.Module] = []
    cin = config.dim
    for i, width in enumerate(WIDTHS):
        cout, down = config.dim * width, i < len(DOWN_TIME)
        blocks: list[nn.Module] = [ResidualBlock(ops, cin, cout), ResidualBlock(ops, cout, cout)]
        if down:
            blocks.append(Downsample(ops, cout, DOWN_TIME[i]))
        shortcut = AverageDown(cin, cout, 2 if down and DOWN_TIME[i] else 1, 2 if down else 1)
        stages.append(DownStage(blocks, shortcut))
        cin = cout
    return Encoder(ops, 4 * config.channels, config.dim, stages, 2 * config.latent_channels)


def decoder(ops, config: VAEConfig) -> Decoder:
    """Return the decoder's modules under their official names."""
    stages: list[nn.Module] = []
    cin = config.dec_dim * WIDTHS[-1]
    for i, width in enumerate(reversed(WIDTHS)):
        cout, shortcut = config.dec_dim * width, None
        blocks: list[nn.Module] = [ResidualBlock(ops, cin if k == 0 else cout, cout) for k in range(3)]
        if i < len(DOWN_TIME):
            time = DOWN_TIME[-1 - i]
            blocks.append(Upsample(ops, cout, cout, time))
            shortcut = DuplicateUp(cin, cout, 2 if time else 1)
        stages.append(UpStage(blocks, shortcut))
        cin = cout
    return Decoder(ops, config.latent_channels, config.dec_dim, stages, 4 * config.channels)


def encoder_blocks(encoder: Encoder, config: VAEConfig) -> tuple[list, list[nn.Module]]:
    """Return the blocks before the encoder's first convolution, and those of its stages with the shortcuts' ends."""
    blocks = []
    for stage in encoder.downsamples:
        blocks += [Fork(), *stage.downsamples, Join(stage.avg_shortcut)]
    return [Patchify(config.channels)], blocks


def decoder_blocks(decoder: Decoder, config: VAEConfig) -> tuple[list[nn.Module], list]:
    """Return the blocks of the decoder's stages with the shortcuts' ends, and those after its last convolution."""
    blocks = []
    for stage in decoder.upsamples:
        inner = list(stage.upsamples)
        blocks += inner if stage.avg_shortcut is None else [Fork(), *inner, Join(stage.avg_shortcut)]
    return blocks, [Unpatchify(config.channels)]
