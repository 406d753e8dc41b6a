"""Scaled dot-product attention as one function type, so that a backend is a value that a caller passes in."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""attention(q, k, v, heads) -> out: q and out (B, L, heads * head_dim), k and v (B, S, heads * head_dim)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Exact softmax attention by torch's fused kernel; the default `Attention`."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, head_dim)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, L, heads * head_dim)
