"""Triton kernels for memory-bound operations: one pass each where torch's operations take several.

Importing this needs Triton; `fused.triton_kernels` tells where they work. They compute in float32, round once and have
no gradient. Kernels are not specialised on strides and lengths, so one serves all sizes. Strides are counted in rows of
channels, which keeps their alignment known. Under torch.compile torch's own operations run, which it fuses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dit import layers, rope
from ..vae import runtime

PER_WARP = 512  # numbers held by the 32 threads of a warp
WARPS = 4  # for some pixels


def rotate_(x: Tensor, table: Tensor) -> Tensor:
    """Rotate as `wan_model.dit.rope.rotate_`, always in place. x (B, L, heads * head_dim) has contiguous rows."""
    if torch.compiler.is_compiling():
        return rope.rotate_(x, table)
    batch, length, dim = x.shape
    if len(table) != length:
        raise ValueError(f"{length} tokens cannot be rotated by a table for {len(table)}.")
    with torch.cuda.device_of(x):
        _rotate[(batch * length,)](*(x, table, length, *_apart(x)), PERIOD=2 * table.shape[1], **_token(dim))
    return x


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Modulate as `wan_model.dit.layers.norm_modulate`. x, shift and scale have contiguous rows of channels."""
    if torch.compiler.is_compiling():
        return layers.norm_modulate(x, shift, scale, eps)
    batch, length, dim = x.shape
    frames = shift.shape[1]
    if length % frames:
        raise ValueError(f"{length} tokens are no whole number for each of {frames} frames.")
    shift, scale = (rows.expand(batch, frames, 1, dim) for rows in (shift, scale))
    out = torch.empty((batch, length, dim), dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _norm_modulate[(batch * length,)](
            *(x, shift, scale, out, length, length // frames, eps),
            *(*_apart(x), *_apart(shift), *_apart(scale)),
            **_token(dim),
        )
    return out


DIT = layers.Kernels(rotate=rotate_, norm_modulate=norm_modulate)


def activate(x: Tensor, cache: Tensor | None, gamma: Tensor, whole: Tensor, history: int, top: int, left: int) -> None:
    """Fill `whole` with the `history` last frames of `cache`, then silu(norm(x)), inside a border of zeros.

    x: (B, C, T, H, W). cache: (B, C, at most `history`, H, W), or None. gamma: C contiguous numbers. whole:
    (B, C, history + T, top + H + bottom, left + W + right), contiguous as channels_last_3d. All pass `is_innermost`.
    """
    channels, height, width = x.shape[1], *x.shape[3:]
    seen = x[:, :, :0] if cache is None else cache
    pixels, shape = whole.numel() // channels, _pixels(channels)
    strides = (y.stride(axis) // channels for y in (x, seen) for axis in (0, 2, 3, 4))
    with torch.cuda.device_of(x):
        _activate[(triton.cdiv(pixels, shape["ROWS"]),)](
            *(x, seen, gamma, whole, channels**0.5, pixels, *whole.shape[2:]),
            *(height, width, top, left, history, seen.shape[2], *strides),
            **shape,
        )


def is_innermost(x: Tensor) -> bool:
    """Return whether the channels of each pixel of x (B, C, ...) are contiguous and strides are multiples of C."""
    apart = (stride for axis, stride in enumerate(x.stride()) if axis != 1 and x.shape[axis] > 1)
    return x.stride(1) == 1 and all(stride % x.shape[1] == 0 for stride in apart)


VAE = runtime.Kernels(activate=activate, accepts=is_innermost)


def _apart(x: Tensor) -> tuple[int, int]:
    """Return the strides of the first two axes, in rows of channels."""
    return x.stride(0) // x.shape[-1], x.stride(1) // x.shape[-1]


def _token(dim: int) -> dict[str, int]:
    """Return the block size and warps for a token's channels."""
    block = triton.next_power_of_2(dim)
    return {"DIM": dim, "BLOCK": block, "num_warps": min(max(block // PER_WARP, 1), 16)}


def _pixels(channels: int) -> dict[str, int]:
    """Return the block sizes and warps for some pixels' channels."""
    block = triton.next_power_of_2(channels)
    return {"CHANNELS": channels, "BLOCK": block, "ROWS": max(1, WARPS * PER_WARP // block), "num_warps": WARPS}


@triton.jit(do_not_specialize=["length", "x_sample", "x_token"])
def _rotate(x, table, length, x_sample, x_token, DIM: tl.constexpr, PERIOD: tl.constexpr, BLOCK: tl.constexpr):
    """One token; the table has (cosine, sine) side by side as the token its pairs, the same for every head."""
    row = tl.program_id(0)
    sample, token = (row // length).to(tl.int64), (row % length).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < DIM
    place = x + (sample * x_sample + token * x_token) * DIM + channel
    a, b = tl.split(tl.load(place, mask, 0.0).to(tl.float32).reshape(BLOCK // 2, 2))
    cos, sin = tl.split(tl.load(table + token * PERIOD + channel % PERIOD, mask, 0.0).reshape(BLOCK // 2, 2))
    turned = tl.join(a * cos - b * sin, a * sin + b * cos).reshape(BLOCK)
    tl.store(place, turned.to(x.dtype.element_ty), mask)


@triton.jit(
    do_not_specialize=[
        *("length", "of_frame", "x_sample", "x_token", "shift_sample", "shift_frame", "scale_sample", "scale_frame")
    ]
)
def _norm_modulate(
    x,
    shift,
    scale,
    out,
    length,
    of_frame,
    eps,
    x_sample,
    x_token,
    shift_sample,
    shift_frame,
    scale_sample,
    scale_frame,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token; `of_frame` tokens share a row of `shift` and of `scale`."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // length, row % length
    frame = token // of_frame
    channel = tl.arange(0, BLOCK)
    mask = channel < DIM
    value = tl.load(x + (sample * x_sample + token * x_token) * DIM + channel, mask, 0.0).to(tl.float32)
    value = tl.where(mask, value - tl.sum(value) / DIM, 0.0)
    value *= tl.rsqrt(tl.sum(value * value) / DIM + eps)
    scaled = tl.load(scale + (sample * scale_sample + frame * scale_frame) * DIM + channel, mask, 0.0).to(tl.float32)
    shifted = tl.load(shift + (sample * shift_sample + frame * shift_frame) * DIM + channel, mask, 0.0).to(tl.float32)
    tl.store(out + row * DIM + channel, (shifted + (1 + scaled) * value).to(out.dtype.element_ty), mask)


@triton.jit(
    do_not_specialize=[
        *("pixels", "whole_frames", "whole_height", "whole_width", "height", "width", "top", "left", "history", "seen"),
        *("x_sample", "x_frame", "x_row", "x_pixel", "cache_sample", "cache_frame", "cache_row", "cache_pixel"),
    ]
)
def _activate(
    x,
    cache,
    gamma,
    whole,
    root,
    pixels,
    whole_frames,
    whole_height,
    whole_width,
    height,
    width,
    top,
    left,
    history,
    seen,
    x_sample,
    x_frame,
    x_row,
    x_pixel,
    cache_sample,
    cache_frame,
    cache_row,
    cache_pixel,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`ROWS` pixels of `whole`, each of a frame or zero."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)[None, :]
    held = channel < CHANNELS
    col = pixel % whole_width - left
    row = pixel // whole_width % whole_height - top
    frame = pixel // (whole_width * whole_height) % whole_frames - history  # of x; before it, negative, those seen
    sample = pixel // (whole_width * whole_height * whole_frames)
    inside = (pixel < pixels) & (col >= 0) & (col < width) & (row >= 0) & (row < height)

    at = sample.to(tl.int64) * x_sample + frame.to(tl.int64) * x_frame + row.to(tl.int64) * x_row + col * x_pixel
    new = (inside & (frame >= 0))[:, None] & held
    value = tl.load(x + at[:, None] * CHANNELS + channel, new, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    value *= (root / length)[:, None] * tl.load(gamma + channel, held, 0.0).to(tl.float32)
    value *= tl.sigmoid(value)

    frame += seen
    at = sample.to(tl.int64) * cache_sample + frame.to(tl.int64) * cache_frame
    at += row.to(tl.int64) * cache_row + col * cache_pixel
    old = (inside & (frame >= 0) & (frame < seen))[:, None] & held
    value += tl.load(cache + at[:, None] * CHANNELS + channel, old, 0.0).to(tl.float32)  # one of the two is zero

    to = whole + pixel.to(tl.int64)[:, None] * CHANNELS + channel
    tl.store(to, value.to(whole.dtype.element_ty), (pixel < pixels)[:, None] & held)
