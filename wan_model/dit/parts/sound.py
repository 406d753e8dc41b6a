"""Shared by the parts with sound: the tokens of each latent frame attend to the sound of that frame."""

from __future__ import annotations

from torch import Tensor

from ..attention import Attention
from ..runtime import Runtime

ADVICE = (
    "connect the output of an audio encoder to the node that makes its conditioning; if there is one, the sound has "
    "ended: make no further clip"
)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, attention: Attention, heads: int) -> Tensor:
    """Return attention of q (B, F * n, dim) to the k and v (B, F, m, dim) of the same frame: (B, F * n, dim)."""
    frames = k.shape[1]
    q = q.unflatten(1, (frames, -1)).flatten(0, 1)  # (B * F, n, dim)
    out = attention(q, k.flatten(0, 1), v.flatten(0, 1), heads)
    return out.unflatten(0, (-1, frames)).flatten(1, 2)  # (B, F * n, dim)


def sound_attention(runtime: Runtime) -> Attention:
    """Return what runs the attention to sound: as that to text."""
    return runtime.cross_attention or runtime.attention


def check_heard(variant: str, audio: Tensor | None, advice: str = ADVICE) -> None:
    """Raise ValueError, with advice, if there is no sound."""
    if audio is None:
        raise ValueError(f"This {variant} model needs sound (audio) and got none: {advice}.")
