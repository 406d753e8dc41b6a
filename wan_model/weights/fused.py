"""Fused q, k and v projections, split into the three that the models have."""

import re
from collections.abc import Mapping

from torch import Tensor

FUSED = re.compile(r"(?P<path>(^|.*\.)music_encoder\.\d+\.self_attn\.)in_proj_(?P<kind>weight|bias)$")


def split_fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` with q_proj, k_proj and v_proj for each `in_proj` of WanDancer's music encoder."""
    split = {}
    for name, tensor in tensors.items():
        match = FUSED.match(name)
        if match is None:
            split[name] = tensor
            continue
        for part, third in zip("qkv", tensor.chunk(3), strict=True):  # (3 C, ...) -> (C, ...)
            split[f"{match['path']}{part}_proj.{match['kind']}"] = third
    return split
