"""The causal layers that both Wan VAEs are made of, each able to run on any rectangle of the frame.

Every layer here is a block with the same methods, so that a stream can walk a list of them and a plan can add up
what they cost without running them:

    reads(out)            the Region of its input that it needs to make the Region `out` of its output
    step(x, cache, out)   (y, new cache): x (B, C, T, H, W) covers reads(out), y covers out
    holds(out)            the Regions that the tensors of its cache cover, in the cache's order
    cost(out, t)          the `Cost` of one step of t frames, not the first, per sample

A cache is None before the first frame, else a tuple of tensors; it is never changed, only replaced, so a step that
fails can be run again. Time runs in order: one frame first, then any number of frames per step.

Follows `wan/modules/vae.py` of Wan 2.1, whose parameter names are kept.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .region import Region, Span

ATTENTION_SCORES = 2**26
HISTORY = 2  # frames that a convolution of temporal kernel 3 looks back

Cache = tuple[torch.Tensor, ...] | None


class Cost(NamedTuple):
    """What one step of a block takes, counted in multiplications and in numbers held.

    live: held at the worst moment: input, output, new cache and all between, without the old cache. kept: its cache.
    made: its output. frames: frames in its output.
    """

    work: int
    live: int
    kept: int
    made: int
    frames: int


class _Causal:
    """Mixin over a namespace's 3-D convolution: no padding of its own; taps that would meet no frame are dropped."""

    def _conv_forward(self, x, weight, bias, *args, **kwargs):
        """Convolve without padding; in two dimensions where that is the same, which backends do faster."""
        if weight[0, 0].numel() == 1:
            return videos(F.conv2d(images(x), weight[:, :, 0], bias), x.shape[0])
        if weight.shape[3] == 1:  # along time alone: rows and columns can be one axis
            y = F.conv2d(x.flatten(3), weight.flatten(3), bias, (self.stride[0], 1))
            return y.unflatten(3, x.shape[3:])
        if x.shape[2] < weight.shape[2]:  # a single first frame meets only the last temporal tap
            return F.conv2d(x[:, :, -1], weight[:, :, -1], bias).unsqueeze(2)
        return super()._conv_forward(x, weight, bias, *args, **kwargs)

    def reads(self, out: Region) -> Region:
        return out.around() if self.kernel_size[1] == 3 else out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return (self.reads(out),) if self.kernel_size[0] == 3 else ()

    def cost(self, out: Region, t: int) -> Cost:
        source, cin, cout = self.reads(out), self.in_channels, self.out_channels
        frames = t // self.stride[0]
        work = cin * cout * math.prod(self.kernel_size) * out.area * frames
        deep = self.kernel_size[0] == 3
        kept = HISTORY * cin * source.area if deep else 0
        buffer = cin * (HISTORY + t) * self.padded(out) if deep else 0
        made = cout * frames * out.area
        return Cost(work, cin * t * source.area + buffer + kept + made, kept, made, frames)

    def padded(self, out: Region) -> int:
        """Pixels of the input with its border of zeros."""
        return bordered(self.reads(out), out.edges()) if self.kernel_size[1] == 3 else out.area

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        if self.kernel_size == (1, 1, 1):
            return self(x), ()
        buffer, cache = self.gather(x, cache, out)
        return self(buffer), cache

    def gather(self, x: torch.Tensor, cache: Cache, out: Region, norm: "RMSNorm | None" = None):
        """This convolution's whole input in one tensor: cached frames, then x (through `norm` and SiLU where given),
        zeros around them where the frame ends; and the cache for the next step.
        """
        history = 0 if cache is None else HISTORY
        pads = out.edges() if self.kernel_size[1] == 3 else (0, 0, 0, 0)
        buffer, frames = room(x, history + x.shape[2], pads)
        if history:
            seen = cache[0].shape[2]
            frames[:, :, : HISTORY - seen] = 0
            frames[:, :, HISTORY - seen : HISTORY] = cache[0]
        if norm is None:
            frames[:, :, history:] = x
        else:
            norm.activate(x, frames[:, :, history:])
        return buffer, (frames[:, :, -HISTORY:].clone(),)


