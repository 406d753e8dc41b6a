"""Each fact that tells one Wan model from another, once."""

from .families import FAMILIES, PATCH, TIME_STRIDE, WAN21, WAN22, Family
from .models import CAUSAL, VARIANTS, Sampling, Variant, expert_boundary
from .text import NEGATIVE_PROMPT, TEXT_LENGTH

__all__ = [
    "CAUSAL",
    "FAMILIES",
    "NEGATIVE_PROMPT",
    "PATCH",
    "TEXT_LENGTH",
    "TIME_STRIDE",
    "VARIANTS",
    "WAN21",
    "WAN22",
    "Family",
    "Sampling",
    "Variant",
    "expert_boundary",
]
