"""Fused q, k and v projections, split into the three that the models have."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from . import ggml

FUSED = re.compile(r"(?P<path>(^|.*\.)music_encoder\.\d+\.self_attn\.)in_proj_(?P<kind>weight|bias)$")


T = TypeVar("T", Tensor, "Tensor | ggml.Packed")


def split_fused(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return `tensors` with q_proj, k_proj and v_proj for each `in_proj` of WanDancer's music encoder."""
    split: dict[str, T] = {}
    for name, tensor in tensors.items():
        match = FUSED.match(name)
        if match is None:
            split[name] = tensor
            continue
        for part, third in zip("qkv", _thirds(tensor), strict=True):
            split[f"{match['path']}{part}_proj.{match['kind']}"] = third
    return split


def _thirds(tensor: T) -> Sequence[T]:
    """Return the three parts (C, ...) of a tensor (3 C, ...), packed like it."""
    if isinstance(tensor, ggml.Packed):
        return [ggml.Packed(rows, tensor.kind) for rows in tensor.data.chunk(3)]
    return tensor.chunk(3)
