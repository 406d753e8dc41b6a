"""Variant and sizes of a Wan DiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..variants import PATCH, VARIANTS, Variant

if TYPE_CHECKING:
    from .parts.base import Part

HEAD_DIM = 128  # of every released Wan; it cannot be read from a checkpoint's shapes
PATCH_AREA = PATCH[1] * PATCH[2]


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of one Wan DiT.

    variant: a key of `variants.VARIANTS`. in_dim, out_dim: latent channels into the patch embedding and out of the
    head. parts: additions of the variant to the network. window_size: tokens to the left and right that
    self-attention reads, -1 for all; it is not in checkpoints, and every released Wan reads all.
    """

    variant: str
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int = 256
    eps: float = 1e-6
    window_size: tuple[int, int] = (-1, -1)
    parts: tuple[Part, ...] = ()

    @property
    def facts(self) -> Variant:
        """The row of `variants.VARIANTS`."""
        return VARIANTS[self.variant]

    def part(self, name: str) -> Part | None:
        """Return the part called `name`, or None if this model does not have it."""
        return next((part for part in self.parts if part.name == name), None)
