"""How a frame is cut into tiles, and what that costs in work and memory: arithmetic only, nothing is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .causal import Chunk
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
    """What one chunk of a clip takes on its way through a lane, in multiplications and in numbers held.

    live: held at the worst moment, caches and the chunk itself included. kept: all caches after it. made: its result.
    """

    work: int
    live: int
    kept: int
    made: int


Costs = Sequence[LaneCost]  # of a clip's first chunks


def clip(frames: int, length: int | None) -> list[Chunk]:
    """The chunks of a clip of `length` latent frames that differ in cost: from the third on, only the last does.

    frames: in each chunk but the first. length: None where it is not known, and taken to be long.
    """
    count = 4 if length is None else min(max(length, 1), 4)
    return [Chunk(frames if k else 1, first=k == 0, last=k == count - 1) for k in range(count)]


def lane_costs(blocks: Sequence, out: Region, chunks: Sequence[Chunk]) -> Costs:
    """What each of `chunks`, the first of a clip, takes on its way through a lane."""
    costs, caches = [], [0] * len(blocks)
    for chunk in chunks:
        cost, caches = _lane_cost(blocks, out, chunk, caches)
        costs.append(cost)
    return costs


def _lane_cost(blocks: Sequence, out: Region, chunk: Chunk, caches: Sequence[int]) -> tuple[LaneCost, list[int]]:
    """Add up the blocks of one lane, whose caches hold `caches` numbers before; also what they hold after it."""
    needed, strip_at = regions(blocks, out), last_doubling(blocks)
    work = live = made = saved = waiting = 0
    held, after, passes = sum(caches), [], 1
    for i, block in enumerate(blocks):
        if i == strip_at > 0 and chunk.frames > STRIP:
            passes = chunk.frames // STRIP
            waiting = made // chunk.frames * (chunk.frames - STRIP)
            chunk = chunk._replace(frames=STRIP, last=False)  # another strip follows
        if isinstance(block, Fork) and not isinstance(block, Join):
            saved, kept = made, 0
        else:
            cost = block.cost(needed[i + 1], chunk)
            live = max(live, held + cost.live + saved + waiting)
            if isinstance(block, Join):
                saved = 0
            work += cost.work * passes
            kept, made, chunk = cost.kept, cost.made, chunk._replace(frames=cost.frames)
        held += kept - caches[i]
        after.append(kept)
    return LaneCost(work, live, sum(after), made * passes), after


def tile_plan(
    blocks: Blocks,
    cores: Sequence[Region],
    unit: int,
    stride: int,
    frames: int,
    length: int | None,
    number: int,
) -> TilePlan:
    """The plan of running `blocks` in these `cores`.

    frames: how many enter the first blocks for each latent frame but the first. length: latent frames of the clip, or
    None where it is not known. number: bytes of one number, times the batch size.
    """
    before, tiled, after = blocks
    frame = Region.whole(cores[0].rows.size, cores[0].cols.size)
    whole_in = regions(tiled, frame)[0]
    chunks, largest = clip(frames, length), max(cores, key=lambda core: regions(tiled, core)[0].area)
    first, last = lane_costs(before, whole_in, chunks), lane_costs(after, frame, clip(1, length))
    tile, untiled = lane_costs(tiled, largest, chunks), lane_costs(tiled, frame, chunks)
    window = 1 if len(cores) == 1 else min(LONG_WINDOW, length or LONG_WINDOW)
    on = length is None or length > window  # another window follows
    sources = [3 * chunk.frames * whole_in.area for chunk in chunks]
    middle = _in_window([cost.made for cost in first] if before else sources, window, on)
    output = _in_window([cost.made for cost in untiled], window, on)
    tiles_work = sum(lane_costs(tiled, core, chunks[-1:])[0].work for core in cores)
    ends = first[-1].work + last[-1].work
    peak = (_peak if len(cores) > 1 else _peak_alone)(first, tile, last, middle, output)
    parked = first[-2].kept + last[-2].kept + len(cores) * tile[-2].kept if len(cores) > 1 and on else 0
    return TilePlan(
        cores=tuple(cores),
        unit=unit,
        stride=stride,
        halo=_halo(tiled, cores, frame, unit),
        window=window,
        work=ends + tiles_work,
        untiled_work=ends + untiled[-1].work,
        peak_bytes=peak * number,
        parked_bytes=parked * number,
    )


def _in_window(made: Sequence[int], window: int, on: bool) -> int:
    """Numbers in `window` results of a lane; the first, which is smaller, counts where no window goes `on` after it."""
    return (window - 1) * made[-1] + made[-1 if on else 0]


def _peak(first: Costs, tile: Costs, last: Costs, middle: int, output: int) -> int:
    """The most numbers held where the lanes of several tiles take turns: only one lane has its caches there."""
    most = [max(cost.live for cost in costs) for costs in (first, tile, last)]
    return max(middle + most[0], middle + output + most[1], output + most[2])


def _peak_alone(first: Costs, tile: Costs, last: Costs, middle: int, output: int) -> int:
    """The most numbers held where whole frames go one by one, with the caches of all lanes there."""
    none = LaneCost(0, 0, 0, 0)
    output = output if len(tile) > 1 else 0  # a first frame is put nowhere before it is whole
    moments = []
    for k, (a, b, c) in enumerate(zip(first, tile, last, strict=True)):
        b_before, c_before = (tile[k - 1], last[k - 1]) if k else (none, none)
        moments += [
            a.live + b_before.kept + c_before.kept,
            middle + output + a.kept + b.live + c_before.kept,
            output + a.kept + b.kept + c.live,
        ]
    return max(moments)


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
