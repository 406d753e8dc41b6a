"""How a frame is cut into tiles, and what that costs in work and memory: arithmetic only, nothing is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .lane import STRIP, last_doubling, regions
from .region import Region, Span
from .vae22 import Fork, Join

LONG_WINDOW = 21  # latent frames per window of a tiled stream: the models' native clip of 81 frames
MIN_TILE = 32  # pixels a side; in smaller tiles nearly all is halo

Blocks = tuple[Sequence, Sequence, Sequence]  # on whole frames, in tiles, on whole frames


@dataclass(frozen=True)
class TilePlan:
    """How one encode or decode is cut up, and what that costs.

    cores: the rectangles that partition the frame, in pixels of what the tiled blocks make. unit, stride: the side of
    one latent pixel, in those pixels and in pixels of video. halo: the most latent pixels that a tile reads beyond its
    core (left, right, above, below). window: latent frames that each tile runs through at a time. work: multiplications
    per latent frame, and untiled_work the same for whole frames. peak_bytes: the most memory held on the compute
    device, without weights. parked_bytes: tiles' caches that wait between windows, held there too unless parked
    elsewhere.
    """

    cores: tuple[Region, ...]
    unit: int
    stride: int
    halo: tuple[int, int, int, int]
    window: int
    work: int
    untiled_work: int
    peak_bytes: int
    parked_bytes: int

    @property
    def work_ratio(self) -> float:
        """Work as a multiple of the untiled work."""
        return self.work / self.untiled_work

    def __str__(self) -> str:
        count = len(self.cores)
        largest = max(self.cores, key=lambda core: core.area)
        size = f"{len(largest.rows) // self.unit}x{len(largest.cols) // self.unit}"
        shape = "whole frames" if count == 1 else f"{count} tiles of up to {size} latent pixels, halo {self.halo}"
        memory = f"peak {self.peak_bytes / 2**30:.2f} GiB"
        if self.parked_bytes:
            memory += f", parked {self.parked_bytes / 2**30:.2f} GiB"
        return f"{shape}, {self.window} latent frames at a time: {self.work_ratio:.2f} times the work, {memory}"


class LaneCost(NamedTuple):
    """A lane's work per latent frame, and the numbers it holds: all caches, at most besides, and in its result."""

    work: int
    kept: int
    live: int
    made: int


def lane_cost(blocks: Sequence, out: Region, frames: int) -> LaneCost:
    """Add up the blocks of one lane for one latent frame, not the first, that enters as `frames` frames."""
    needed, strip_at = regions(blocks, out), last_doubling(blocks)
    work = kept = live = made = saved = waiting = 0
    passes = 1
    for i, block in enumerate(blocks):
        if i == strip_at > 0 and frames > STRIP:
            passes = frames // STRIP
            waiting, frames = made // frames * (frames - STRIP), STRIP
        if isinstance(block, Fork) and not isinstance(block, Join):
            saved = made
            continue
        cost = block.cost(needed[i + 1], frames)
        live = max(live, cost.live + saved + waiting)
        if isinstance(block, Join):
            saved = 0
        work, kept, made, frames = work + cost.work * passes, kept + cost.kept, cost.made, cost.frames
    return LaneCost(work, kept, live, made * passes)


def tile_plan(blocks: Blocks, cores: Sequence[Region], unit: int, stride: int, frames: int, number: int) -> TilePlan:
    """The plan of running `blocks` in these `cores`.

    frames: how many enter the first blocks for each latent frame. number: bytes of one number, times the batch size.
    """
    before, tiled, after = blocks
    frame = Region.whole(cores[0].rows.size, cores[0].cols.size)
    whole_in = regions(tiled, frame)[0]
    first, last = lane_cost(before, whole_in, frames), lane_cost(after, frame, 1)
    tiles = [lane_cost(tiled, core, frames) for core in cores]
    untiled = lane_cost(tiled, frame, frames)
    ends = first.work + last.work
    window = LONG_WINDOW if len(cores) > 1 else 1
    source = 0 if before else 3 * frames * whole_in.area
    held = window * (max(first.made, source) + untiled.made)
    alone = 0 if len(cores) > 1 else first.kept + last.kept
    peak = max(
        window * max(first.made, source) + first.kept + first.live + (untiled.kept + last.kept) * (len(cores) == 1),
        held + alone + max(tile.kept + tile.live for tile in tiles),
        window * untiled.made + last.kept + last.live + (untiled.kept + first.kept) * (len(cores) == 1),
    )
    parked = 0 if len(cores) == 1 else first.kept + last.kept + sum(tile.kept for tile in tiles)
    return TilePlan(
        cores=tuple(cores),
        unit=unit,
        stride=stride,
        halo=_halo(tiled, cores, frame, unit),
        window=window,
        work=ends + sum(tile.work for tile in tiles),
        untiled_work=ends + untiled.work,
        peak_bytes=peak * number,
        parked_bytes=parked * number,
    )


def _halo(tiled: Sequence, cores: Sequence[Region], frame: Region, unit: int) -> tuple[int, int, int, int]:
    """How far the tiles read beyond their cores, at most, in latent pixels."""
    reads, whole = [regions(tiled, core)[0] for core in cores], regions(tiled, frame)[0]
    scale = whole.rows.size / frame.rows.size * unit  # pixels of what the tiles read in one latent pixel
    sides = []
    for axis in ("cols", "rows"):
        pairs = [(getattr(core, axis), getattr(read, axis)) for core, read in zip(cores, reads, strict=True)]
        sides.append(max(core.lo / unit - read.lo / scale for core, read in pairs))
        sides.append(max(read.hi / scale - core.hi / unit for core, read in pairs))
    return tuple(-int(-side // 1) for side in sides)


def divide(size: int, most: int, unit: int) -> list[Span]:
    """Cut `size` into the fewest spans of at most `most`, all nearly equal and multiples of `unit`."""
    units, n = size // unit, -(-size // most)
    return [Span(lo * unit, hi * unit, size) for lo, hi in pairwise(units * i // n for i in range(n + 1))]


def halve(core: Region, unit: int, stride: int) -> tuple[Region, ...]:
    """The two halves of a tile along its longer side, or the tile itself where they would be too small.

    stride: pixels of video in one latent pixel.
    """
    if len(core.rows) >= len(core.cols):
        parts = tuple(Region(rows, core.cols) for rows in core.rows.halves(unit))
    else:
        parts = tuple(Region(core.rows, cols) for cols in core.cols.halves(unit))
    short = min(min(len(part.rows), len(part.cols)) for part in parts)
    return parts if short * stride >= MIN_TILE * unit else (core,)


def cut(height: int, width: int, tile: tuple[int, int] | None, unit: int) -> tuple[Region, ...]:
    """The cores of tiles of at most `tile` latent pixels for a frame of height x width, `unit` to a latent pixel."""
    if tile is None:
        return (Region.whole(height, width),)
    rows, cols = divide(height, tile[0] * unit, unit), divide(width, tile[1] * unit, unit)
    return tuple(Region(r, c) for r in rows for c in cols)


def latent_tile(tile: tuple[int, int] | None, stride: int) -> tuple[int, int] | None:
    """A tile's (height, width) in pixels as latent pixels. Raises ValueError where it is too small."""
    if tile is None:
        return None
    if min(tile) < MIN_TILE:
        raise ValueError(
            f"A tile of {tile[0]}x{tile[1]} pixels is too small, nearly all of it would be its neighbours' "
            f"border: make its sides at least {MIN_TILE}."
        )
    return tile[0] // stride, tile[1] // stride
