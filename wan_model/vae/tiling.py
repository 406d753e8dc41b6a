"""How a frame is cut into tiles, and what that costs."""

from dataclasses import dataclass
from itertools import pairwise

from .region import Region, Span

LONG_WINDOW = 21  # latent frames per window of a tiled stream: the models' native clip of 81 frames
MIN_TILE = 4  # latent pixels; below this nearly all of a tile is halo


@dataclass(frozen=True)
class TilePlan:
    """How one encode or decode is cut up.

    cores: the rectangles, which partition the frame, in pixels of what the tiled blocks make. unit: the smallest step
    of their sides. window: latent frames that each tile runs through at a time.
    """

    cores: tuple[Region, ...]
    unit: int
    window: int


def divide(size: int, most: int, unit: int) -> list[Span]:
    """Cut `size` into the fewest spans of at most `most`, all nearly equal and multiples of `unit`."""
    units, n = size // unit, -(-size // most)
    edges = [units * i // n * unit for i in range(n + 1)]
    return [Span(lo, hi, size) for lo, hi in pairwise(edges)]


def halve(core: Region, unit: int) -> tuple[Region, ...]:
    """The two halves of a tile along its longer side, or the tile itself where they would be too small."""
    least = MIN_TILE * unit
    if len(core.rows) >= len(core.cols):
        parts = tuple(Region(rows, core.cols) for rows in core.rows.halves(unit))
        short = min(len(part.rows) for part in parts)
    else:
        parts = tuple(Region(core.rows, cols) for cols in core.cols.halves(unit))
        short = min(len(part.cols) for part in parts)
    return parts if short >= least else (core,)


def cores(height: int, width: int, tile: tuple[int, int] | None, unit: int) -> tuple[Region, ...]:
    """The tiles' rectangles for a frame of height x width, where `unit` is one latent pixel."""
    if tile is None:
        return (Region.whole(height, width),)
    rows = divide(height, max(tile[0] // unit * unit, unit), unit)
    cols = divide(width, max(tile[1] // unit * unit, unit), unit)
    return tuple(Region(r, c) for r in rows for c in cols)
