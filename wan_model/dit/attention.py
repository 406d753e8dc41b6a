"""Scaled dot-product attention as one function type, so that callers can pass in a backend."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""attention(q, k, v, heads) -> out: q and out (B, L, heads * head_dim), k and v (B, S, heads * head_dim)."""

WINDOW_BLOCK = 1024  # queries that `local` processes at once, and rows of its mask


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Exact softmax attention by torch's fused kernel; the default `Attention`.

    mask: broadcast to (L, S): bool, true where a query may attend, or float32 to add to the scores; None for no mask.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, head_dim)
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, L, heads * head_dim)


def local(window: tuple[int, int]) -> Attention:
    """Return self-attention limited to `window` = (left, right) tokens before and after each token; -1 means all.

    This is the official configuration's `window_size`, as in flash-attn. Each block of queries reads only the keys
    within its reach, so work grows with the window and no mask is as large as L x L.
    """
    left, right = window

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out, length = torch.empty_like(q), q.shape[1]
        for start in range(0, length, WINDOW_BLOCK):
            stop = min(start + WINDOW_BLOCK, length)
            first = 0 if left < 0 else max(0, start - left)
            last = length if right < 0 else min(length, stop + right)
            distance = torch.arange(first, last, device=q.device) - torch.arange(start, stop, device=q.device)[:, None]
            mask = torch.ones_like(distance, dtype=torch.bool)  # (queries of the block, keys in reach)
            if left >= 0:
                mask &= distance >= -left
            if right >= 0:
                mask &= distance <= right
            out[:, start:stop] = sdpa(q[:, start:stop], k[:, first:last], v[:, first:last], heads, mask)
        return out

    return attention
