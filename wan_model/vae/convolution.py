"""Causal convolutions on any rectangle of the frame, and the interface that all blocks of a VAE share.

A stream runs a list of blocks, and a plan sums their costs without running them. Every block has

    input_rect(out)                   the Rect of its input that it needs for the Rect `out` of its output
    step(x, cache, out, keep, runtime)  (y, new cache): x (B, C, T, H, W) covers input_rect(out), y covers out
    cache_rects(out)                  the Rects that the tensors of its cache cover, in the cache's order
    cost(out, chunk, runtime)         the `Cost` per sample of the step that takes this `Chunk`

A cache is None before the first frame, else a tuple of tensors. It is replaced, never changed in place, so a failed
step can be repeated. If `keep` is false, no step follows and the new cache is None. Steps are in order of time: one
frame first, then any number of frames per step.

Follows `wan/modules/vae.py` of Wan 2.1, whose parameter names are kept.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .rect import Rect
from .runtime import Kernels, Runtime

HISTORY = 2  # earlier frames that a convolution of temporal kernel 3 reads

Cache = tuple[torch.Tensor, ...] | None
Layers = Any  # an nn.Sequential; torch types its items as plain modules


class Chunk(NamedTuple):
    """The input of a block in one step: a number of frames, and whether they are a clip's first (one frame) or last."""

    frames: int
    first: bool
    last: bool

    @property
    def cached(self) -> int:
        """Frames that a convolution caches for the next step."""
        return 0 if self.last else 1 if self.first else HISTORY


class Cost(NamedTuple):
    """The cost of one step of a block, in multiplications and in numbers of elements.

    peak: most elements held at once: input, output, new cache and temporaries, without the old cache. cache:
    elements of the new cache. output: elements of the result. frames: frames of the result.
    """

    work: int
    peak: int
    cache: int
    output: int
    frames: int


