"""Which fused kernels the DiT gets for what only moves memory: the host's own (comfy-kitchen), in the form it takes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import comfy.model_management
import comfy.quant_ops
import torch
from torch import Tensor

from ...wan_model.dit.layers import TORCH, Kernels
from ...wan_model.dit.rope import rope_table
from ...wan_model.kernels.fused import triton_kernels

AXES = "tyx"  # frames, rows and columns, as the host calls them
BACKENDS = ("cuda", "triton")  # comfy-kitchen's third, "eager", takes more passes than ours


def choose(x: Tensor, rope_options: Mapping[str, float] | None = None) -> Kernels:
    """The host's kernels, or else our own, where `x` is of a type and on a device that they are made for, or torch's.

    rope_options: of the host's ScaleROPE node, `scale_` and `shift_` of `AXES`.
    """
    kernels = _of_device(x)
    if rope_options is None:
        return kernels
    scale, shift = (
        tuple(rope_options.get(f"{kind}_{axis}", usual) for axis in AXES)
        for kind, usual in (("scale", 1.0), ("shift", 0.0))
    )
    return replace(kernels, rope_table=partial(kernels.rope_table, scale=scale, shift=shift))


def _of_device(x: Tensor) -> Kernels:
    kitchen = getattr(comfy.quant_ops, "ck", None)  # 0.3.75 has none, and some others an older one
    training = getattr(comfy.model_management, "in_training", False)  # these kernels have no gradient
    if training or x.device.type != "cuda" or x.dtype.itemsize > 2:
        return TORCH
    if hasattr(kitchen, "adaln") and any(map(kitchen.registry.is_available, BACKENDS)):
        return FUSED
    own = triton_kernels(x.device)
    return own.DIT if own else TORCH


def rope_matrices(grid: tuple[int, int, int], head_dim: int, device: torch.device, **positions) -> Tensor:
    """`rope_table` as matrices: (F * H * W, head_dim / 2, 2, 2)."""
    cos, sin = rope_table(grid, head_dim, device, **positions).unbind(-1)
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def rotate(x: Tensor, matrices: Tensor) -> Tensor:
    """Rotate the channel pairs of `x` (B, L, heads * head_dim) by `matrices` (L, head_dim / 2, 2, 2)."""
    heads = x.unflatten(-1, (-1, 2 * matrices.shape[1]))  # (B, L, heads, head_dim)
    return comfy.quant_ops.ck.apply_rope1(heads, matrices[None, :, None]).flatten(2)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `wan_model.dit.layers.norm_modulate`."""
    frames = x.unflatten(1, (shift.shape[1], -1))  # (B, F, tokens of a frame, dim)
    return comfy.quant_ops.ck.adaln(frames, scale, shift, eps).flatten(1, 2)


FUSED = Kernels(rope_matrices, rotate, norm_modulate)
