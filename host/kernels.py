"""The host's own fused kernels (comfy-kitchen) for what only moves memory, in the form that our DiT takes."""

import comfy.model_management
import comfy.quant_ops
import torch
from torch import Tensor

from ..wan_model.layers import TORCH, Kernels
from ..wan_model.rope import rope_table

BACKENDS = ("cuda", "triton")  # comfy-kitchen's third, "eager", takes more passes than ours


def choose(x: Tensor) -> Kernels:
    """The host's kernels where `x` is of a type and on a device that they are made for, else torch's."""
    kitchen = getattr(comfy.quant_ops, "ck", None)  # 0.3.75 has none
    training = getattr(comfy.model_management, "in_training", False)  # these kernels have no gradient
    if kitchen is None or training or x.device.type != "cuda" or x.dtype.itemsize > 2:
        return TORCH
    return FUSED if any(map(kitchen.registry.is_available, BACKENDS)) else TORCH


def rope_matrices(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """`rope_table` as matrices: (F * H * W, head_dim / 2, 2, 2)."""
    cos, sin = rope_table(grid, head_dim, device).unbind(-1)
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def rotate(x: Tensor, matrices: Tensor) -> Tensor:
    """Rotate the channel pairs of `x` (B, L, heads * head_dim) by `matrices` (L, head_dim / 2, 2, 2)."""
    heads = x.unflatten(-1, (-1, 2 * matrices.shape[1]))  # (B, L, heads, head_dim)
    return comfy.quant_ops.ck.apply_rope1(heads, matrices[None, :, None]).flatten(2)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `wan_model.layers.norm_modulate`."""
    frames = x.unflatten(1, (shift.shape[1], -1))  # (B, F, tokens of a frame, dim)
    return comfy.quant_ops.ck.adaln(frames, scale, shift, eps).flatten(1, 2)


FUSED = Kernels(rope_matrices, rotate, norm_modulate)
