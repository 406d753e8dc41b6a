"""The causal layers that both Wan VAEs are made of, each able to run on any rectangle of the frame.

Every layer here is a block with the same methods, so that a stream can walk a list of them and a plan can add up
what they cost without running them:

    reads(out)                  the Region of its input that it needs to make the Region `out` of its output
    step(x, cache, out, keep)   (y, new cache): x (B, C, T, H, W) covers reads(out), y covers out
    holds(out)                  the Regions that the tensors of its cache cover, in the cache's order
    cost(out, chunk)            the `Cost` of the step that takes this `Chunk`, per sample

A cache is None before the first frame, else a tuple of tensors; it is never changed, only replaced, so a step that
fails can be run again. Without `keep` no step follows, and the new cache is None. Time runs in order: one frame first,
then any number of frames per step.

Follows `wan/modules/vae.py` of Wan 2.1, whose parameter names are kept.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.fused import triton_kernels
from .region import Region, Span

ATTENTION_SCORES = 2**26
HISTORY = 2  # frames that a convolution of temporal kernel 3 looks back
FEW = 400  # pixels of a sample that a convolution makes: as one product up to here, on two CPU cores
WORTH_FOLDING = 512  # pixels: on two CPU cores about where the two ways of `_Upsampled` take the same time

Cache = tuple[torch.Tensor, ...] | None


class Chunk(NamedTuple):
    """What enters a block in one step: so many frames of a clip, and whether they are its first (one frame) or last."""

    frames: int
    first: bool
    last: bool

    @property
    def kept(self) -> int:
        """Frames that a convolution keeps for the next step."""
        return 0 if self.last else 1 if self.first else HISTORY


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
        first = x.shape[2] < weight.shape[2]  # a single first frame, which meets only the last temporal tap
        if first:
            x, weight = x[:, :, -1:], weight[:, :, -1:]
        pixels = math.prod(size - taps + 1 for size, taps in zip(x.shape[2:], weight.shape[2:], strict=True))
        if x.device.type == "cpu" and few(pixels):
            return _product(x, weight, bias)
        if first:
            return F.conv2d(x[:, :, 0], weight[:, :, 0], bias).unsqueeze(2)
        # the namespace's own: the host's avoids the memory that cuDNN takes for it in half precision since torch 2.9
        return super()._conv_forward(x, weight, bias, *args, **kwargs)

    def reads(self, out: Region) -> Region:
        return out.around() if self.kernel_size[1] == 3 else out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return (self.reads(out),) if self.kernel_size[0] == 3 else ()

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        source, cin, cout, frames = self.reads(out), self.in_channels, self.out_channels, chunk.frames
        made = cout * frames * out.area
        work = cin * made * math.prod(self.kernel_size[1:])
        if self.kernel_size[0] == 1:
            return Cost(work, cin * frames * source.area + made, 0, made, frames)
        kept = chunk.kept * cin * source.area
        buffer = cin * (frames if chunk.first else HISTORY + frames) * self.padded(out)
        work *= 1 if chunk.first else self.kernel_size[0]
        patches = work // cout if few(frames * out.area) else 0  # of `_product`
        return Cost(work, cin * frames * source.area + buffer + kept + patches + made, kept, made, frames)

    def padded(self, out: Region) -> int:
        """Pixels of the input with its border of zeros."""
        return bordered(self.reads(out), out.edges()) if self.kernel_size[1] == 3 else out.area

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        if self.kernel_size == (1, 1, 1):
            return self(x), ()
        buffer, cache = self.gather(x, cache, out, keep)
        return self(buffer), cache

    def gather(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool, norm: "RMSNorm | None" = None):
        """This convolution's whole input in one tensor: cached frames, then x (through `norm` and SiLU where given),
        zeros around them where the frame ends; and the cache for the next step where one follows.
        """
        history = 0 if cache is None else HISTORY
        pads = out.edges() if self.kernel_size[1] == 3 else (0, 0, 0, 0)
        kernels = None if norm is None else norm.kernels(x, cache)
        if kernels is not None:
            buffer, frames = empty_room(x, history + x.shape[2], pads)
            seen, (left, _, top, _) = cache[0] if history else None, pads
            kernels.activate(x, seen, norm.gamma.to(x).flatten(), buffer, history, top, left)
        else:
            buffer, frames = room(x, history + x.shape[2], pads)
            if history:
                seen = cache[0].shape[2]
                frames[:, :, : HISTORY - seen] = 0
                frames[:, :, HISTORY - seen : HISTORY] = cache[0]
            if norm is None:
                frames[:, :, history:] = x
            else:
                norm.activate(x, frames[:, :, history:])
        return buffer, (frames[:, :, -HISTORY:].clone(),) if keep else None


def bordered(inside: Region, pads: tuple[int, int, int, int]) -> int:
    """Pixels of a region with a border of zeros."""
    left, right, top, bottom = pads
    return (top + len(inside.rows) + bottom) * (left + len(inside.cols) + right)


def empty_room(x: torch.Tensor, frames: int, pads: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """An unset tensor like x (B, C, T, H, W) with `frames` frames inside a border; (all of it, the inside).

    Channels lie innermost in memory: normalisation and convolution both work along them.
    """
    left, right, top, bottom = pads
    b, c, _, h, w = x.shape
    shape = (b, c, frames, top + h + bottom, left + w + right)
    whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    return whole, whole[..., top : top + h, left : left + w]


def room(x: torch.Tensor, frames: int, pads: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """`empty_room` with zeros in its border."""
    left, right, top, bottom = pads
    h, w = x.shape[3:]
    whole, inside = empty_room(x, frames, pads)
    if top or bottom:
        whole[..., 0 if top else h : None : h + 1, :].zero_()
    if left or right:
        whole[..., 0 if left else w : None : w + 1].zero_()
    return whole, inside


def few(pixels: int) -> bool:
    """Whether a convolution that makes so many pixels of a sample, in all frames, pays as one product on a CPU."""
    return pixels <= FEW


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution of x (B, C, T, H, W) by `weight` (O, C, t, h, w) as one matrix product.

    It reads the weights as they lie in memory. A CPU's convolutions lay them out anew each time, which for few pixels
    takes longer than the arithmetic.
    """
    patches = x.permute(0, 2, 3, 4, 1)
    for axis, taps in enumerate(weight.shape[2:], start=1):
        patches = patches.unfold(axis, taps, 1)  # at last (B, T, H, W, C, t, h, w)
    if weight.stride(1) == 1:  # channels innermost, as in `patches`
        patches, weight = patches.movedim(4, -1), weight.movedim(1, -1)
    return F.linear(patches.flatten(4), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


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

    def kernels(self, x: torch.Tensor, cache: Cache):
        """The Triton kernels where they can take these through norm and SiLU in one pass, else None."""
        if x.requires_grad or self.gamma.requires_grad or x.dtype.itemsize > 4:
            return None
        found = triton_kernels(x.device)
        return found if found and all(map(found.is_innermost, (x, *(cache or ())))) else None


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

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        conv1, conv2 = self.residual[2], self.residual[6]
        middle = out.around()
        cin, cout, frames = conv1.in_channels, conv1.out_channels, chunk.frames
        first, second = conv1.cost(middle, chunk), conv2.cost(out, chunk)
        made, kept = second.made, first.kept + second.kept
        added = 0 if cin == cout else made
        held = cin * frames * middle.around().area + first.kept  # x and the first cache, while the second is made
        live = max(first.live, held + second.live - made, held + second.kept + made + added)
        return Cost(first.work + second.work + cin * added, live, kept, made, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        middle = out.around()
        first, second = (None, None) if cache is None else (cache[:1], cache[1:])
        buffer, first = conv1.gather(x, first, middle, keep, norm1)
        h = conv1(buffer)
        del buffer  # large, and not needed while the next one is made
        buffer, second = conv2.gather(h, second, out, keep, norm2)
        del h
        h = conv2(buffer)
        del buffer
        h += self.shortcut(middle.around().crop(x, out))
        return h, first + second if keep else None


class Head(nn.Sequential):
    """The last normalised convolution of an encoder or decoder."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__(RMSNorm(cin), nn.SiLU(), causal_conv3d(ops, cin, cout, 3))

    def reads(self, out: Region) -> Region:
        return self[2].reads(out)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return self[2].holds(out)

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        return self[2].cost(out, chunk)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        norm, _, conv = self
        buffer, cache = conv.gather(x, cache, out, keep, norm)
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

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        c, pixels = self.proj.in_channels, out.area
        made = c * chunk.frames * pixels
        work = 4 * c * made + 2 * made * pixels
        live = 6 * made  # x; queries, keys and values; their result before and after `proj`
        return Cost(work, live, 0, made, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
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


class _Upsampled:
    """Mixin over a namespace's 2-D convolution: a 3x3 convolution of the nearest-neighbour upsampled input.

    Each of the four pixels made from one sees only 2x2 different pixels, so four 2x2 convolutions of the small input
    give the same result with 4/9 of the work and without the large input. Summing the weights for them costs as much
    for a few pixels as for many, and for too few it is not worth it.
    """

    def _conv_forward(self, x, weight, bias, *args, **kwargs):
        """x (N, C, H, W) to (N, cout, 2 H - 2, 2 W - 2): every output whose inputs are all there."""
        if not folds(x.shape[0] * x.shape[2] * x.shape[3]):
            return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias)
        y = F.conv2d(x, _phases(weight), None if bias is None else bias.repeat(4))
        y = y.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)  # (N, H, 2, W, 2, O)
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # (N, O, 2 H, 2 W), channels innermost in memory


def folds(pixels: int) -> bool:
    """Whether summing the weights pays for an input of so many pixels, those of all frames and borders together."""
    return pixels >= WORTH_FOLDING


def _phases(weight: torch.Tensor) -> torch.Tensor:
    """The weights (O, C, 3, 3) summed to those (4 O, C, 2, 2) of the four phases."""
    taps = weight.permute(0, 2, 3, 1)  # (O, 3, 3, C)
    phases = _pairs(_pairs(taps, 2), 2)  # columns: (2, O, 3, 2, C); then rows: (2, 2, O, 2, 2, C)
    return phases.flatten(0, 2).permute(0, 3, 1, 2)


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
        self.resample = nn.Sequential(nn.Identity(), _mixed(_Upsampled, ops.Conv2d)(cin, cout, 3))
        self.time_conv = causal_conv3d(ops, cin, 2 * cin, (3, 1, 1)) if time else None

    def reads(self, out: Region) -> Region:
        return out.around().map(Span.coarse)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return () if self.time_conv is None else (self.reads(out),)

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        source, conv = self.reads(out), self.resample[1]
        cin, cout, frames = conv.in_channels, conv.out_channels, chunk.frames
        x, deep = cin * frames * source.area, Cost(0, 0, 0, 0, frames)
        if self.time_conv is not None and not chunk.first:
            deep, frames = self.time_conv.cost(source, chunk), 2 * frames
        pixels = frames * bordered(source, out.edges())
        whole, made = cin * pixels, cout * frames * _made(source, out).area
        if folds(pixels):
            work, weight = 4 * cin * made, cin * cout
            # the weights summed over columns, 12 taps, stand beside the whole sums, 16; the result is laid out anew
            scratch = max(28 * weight, 16 * weight + made, 2 * made)
        else:
            work, scratch = 9 * cin * made, 4 * whole + made
        live = max(deep.live, x + deep.kept + whole + max(deep.made, scratch))
        return Cost(deep.work + work, live, deep.kept, made, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        source = self.reads(out)
        if self.time_conv is None or cache is None:  # a first frame stays one frame, and later ones do not see it
            cache = () if self.time_conv is None else (x[:, :, :0].clone(),)
            whole, inside = room(x, x.shape[2], out.edges())
            inside.copy_(x)
        else:
            pairs, cache = self.time_conv.step(x, cache, source, keep)  # (B, 2 C, T, H, W)
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

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        source, dim, frames = self.reads(out), self.resample[1].in_channels, chunk.frames
        _, right, _, bottom = out.edges()
        x, whole = dim * frames * source.area, dim * frames * bordered(source, (0, right, 0, bottom))
        one = dim * out.area  # a frame of the result
        y = frames * one
        work, live = 9 * dim * y, x + whole + y
        if self.time_conv is None:
            return Cost(work, live, 0, y, frames)
        kept = 0 if chunk.last else one
        if chunk.first:
            return Cost(work, max(live, x + y + kept), kept, y, frames)
        made = y // 2
        return Cost(work + 3 * dim * made, max(live, x + 2 * y + one + kept + made), kept, made, frames // 2)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
        _, right, _, bottom = out.edges()
        whole, inside = room(x, x.shape[2], (0, right, 0, bottom))
        inside.copy_(x)
        y = videos(self.resample[1](images(whole)), x.shape[0])  # (B, C, T, H/2, W/2)
        del whole, inside
        if self.time_conv is None:
            return y, ()
        last = (y[:, :, -1:].clone(),) if keep else None
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

    def cost(self, out: Region, chunk: Chunk) -> Cost:
        both = 2 * self.channels * chunk.frames * out.area
        return Cost(0, both, 0, both, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Region, keep: bool):
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
