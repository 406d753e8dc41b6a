"""The cost of a forward: tokens, bytes and floating point operations, counted from `layers.py` and the parts."""

import math
from collections.abc import Mapping, Sequence

import torch

from ..variants import PATCH, TEXT_LENGTH
from .config import HEAD_DIM, DiTConfig

Shapes = Mapping[str, Sequence[int]]  # of the conditions that are given, by name


def clip_tokens(shape: Sequence[int]) -> int:
    """Return the tokens of a latent of `shape` (B, C, F, H, W), whose sides may be odd."""
    return shape[0] * shape[2] * math.ceil(shape[3] / PATCH[1]) * math.ceil(shape[4] / PATCH[2])


def all_tokens(config: DiTConfig, shape: Sequence[int], shapes: Shapes | None = None) -> int:
    """Return the tokens of a forward: those of the clip, and those that the parts add for the given conditions."""
    return clip_tokens(shape) + shape[0] * sum(part.extra_tokens(shape, shapes or {}) for part in config.parts)


def forward_bytes(
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    shapes: Shapes | None = None,
    chunk: int | None = None,
    devices: int = 1,
) -> int:
    """Return the peak memory of a forward in bytes, without weights and input, on each device that takes part.

    shape: of the latent (B, C, F, H, W). dtype: what it computes in. shapes: of the conditions that are given. chunk:
    most tokens that are projected at once, or None. devices: that share the tokens. Attention is taken to be without a
    matrix of scores, as torch's, flash and SageAttention are; ComfyUI's split and sub-quadratic ones adapt to the free
    memory.
    """
    shapes = shapes or {}
    total = all_tokens(config, shape, shapes)
    count = -(-total // devices)
    size = count if chunk is None else min(chunk, count)
    joined = size < count  # results of chunks are collected in a separate tensor
    dim = config.dim * dtype.itemsize
    rotating = 6 if dtype.itemsize < 4 else 4  # rotation is in float32
    attended = 5 if config.part("clip") else 4
    phases = (
        # the block's input; per chunk: normed tokens, q, k and temporaries of the rotation
        count * dim * (4 if joined else 1) + size * dim * rotating,
        # the block's input, q, k, v and the result of attention, or v in another order and what others sent of it
        count * dim * 5 + count * dim * (devices - 1) // devices,
        # inputs of block and cross-attention; per chunk: normed tokens, q, the attention's result and its projection
        count * dim * (3 if joined else 2) + size * dim * attended,
        # inputs of block and feed-forward; per chunk: normed, hidden and projected tokens
        count * dim * (3 if joined else 2) + size * (2 * dim + config.ffn_dim * dtype.itemsize),
        # the whole clip, embedded, and the tokens of this device
        (total + count) * dim,
    )
    context = 3 * shape[0] * TEXT_LENGTH * dim  # embedded, and a block's keys and values of it
    rotations = total // shape[0] * HEAD_DIM * torch.float32.itemsize
    extras = sum(part.extra_bytes(config, shape, dtype.itemsize, shapes) for part in config.parts)
    return max(phases) + extras + context + rotations


def largest_weight(config: DiTConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the largest weight, which is copied when it is cast or moved to the device."""
    return config.dim * config.ffn_dim * dtype.itemsize


def flops(config: DiTConfig, length: int) -> float:
    """Return the floating point operations of one forward for `length` tokens of one sample."""
    dim = config.dim
    linear = 2 * length * (6 * dim * dim + 2 * dim * config.ffn_dim) + 4 * TEXT_LENGTH * dim * dim
    scores = 4 * length * (length + TEXT_LENGTH) * dim
    blocks = config.layers + sum(part.extra_blocks for part in config.parts)
    return blocks * (linear + scores)
