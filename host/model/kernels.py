"""Fused kernels for the DiT's memory-bound operations: the host's own (comfy-kitchen), adapted to our interface."""

from collections.abc import Sequence

import comfy.quant_ops
import torch
from torch import Tensor

from ...wan_model.dit.layers import TORCH, Kernels
from ...wan_model.dit.rope import Positions, rope_table
from ...wan_model.kernels.fused import triton_kernels
from .. import compat

BACKENDS = ("cuda", "triton")  # the third, "eager", takes more passes than ours


def choose(x: Tensor) -> Kernels:
    """Return the host's kernels, or else our own, if they support the dtype and device of `x`; otherwise torch's."""
    if compat.is_training() or x.device.type != "cuda" or x.dtype.itemsize > 2:  # the kernels have no gradient
        return TORCH
    if compat.kitchen(*BACKENDS):
        return FUSED
    own = triton_kernels(x.device)
    return own.DIT if own else TORCH


def rope_matrices(positions: Sequence[Positions], head_dim: int, device: torch.device) -> Tensor:
    """Return `rope_table` as matrices: (tokens, head_dim / 2, 2, 2)."""
    cos, sin = rope_table(positions, head_dim, device).unbind(-1)
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def rotate(x: Tensor, matrices: Tensor) -> Tensor:
    """Rotate the channel pairs of `x` (B, L, heads * head_dim) by `matrices` (L, head_dim / 2, 2, 2)."""
    heads = x.unflatten(-1, (-1, 2 * matrices.shape[1]))  # (B, L, heads, head_dim)
    return comfy.quant_ops.ck.apply_rope1(heads, matrices[None, :, None]).flatten(2)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `wan_model.dit.layers.norm_modulate`."""
    rows = x.unflatten(1, (shift.shape[1], -1))  # (B, R, tokens of a row, dim)
    return comfy.quant_ops.ck.adaln(rows, scale, shift, eps).flatten(1, 2)


FUSED = Kernels(rope_matrices, rotate, norm_modulate)