class RMSNorm(nn.Module):
    """Scale to unit length over channels, times sqrt(channels) * gamma: the official `RMS_norm`."""

    def __init__(self, dim: int, axes: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise x (B, C, ...), into `out` if it is given."""
        least = max(1e-12, torch.finfo(x.dtype).tiny)  # the official 1e-12 is 0 in float16
        if out is not None and torch.is_grad_enabled() and (x.requires_grad or self.gamma.requires_grad):
            return out.copy_(self(x))  # autograd knows no `out`
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=least)
        return torch.mul(x, norm.reciprocal(), out=out).mul_(self.gamma.to(x) * x.shape[1] ** 0.5)

    def activate(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write silu(norm(x)) into `out`."""
        F.silu(self(x, out), inplace=True)

    def usable(self, kernels: Kernels | None, x: torch.Tensor, cache: Cache) -> Kernels | None:
        """Return `kernels` if they support these tensors, else None. They support neither gradients nor float64."""
        if kernels is None or x.requires_grad or self.gamma.requires_grad or x.dtype.itemsize > 4:
            return None
        return kernels if all(map(kernels.accepts, (x, *(cache or ())))) else None


class CausalConv3d(nn.Conv3d):
    """Mixin over a namespace's 3-D convolution: no padding, and taps that meet no frame are dropped."""

    kernel_size: tuple[int, int, int]

    def _conv_forward(self, input, weight, bias, *args, **kwargs):
        """Convolve a video, or its patches as `convolve` passes them, without padding.

        Equivalent 2-D convolutions are used where possible, which are faster.
        """
        if input.ndim == 8:
            return multiply_patches(input, weight, bias)
        if weight[0, 0].numel() == 1:
            return videos(F.conv2d(images(input), weight[:, :, 0], bias), input.shape[0])
        if weight.shape[3] == 1:  # only along time: rows and columns can be one axis
            y = F.conv2d(input.flatten(3), weight.flatten(3), bias, (self.stride[0], 1))
            return y.unflatten(3, input.shape[3:])
        if input.shape[2] < weight.shape[2]:  # a single first frame, read only by the last temporal tap
            return F.conv2d(input[:, :, -1], weight[:, :, -1], bias).unsqueeze(2)
        # the namespace's own: the host's avoids the memory that cuDNN uses in half precision since torch 2.9
        return super()._conv_forward(input, weight, bias, *args, **kwargs)

    def convolve(self, x: torch.Tensor, runtime: Runtime) -> torch.Tensor:
        """Convolve the padded input x (B, C, T, H, W), as one matrix product if `runtime` says so."""
        frames, taps = max(x.shape[2] - HISTORY, 1), self.kernel_size
        if taps[1] == 3 and frames * (x.shape[3] - 2) * (x.shape[4] - 2) <= runtime.product_pixels:
            return self(patches(x[:, :, -1:] if x.shape[2] < taps[0] else x, taps))
        return self(x)

    def input_rect(self, out: Rect) -> Rect:
        return out.with_halo() if self.kernel_size[1] == 3 else out

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return (self.input_rect(out),) if self.kernel_size[0] == 3 else ()

    def padding_of(self, out: Rect) -> tuple[int, int, int, int]:
        """Return the zeros left, right, above and below the input for `out`."""
        return out.padding() if self.kernel_size[1] == 3 else (0, 0, 0, 0)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        source, cin, cout, frames = self.input_rect(out), self.in_channels, self.out_channels, chunk.frames
        output = cout * frames * out.area
        work = cin * output * math.prod(self.kernel_size[1:])
        if self.kernel_size[0] == 1:
            return Cost(work, cin * frames * source.area + output, 0, output, frames)
        cache = chunk.cached * cin * source.area
        buffer = cin * (frames if chunk.first else HISTORY + frames) * padded_area(source, self.padding_of(out))
        work *= 1 if chunk.first else self.kernel_size[0]
        product = self.kernel_size[1] == 3 and frames * out.area <= runtime.product_pixels
        temporary = work // cout if product else 0  # the patches
        return Cost(work, cin * frames * source.area + buffer + cache + temporary + output, cache, output, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        if self.kernel_size == (1, 1, 1):
            return self(x), ()
        buffer, cache = self.fill_buffer(x, cache, out, keep)
        return self.convolve(buffer, runtime), cache

    def fill_buffer(
        self,
        x: torch.Tensor,
        cache: Cache,
        out: Rect,
        keep: bool,
        norm: RMSNorm | None = None,
        kernels: Kernels | None = None,
    ) -> tuple[torch.Tensor, Cache]:
        """Return the whole input of this convolution in one tensor, and the cache for the next step if one follows.

        The tensor holds the cached frames, then x (through `norm` and SiLU if given), with zeros where the frame ends.
        """
        cached = None if cache is None else cache[0]
        history, pads = 0 if cached is None else HISTORY, self.padding_of(out)
        fused = None if norm is None else norm.usable(kernels, x, cache)
        buffer, frames = empty_buffer(x, history + x.shape[2], pads)
        if norm is not None and fused is not None:
            left, _, top, _ = pads
            fused.activate(x, cached, norm.gamma.to(x).flatten(), buffer, history, top, left)
        else:
            zero_border(buffer, pads)
            if cached is not None:
                seen = cached.shape[2]
                frames[:, :, : HISTORY - seen] = 0
                frames[:, :, HISTORY - seen : HISTORY] = cached
            if norm is None:
                frames[:, :, history:] = x
            else:
                norm.activate(x, frames[:, :, history:])
        return buffer, (frames[:, :, -HISTORY:].clone(),) if keep else None


def padded_area(inside: Rect, pads: tuple[int, int, int, int]) -> int:
    """Return the number of pixels of a rectangle with zeros left, right, above and below."""
    left, right, top, bottom = pads
    return (top + len(inside.rows) + bottom) * (left + len(inside.cols) + right)


def empty_buffer(x: torch.Tensor, frames: int, pads: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an unset tensor like x (B, C, T, H, W) for `frames` padded frames, and its view without the border.

    Channels are innermost in memory: normalisation and convolution both run along them.
    """
    left, right, top, bottom = pads
    b, c, _, h, w = x.shape
    shape = (b, c, frames, top + h + bottom, left + w + right)
    whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    return whole, whole[..., top : top + h, left : left + w]


def zero_border(whole: torch.Tensor, pads: tuple[int, int, int, int]) -> None:
    """Set the border of `whole` (B, C, T, H, W), at most one pixel on each side, to zero."""
    left, right, top, bottom = pads
    h, w = whole.shape[3] - top - bottom, whole.shape[4] - left - right  # of the inside
    if top or bottom:
        whole[..., 0 if top else h : None : h + 1, :].zero_()
    if left or right:
        whole[..., 0 if left else w : None : w + 1].zero_()


def padded_copy(x: torch.Tensor, pads: tuple[int, int, int, int]) -> torch.Tensor:
    """Return x (B, C, T, H, W) with zeros left, right, above and below."""
    whole, inside = empty_buffer(x, x.shape[2], pads)
    zero_border(whole, pads)
    inside.copy_(x)
    return whole


def patches(x: torch.Tensor, taps: tuple[int, int, int]) -> torch.Tensor:
    """Return the view (B, T, H, W, C, t, h, w) of the inputs of a convolution of kernel `taps` on x (B, C, T, H, W).

    A single frame is read by one temporal tap.
    """
    view = x.permute(0, 2, 3, 4, 1)
    for axis, size in enumerate((min(taps[0], x.shape[2]), *taps[1:]), start=1):
        view = view.unfold(axis, size, 1)
    return view


def multiply_patches(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the convolution of `patches` x by `weight` (O, C, t, h, w), as one matrix product.

    It reads weights in their own layout. A CPU's convolutions reorder them in each call, which takes longer than the
    arithmetic if there are few pixels.
    """
    weight = weight[:, :, -x.shape[5] :]
    if weight.stride(1) == 1:  # channels innermost
        x, weight = x.movedim(4, -1), weight.movedim(1, -1)
    return F.linear(x.flatten(4), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


def images(x: torch.Tensor) -> torch.Tensor:
    """Return (B, C, T, H, W) as (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def videos(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Return (B T, C, H, W) as (B, C, T, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


@functools.cache
def mixed(mixin: type, conv: type) -> type:
    """Return the namespace's convolution class with `mixin` before it."""
    return type(mixin.__name__, (mixin, conv), {})


def causal_conv3d(ops, cin: int, cout: int, kernel, stride=1) -> CausalConv3d:
    """Return a causal convolution over `ops.Conv3d`, so that the host may cast, offload or patch its weights."""
    return mixed(CausalConv3d, ops.Conv3d)(cin, cout, kernel, stride=stride)
