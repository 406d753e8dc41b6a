"""Rectangles of a frame at one resolution, and the input rectangle that a layer needs for an output rectangle."""

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

    def with_halo(self) -> "Span":
        """Return the range that a 3-wide convolution reads inside the frame; beyond the frame it reads zeros."""
        return Span(max(self.lo - 1, 0), min(self.hi + 1, self.size), self.size)

    def halved(self) -> "Span":
        """Return the range at half the resolution that covers this one."""
        return Span(self.lo // 2, -(-self.hi // 2), self.size // 2)

    def doubled(self) -> "Span":
        """Return the same range at twice the resolution."""
        return Span(2 * self.lo, 2 * self.hi, 2 * self.size)

    def strided(self) -> "Span":
        """Return the range that a 3-wide convolution of stride 2 reads: 2i, 2i + 1 and 2i + 2 for output i.

        The frame is padded by one zero at its far end.
        """
        return Span(2 * self.lo, min(2 * self.hi + 1, 2 * self.size), 2 * self.size)

    def halves(self, unit: int = 1) -> tuple["Span", ...]:
        """Return two spans of nearly equal length that meet at a multiple of `unit`, or this one if it is too short."""
        middle = (self.lo + self.hi) // (2 * unit) * unit
        if not self.lo < middle < self.hi:
            return (self,)
        return Span(self.lo, middle, self.size), Span(middle, self.hi, self.size)


@dataclass(frozen=True)
class Rect:
    """A rectangle of a frame: a range of rows and one of columns."""

    rows: Span
    cols: Span

    @classmethod
    def whole(cls, height: int, width: int) -> "Rect":
        """Return the whole frame of `height` x `width` pixels."""
        return cls(Span(0, height, height), Span(0, width, width))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return len(self.rows) * len(self.cols)

    def map(self, move: Callable[[Span], Span]) -> "Rect":
        """Return the rectangle with `move` applied to both axes."""
        return Rect(move(self.rows), move(self.cols))

    def with_halo(self) -> "Rect":
        """Apply `Span.with_halo` to both axes."""
        return self.map(Span.with_halo)

    def padding(self) -> tuple[int, int, int, int]:
        """Return the zeros that a 3x3 convolution needs left, right, above and below: 1 at a frame's end, else 0."""
        return (
            int(self.cols.lo == 0),
            int(self.cols.hi == self.cols.size),
            int(self.rows.lo == 0),
            int(self.rows.hi == self.rows.size),
        )

    def crop(self, x: torch.Tensor, inner: "Rect") -> torch.Tensor:
        """Return the view of `x` (..., H, W), which covers this rectangle, on the smaller rectangle `inner`."""
        top, left = inner.rows.lo - self.rows.lo, inner.cols.lo - self.cols.lo
        return x[..., top : top + len(inner.rows), left : left + len(inner.cols)]