def bordered(inside: Region, pads: tuple[int, int, int, int]) -> int:
    """Pixels of a region with a border of zeros."""
    left, right, top, bottom = pads
    return (top + len(inside.rows) + bottom) * (left + len(inside.cols) + right)


def room(x: torch.Tensor, frames: int, pads: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """An empty tensor like x (B, C, T, H, W) with `frames` frames in a border of zeros; (all of it, the inside).

    Channels lie innermost in memory: normalisation and convolution both work along them.
    """
    left, right, top, bottom = pads
    b, c, _, h, w = x.shape
    shape = (b, c, frames, top + h + bottom, left + w + right)
    whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    if top or bottom:
        whole[..., 0 if top else h : None : h + 1, :].zero_()
    if left or right:
        whole[..., 0 if left else w : None : w + 1].zero_()
    return whole, whole[..., top : top + h, left : left + w]


@functools.cache
def _mixed(mixin: type, conv: type) -> type:
    """The namespace's convolution class with `mixin` before it."""
    return type(mixin.__name__.strip("_"), (mixin, conv), {})


def causal_conv3d(ops, cin: int, cout: int, kernel, stride=1) -> nn.Module:
    """A causal convolution whose weights are those of `ops.Conv3d` (so the host may cast, offload or patch them)."""
    return _mixed(_Causal, ops.Conv3d)(cin, cout, kernel, stride=stride)


class RMSNorm(nn.Module):
    """Unit length over channels, times sqrt(channels) * gamma: the official `RMS_norm`."""

    def __init__(self, dim: int, axes: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise x (B, C, ...), into `out` where it is given."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12)
        scale = norm.reciprocal_().mul_(x.shape[1] ** 0.5)
        return torch.mul(x, scale, out=out).mul_(self.gamma.to(x))

    def activate(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write silu(norm(x)) into `out`."""
        F.silu(self(x, out), inplace=True)


class ResidualBlock(nn.Module):
    """Two normalised causal 3x3x3 convolutions beside a shortcut."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(cin),
            nn.SiLU(),
            causal_conv3d(ops, cin, cout, 3),
            RMSNorm(cout),
            nn.SiLU(),
            nn.Identity(),  # the official dropout's place in the numbering
            causal_conv3d(ops, cout, cout, 3),
        )
        self.shortcut = nn.Identity() if cin == cout else causal_conv3d(ops, cin, cout, 1)

    def reads(self, out: Region) -> Region:
        return out.around().around()

    def holds(self, out: Region) -> tuple[Region, ...]:
        return out.around().around(), out.around()

    def cost(self, out: Region, t: int) -> Cost:
        conv1, conv2 = self.residual[2], self.residual[6]
        middle = out.around()
        cin, cout, source = conv1.in_channels, conv1.out_channels, middle.around()
        first, second = conv1.cost(middle, t), conv2.cost(out, t)
        shortcut = 0 if cin == cout else cin * cout * out.area * t
        x = cin * t * source.area
        added = 0 if cin == cout else cout * t * out.area
        live = max(first.live, x + first.kept + second.live, x + first.kept + second.kept + second.made + added)
        return Cost(first.work + second.work + shortcut, live, first.kept + second.kept, second.made, t)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        middle = out.around()
        first, second = (None, None) if cache is None else (cache[:1], cache[1:])
        buffer, first = conv1.gather(x, first, middle, norm1)
        h = conv1(buffer)
        del buffer  # large, and not needed while the next one is made
        buffer, second = conv2.gather(h, second, out, norm2)
        del h
        h = conv2(buffer)
        del buffer
        h += self.shortcut(middle.around().crop(x, out))
        return h, first + second


class Head(nn.Sequential):
    """The last normalised convolution of an encoder or decoder."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__(RMSNorm(cin), nn.SiLU(), causal_conv3d(ops, cin, cout, 3))

    def reads(self, out: Region) -> Region:
        return self[2].reads(out)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return self[2].holds(out)

    def cost(self, out: Region, t: int) -> Cost:
        return self[2].cost(out, t)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        norm, _, conv = self
        buffer, cache = conv.gather(x, cache, out, norm)
        return conv(buffer), cache


class AttentionBlock(nn.Module):
    """Self-attention with one head over the pixels of each frame: the one layer that reads the whole frame."""

    def __init__(self, ops, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1)
        self.proj = ops.Conv2d(dim, dim, 1)

    def reads(self, out: Region) -> Region:
        return Region.whole(out.rows.size, out.cols.size)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def cost(self, out: Region, t: int) -> Cost:
        c, pixels = self.proj.in_channels, out.area
        made = c * t * pixels
        work = 4 * c * c * t * pixels + 2 * c * t * pixels**2
        return Cost(work, 6 * made, 0, made, t)  # x; queries, keys and values; their result before and after `proj`

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        b, _, _, h, w = x.shape
        qkv = self.to_qkv(self.norm(images(x)))
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # (B T, 1, H W, C) each, one head
        rows = max(1, ATTENTION_SCORES // (h * w))  # a backend may hold all scores of a call at once
        y = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, dim=2)], dim=2)
        y = self.proj(y.squeeze(1).transpose(1, 2).unflatten(2, (h, w)))  # (B T, C, H, W)
        return videos(y, b).add_(x), ()


def images(x: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) as (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def videos(x: torch.Tensor, batch: int) -> torch.Tensor:
    """(B T, C, H, W) as (B, C, T, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


class _Phases:
    """Mixin over a namespace's 2-D convolution: a 3x3 convolution of the nearest-neighbour upsampled input.

    Each of the four pixels made from one sees only 2x2 different pixels, so four 2x2 convolutions of the small input
    give the same result with 4/9 of the work and without the large input.
    """

    def _conv_forward(self, x, weight, bias, *args, **kwargs):
        """x (N, C, H, W) to (N, cout, 2 H - 2, 2 W - 2): every output whose inputs are all there."""
        taps = weight.permute(0, 2, 3, 1)  # (O, 3, 3, C)
        phases = _pairs(_pairs(taps, 2), 2)  # columns: (2, O, 3, 2, C); then rows: (2, 2, O, 2, 2, C)
        phases = phases.flatten(0, 2).permute(0, 3, 1, 2)  # (4 O, C, 2, 2)
        y = F.conv2d(x, phases, None if bias is None else bias.repeat(4))
        y = y.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)  # (N, H, 2, W, 2, O)
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # (N, O, 2 H, 2 W), channels innermost in memory


def _pairs(taps: torch.Tensor, axis: int) -> torch.Tensor:
    """The three taps on `axis` summed to two, once for the odd pixel and once for the even one made after it."""
    before, at, after = taps.unbind(axis)
    pairs = taps.new_empty(2, *taps.shape[:axis], 2, *taps.shape[axis + 1 :])
    odd, even = pairs.unbind(0)
    torch.add(before, at, out=odd.select(axis, 0))
    odd.select(axis, 1).copy_(after)
    even.select(axis, 0).copy_(before)
    torch.add(at, after, out=even.select(axis, 1))
    return pairs


class Upsample(nn.Module):
    """Twice the rows and columns; where `time`, also two frames from each one but the first (official `Resample`)."""

    def __init__(self, ops, cin: int, cout: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), _mixed(_Phases, ops.Conv2d)(cin, cout, 3))
        self.time_conv = causal_conv3d(ops, cin, 2 * cin, (3, 1, 1)) if time else None

    def reads(self, out: Region) -> Region:
        return out.around().map(Span.coarse)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return () if self.time_conv is None else (self.reads(out),)

    def cost(self, out: Region, t: int) -> Cost:
        source, conv = self.reads(out), self.resample[1]
        cin, x = conv.in_channels, conv.in_channels * t * source.area
        deep = Cost(0, 0, 0, 0, t) if self.time_conv is None else self.time_conv.cost(source, t)
        frames = t if self.time_conv is None else 2 * t
        whole = cin * frames * bordered(source, out.edges())
        made = conv.out_channels * frames * _made(source, out).area
        live = max(deep.live, x + deep.kept + deep.made + whole, x + deep.kept + whole + 2 * made)
        work = deep.work + 4 * cin * made
        return Cost(work, live, deep.kept, made, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        source = self.reads(out)
        if self.time_conv is None or cache is None:  # a first frame stays one frame, and later ones do not see it
            cache = () if self.time_conv is None else (x[:, :, :0].clone(),)
            whole, inside = room(x, x.shape[2], out.edges())
            inside.copy_(x)
        else:
            pairs, cache = self.time_conv.step(x, cache, source)  # (B, 2 C, T, H, W)
            whole, inside = room(x, 2 * x.shape[2], out.edges())
            inside[:, :, 0::2], inside[:, :, 1::2] = pairs.chunk(2, dim=1)
            del pairs
        y = videos(self.resample[1](images(whole)), x.shape[0])
        return _made(source, out).crop(y, out), cache


def _made(source: Region, out: Region) -> Region:
    """What the phase convolutions make of `source` with its border of zeros: `out`, and up to a pixel more a side."""
    left, right, top, bottom = out.edges()
    rows = Span(2 * (source.rows.lo - top) + 1, 2 * (source.rows.hi + bottom) - 1, out.rows.size)
    cols = Span(2 * (source.cols.lo - left) + 1, 2 * (source.cols.hi + right) - 1, out.cols.size)
    return Region(rows, cols)


class Downsample(nn.Module):
    """Half the rows and columns; where `time`, also half the frames after the first (official `Resample`)."""

    def __init__(self, ops, dim: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), ops.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = causal_conv3d(ops, dim, dim, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def reads(self, out: Region) -> Region:
        return out.map(Span.before_stride)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return () if self.time_conv is None else (out,)

    def cost(self, out: Region, t: int) -> Cost:
        source, dim = self.reads(out), self.resample[1].in_channels
        _, right, _, bottom = out.edges()
        x, whole = dim * t * source.area, dim * t * bordered(source, (0, right, 0, bottom))
        y = dim * t * out.area
        work = 9 * dim * y
        if self.time_conv is None:
            return Cost(work, x + whole + y, 0, y, t)
        kept = dim * out.area
        made = y // 2
        live = max(x + whole + y, x + 2 * y + 2 * kept + made)
        return Cost(work + 3 * dim * made, live, kept, made, t // 2)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        _, right, _, bottom = out.edges()
        whole, inside = room(x, x.shape[2], (0, right, 0, bottom))
        inside.copy_(x)
        y = videos(self.resample[1](images(whole)), x.shape[0])  # (B, C, T, H/2, W/2)
        del whole, inside
        if self.time_conv is None:
            return y, ()
        last = (y[:, :, -1:].clone(),)
        return (y if cache is None else self.time_conv(torch.cat([cache[0], y], dim=2))), last


class Means(nn.Module):
    """Keeps the means of the encoder's (means, log variances)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def reads(self, out: Region) -> Region:
        return out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def cost(self, out: Region, t: int) -> Cost:
        made = self.channels * t * out.area
        return Cost(0, 2 * made, 0, 2 * made, t)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        return x[:, : self.channels], ()


class Encoder(nn.Module):
    """The official encoder's parts; `stages` are its `downsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, dim, 3)
        self.downsamples = nn.Sequential(*stages)
        self.middle = _middle(ops, 4 * dim)
        self.head = Head(ops, 4 * dim, out_channels)


class Decoder(nn.Module):
    """The official decoder's parts; `stages` are its `upsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, 4 * dim, 3)
        self.middle = _middle(ops, 4 * dim)
        self.upsamples = nn.Sequential(*stages)
        self.head = Head(ops, dim, out_channels)


def _middle(ops, dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(ops, dim, dim), AttentionBlock(ops, dim), ResidualBlock(ops, dim, dim))
