"""Rectangles of a frame at one resolution: what a tile holds, and what a layer must read to make it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """The half-open range [lo, hi) of `size` pixels along one axis."""

    lo: int
    hi: int
    size: int

    def __len__(self) -> int:
        return self.hi - self.lo

    def around(self) -> "Span":
        """What a 3-wide convolution reads inside the frame; beyond the frame it reads zeros."""
        return Span(max(self.lo - 1, 0), min(self.hi + 1, self.size), self.size)

    def coarse(self) -> "Span":
        """The same place at half the resolution."""
        return Span(self.lo // 2, -(-self.hi // 2), self.size // 2)

    def fine(self) -> "Span":
        """The same place at twice the resolution."""
        return Span(2 * self.lo, 2 * self.hi, 2 * self.size)

    def before_stride(self) -> "Span":
        """What a 3-wide convolution of stride 2, padded by one zero at the far end, reads: 2i, 2i + 1 and 2i + 2."""
        return Span(2 * self.lo, min(2 * self.hi + 1, 2 * self.size), 2 * self.size)

    def halves(self, unit: int = 1) -> tuple["Span", ...]:
        """Two spans of about equal length that meet on a multiple of `unit`, or this one where it is too short."""
        middle = (self.lo + self.hi) // (2 * unit) * unit
        if not self.lo < middle < self.hi:
            return (self,)
        return Span(self.lo, middle, self.size), Span(middle, self.hi, self.size)


@dataclass(frozen=True)
class Region:
    """Rows and columns of a frame."""

    rows: Span
    cols: Span

    @classmethod
    def whole(cls, height: int, width: int) -> "Region":
        """The whole frame of `height` x `width` pixels."""
        return cls(Span(0, height, height), Span(0, width, width))

    @property
    def area(self) -> int:
        """Pixels in the region."""
        return len(self.rows) * len(self.cols)

    def map(self, move: Callable[[Span], Span]) -> "Region":
        """The region with `move` applied to both axes."""
        return Region(move(self.rows), move(self.cols))

    def around(self) -> "Region":
        """`Span.around` on both axes."""
        return self.map(Span.around)

    def edges(self) -> tuple[int, int, int, int]:
        """Zeros that a 3x3 convolution needs left, right, above and below: one where the frame ends, else none."""
        return (
            int(self.cols.lo == 0),
            int(self.cols.hi == self.cols.size),
            int(self.rows.lo == 0),
            int(self.rows.hi == self.rows.size),
        )

    def crop(self, x: torch.Tensor, inner: "Region") -> torch.Tensor:
        """The view of `x` (..., H, W), which covers this region, on the smaller region `inner`."""
        top, left = inner.rows.lo - self.rows.lo, inner.cols.lo - self.cols.lo
        return x[..., top : top + len(inner.rows), left : left + len(inner.cols)]
