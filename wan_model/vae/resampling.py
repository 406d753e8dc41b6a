"""Upsampling and downsampling in space and time (official `Resample` of `wan/modules/vae.py`)."""

import torch
import torch.nn.functional as F
from torch import nn

from .convolution import (
    Cache,
    Chunk,
    Cost,
    Layers,
    causal_conv3d,
    empty_buffer,
    images,
    mixed,
    padded_area,
    padded_copy,
    videos,
    zero_border,
)
from .rect import Rect, Span
from .runtime import Runtime


class UpsampledConv2d(nn.Conv2d):
    """Mixin over a namespace's 2-D convolution: a 3x3 convolution of the nearest-neighbour upsampled input.

    Each of the four pixels made from one reads only 2x2 different pixels, so four 2x2 convolutions of the small input
    give the same result with 4/9 of the work and without the large input. Summing the weights for them has a fixed
    cost, which does not pay off for few pixels.
    """

    def convolve(self, x: torch.Tensor, runtime: Runtime) -> torch.Tensor:
        """Return (N, cout, 2 H - 2, 2 W - 2) of x (N, C, H, W): every output with all inputs present."""
        if folds(x.shape[0] * x.shape[2] * x.shape[3], runtime):
            return self(x)
        return self(F.interpolate(x, scale_factor=2, mode="nearest").unsqueeze(2)).squeeze(2)

    def _conv_forward(self, input, weight, bias, *args, **kwargs):
        """Convolve (N, C, H, W), or an already upsampled input (N, C, 1, 2 H, 2 W)."""
        if input.ndim == 5:
            return F.conv2d(input[:, :, 0], weight, bias).unsqueeze(2)
        y = F.conv2d(input, phase_weights(weight), None if bias is None else bias.repeat(4))
        y = y.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)  # (N, H, 2, W, 2, O)
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # (N, O, 2 H, 2 W), channels innermost in memory


def folds(pixels: int, runtime: Runtime) -> bool:
    """Return whether summing the weights pays off for an input of so many pixels, all frames and borders included."""
    return pixels >= runtime.fold_pixels


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """Sum the weights (O, C, 3, 3) to those (4 O, C, 2, 2) of the four phases."""
    taps = weight.permute(0, 2, 3, 1)  # (O, 3, 3, C)
    phases = _pairs(_pairs(taps, 2), 2)  # columns: (2, O, 3, 2, C); then rows: (2, 2, O, 2, 2, C)
    return phases.flatten(0, 2).permute(0, 3, 1, 2)


def _pairs(taps: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum the three taps on `axis` to two, once for the odd pixel and once for the even one after it."""
    before, at, after = taps.unbind(axis)
    pairs = taps.new_empty(2, *taps.shape[:axis], 2, *taps.shape[axis + 1 :])
    odd, even = pairs[0], pairs[1]
    odd.select(axis, 0).copy_(before).add_(at)
    odd.select(axis, 1).copy_(after)
    even.select(axis, 0).copy_(before)
    even.select(axis, 1).copy_(at).add_(after)
    return pairs


class Upsample(nn.Module):
    """Twice the rows and columns; with `time`, also two frames from each one but the first."""

    def __init__(self, ops, cin: int, cout: int, time: bool):
        super().__init__()
        self.resample: Layers = nn.Sequential(nn.Identity(), mixed(UpsampledConv2d, ops.Conv2d)(cin, cout, 3))
        self.time_conv = causal_conv3d(ops, cin, 2 * cin, (3, 1, 1)) if time else None

    def input_rect(self, out: Rect) -> Rect:
        return out.with_halo().map(Span.halved)

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return () if self.time_conv is None else (self.input_rect(out),)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        source, conv = self.input_rect(out), self.resample[1]
        cin, cout, frames = conv.in_channels, conv.out_channels, chunk.frames
        x, deep = cin * frames * source.area, Cost(0, 0, 0, 0, frames)
        if self.time_conv is not None and not chunk.first:
            deep, frames = self.time_conv.cost(source, chunk, runtime), 2 * frames
        pixels = frames * padded_area(source, out.padding())
        whole, output = cin * pixels, cout * frames * _upsampled_rect(source, out).area
        if folds(pixels, runtime):
            work, weight = 4 * cin * output, cin * cout
            # the weights summed over columns, 12 taps, beside the full sums, 16; the result is copied to another layout
            temporary = max(28 * weight, 16 * weight + output, 2 * output)
        else:
            work, temporary = 9 * cin * output, 4 * whole + output
        peak = max(deep.peak, x + deep.cache + whole + max(deep.output, temporary))
        return Cost(deep.work + work, peak, deep.cache, output, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        source = self.input_rect(out)
        if self.time_conv is None or cache is None:  # a first frame stays one frame, and later ones do not read it
            cache = () if self.time_conv is None else (x[:, :, :0].clone(),)
            whole = padded_copy(x, out.padding())
        else:
            pairs, cache = self.time_conv.step(x, cache, source, keep, runtime)  # (B, 2 C, T, H, W)
            whole, inside = empty_buffer(x, 2 * x.shape[2], out.padding())
            zero_border(whole, out.padding())
            inside[:, :, 0::2], inside[:, :, 1::2] = pairs.chunk(2, dim=1)
            del pairs
        y = videos(self.resample[1].convolve(images(whole), runtime), x.shape[0])
        return _upsampled_rect(source, out).crop(y, out), cache


def _upsampled_rect(source: Rect, out: Rect) -> Rect:
    """Return the output of the convolution for the padded `source`: `out` and up to one more pixel on each side."""
    left, right, top, bottom = out.padding()
    rows = Span(2 * (source.rows.lo - top) + 1, 2 * (source.rows.hi + bottom) - 1, out.rows.size)
    cols = Span(2 * (source.cols.lo - left) + 1, 2 * (source.cols.hi + right) - 1, out.cols.size)
    return Rect(rows, cols)


class Downsample(nn.Module):
    """Half the rows and columns; with `time`, also half the frames after the first."""

    def __init__(self, ops, dim: int, time: bool):
        super().__init__()
        self.resample: Layers = nn.Sequential(nn.Identity(), ops.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = causal_conv3d(ops, dim, dim, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def input_rect(self, out: Rect) -> Rect:
        return out.map(Span.strided)

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return () if self.time_conv is None else (out,)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        source, dim, frames = self.input_rect(out), self.resample[1].in_channels, chunk.frames
        x, whole = dim * frames * source.area, dim * frames * padded_area(source, _far_padding(out))
        one = dim * out.area  # a frame of the result
        y = frames * one
        work, peak = 9 * dim * y, x + whole + y
        if self.time_conv is None:
            return Cost(work, peak, 0, y, frames)
        cache = 0 if chunk.last else one
        if chunk.first:
            return Cost(work, max(peak, x + y + cache), cache, y, frames)
        output = y // 2
        return Cost(work + 3 * dim * output, max(peak, x + 2 * y + one + cache + output), cache, output, frames // 2)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        whole = padded_copy(x, _far_padding(out))
        y = videos(self.resample[1](images(whole)), x.shape[0])  # (B, C, T, H/2, W/2)
        del whole
        if self.time_conv is None:
            return y, ()
        last = (y[:, :, -1:].clone(),) if keep else None
        return (y if cache is None else self.time_conv(torch.cat([cache[0], y], dim=2))), last


def _far_padding(out: Rect) -> tuple[int, int, int, int]:
    """Return the zeros left, right, above and below a convolution of stride 2: only at the frame's far ends."""
    _, right, _, bottom = out.padding()
    return 0, right, 0, bottom
