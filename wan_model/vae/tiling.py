"""Cutting a frame into tiles, and its cost in work and memory: arithmetic only, nothing is run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, product, zip_longest
from typing import NamedTuple

from .convolution import Chunk
from .rect import Rect, Span
from .runtime import Runtime
from .tile_run import after_last_doubling, block_rects
from .vae22 import Fork, Join

LONG_WINDOW = 21  # latent frames per window of a tiled stream: the models' native clip of 81 frames
MIN_TILE = 32  # pixels per side; smaller tiles are mostly halo

Blocks = tuple[Sequence, Sequence, Sequence]  # on whole frames, in tiles, on whole frames


class RunCost(NamedTuple):
    """The cost of one chunk of a clip through a list of blocks, in multiplications and elements.

    peak: most elements held at once, caches and the chunk itself included. cache: all caches after it. output: its
    result.
    """

    work: int
    peak: int
    cache: int
    output: int


RunCosts = Sequence[RunCost]  # of a clip's first chunks


@dataclass(frozen=True)
class Grid:
    """The tiles of a frame: spans of rows and of columns, in pixels of the output of the tiled blocks.

    unit, stride: the side of one latent pixel, in those pixels and in pixels of video.
    """

    rows: tuple[Span, ...]
    cols: tuple[Span, ...]
    unit: int
    stride: int

    @property
    def frame(self) -> Rect:
        """The whole frame."""
        return Rect.whole(self.rows[0].size, self.cols[0].size)

    @property
    def cores(self) -> tuple[Rect, ...]:
        """The rectangles that partition the frame."""
        return tuple(Rect(rows, cols) for rows, cols in product(self.rows, self.cols))

    def inputs(self, tiled: Sequence) -> tuple[list[Span], list[Span]]:
        """Return the rows and the columns that the tiles read, one span for each of `rows` and `cols`."""
        pairs = zip_longest(self.rows, self.cols)
        reads = [block_rects(tiled, Rect(row or self.rows[0], col or self.cols[0]))[0] for row, col in pairs]
        return [read.rows for read in reads[: len(self.rows)]], [read.cols for read in reads[: len(self.cols)]]


@dataclass(frozen=True)
class TilePlan:
    """How one encode or decode is tiled, and its cost.

    halo: the most latent pixels that a tile reads beyond its core (left, right, above, below). window: latent frames
    that each tile runs through at a time. peak_bytes: the most memory held on a compute device, without weights.
    parked_bytes: tiles' caches that wait between windows, also held there unless parked elsewhere.
    """

    grid: Grid
    halo: tuple[int, int, int, int]
    window: int
    peak_bytes: int
    parked_bytes: int
    blocks: Blocks = field(repr=False, compare=False)
    chunks: tuple[Chunk, ...] = field(repr=False)
    runtime: Runtime = field(repr=False)

    @property
    def cores(self) -> tuple[Rect, ...]:
        """The rectangles that partition the frame."""
        return self.grid.cores

    @cached_property
    def work(self) -> int:
        """Multiplications per latent frame."""
        return self._work(self.cores)

    @cached_property
    def untiled_work(self) -> int:
        """Multiplications per latent frame for whole frames."""
        return self._work((self.grid.frame,))

    @property
    def work_ratio(self) -> float:
        """Work as a multiple of the untiled work."""
        return self.work / self.untiled_work

    def _work(self, cores: Sequence[Rect]) -> int:
        """Return the multiplications of the clip's last chunk."""
        before, tiled, after = self.blocks
        frame, last = self.grid.frame, self.chunks[-1:]
        whole = [(before, block_rects(tiled, frame)[0], last), (after, frame, (last[0]._replace(frames=1),))]
        runs = [*whole, *((tiled, core, last) for core in cores)]
        return sum(run_costs(*run, self.runtime)[0].work for run in runs)

    def __str__(self) -> str:
        rows, cols = (max(map(len, spans)) // self.grid.unit for spans in (self.grid.rows, self.grid.cols))
        count = len(self.cores)
        tiles = f"{count} tiles of up to {rows}x{cols} latent pixels, halo {self.halo}"
        shape = "whole frames" if count == 1 else tiles
        memory = f"peak {self.peak_bytes / 2**30:.2f} GiB"
        if self.parked_bytes:
            memory += f", parked {self.parked_bytes / 2**30:.2f} GiB"
        return f"{shape}, {self.window} latent frames at a time: {self.work_ratio:.2f} times the work, {memory}"


def clip_chunks(frames: int, length: int | None) -> tuple[Chunk, ...]:
    """Return the chunks of a clip of `length` latent frames that differ in cost: the first two and the last.

    frames: in each chunk but the first. length: None if it is not known; it is assumed to be long.
    """
    count = 4 if length is None else min(max(length, 1), 4)
    return tuple(Chunk(frames if k else 1, first=k == 0, last=k == count - 1) for k in range(count))


def run_costs(blocks: Sequence, out: Rect, chunks: Sequence[Chunk], runtime: Runtime) -> RunCosts:
    """Return the cost of each of `chunks`, the first ones of a clip, through `blocks`."""
    costs, caches = [], [0] * len(blocks)
    rects = block_rects(blocks, out)
    for chunk in chunks:
        cost, caches = _run_cost(blocks, rects, chunk, caches, runtime)
        costs.append(cost)
    return costs


def _run_cost(
    blocks: Sequence, rects: Sequence[Rect], chunk: Chunk, caches: Sequence[int], runtime: Runtime
) -> tuple[RunCost, list[int]]:
    """Add up the blocks of one run, whose caches hold `caches` elements before; also return what they hold after it."""
    split_at = after_last_doubling(blocks)
    work = peak = output = saved = waiting = 0
    held, after, passes = sum(caches), [], 1
    for i, block in enumerate(blocks):
        if i == split_at > 0 and chunk.frames > runtime.subchunk:
            passes = chunk.frames // runtime.subchunk
            waiting = output // chunk.frames * (chunk.frames - runtime.subchunk)
            chunk = chunk._replace(frames=runtime.subchunk, last=False)  # another subchunk follows
        if isinstance(block, Fork):
            saved, cache = output, 0
        else:
            cost = block.cost(rects[i + 1], chunk, runtime)
            peak = max(peak, held + cost.peak + saved + waiting)
            if isinstance(block, Join):
                saved = 0
            work += cost.work * passes
            cache, output, chunk = cost.cache, cost.output, chunk._replace(frames=cost.frames)
        held += cache - caches[i]
        after.append(cache)
    return RunCost(work, peak, sum(after), output * passes), after


def tile_plan(
    blocks: Blocks, grid: Grid, channels: int, frames: int, length: int | None, itemsize: int, runtime: Runtime
) -> TilePlan:
    """Return the plan of running `blocks` on the tiles of `grid`.

    channels: of what the first blocks read if there are none before the tiles. frames: how many enter the first blocks
    for each latent frame but the first. length: latent frames of the clip, or None if it is not known. itemsize: bytes
    of one number, times the batch size.
    """
    before, tiled, after = blocks
    frame, inputs = grid.frame, grid.inputs(tiled)
    whole_in, count = block_rects(tiled, frame)[0], len(grid.cores)
    chunks = clip_chunks(frames, length)
    first, last = run_costs(before, whole_in, chunks, runtime), run_costs(after, frame, clip_chunks(1, length), runtime)
    largest = _largest(grid, inputs)
    tile = run_costs(tiled, largest, chunks, runtime)
    output = [cost.output // largest.area * frame.area for cost in tile]  # of a whole frame
    each = -(-count // runtime.share.size)  # tiles of one device
    window = 1 if each == 1 else min(LONG_WINDOW, length or LONG_WINDOW)
    on = length is None or length > window  # another window follows
    sources = [channels * chunk.frames * whole_in.area for chunk in chunks]
    middle = _in_window([cost.output for cost in first] if before else sources, window, on)
    peak = (_peak if each > 1 else _peak_alone)(first, tile, last, middle, _in_window(output, window, on))
    parked = first[-2].cache + last[-2].cache + each * tile[-2].cache if each > 1 and on else 0
    return TilePlan(
        grid, _halo(grid, inputs, whole_in), window, peak * itemsize, parked * itemsize, blocks, chunks, runtime
    )


def _largest(grid: Grid, inputs: tuple[list[Span], list[Span]]) -> Rect:
    """Return the core of the tile that reads the most."""
    pairs = zip((grid.rows, grid.cols), inputs, strict=True)
    return Rect(*(max(zip(spans, read, strict=True), key=lambda pair: len(pair[1]))[0] for spans, read in pairs))


def _in_window(output: Sequence[int], window: int, on: bool) -> int:
    """Return the elements of `window` results, the smaller first one included if no other window follows."""
    return (window - 1) * output[-1] + output[-1 if on else 0]


def _peak(first: RunCosts, tile: RunCosts, last: RunCosts, middle: int, output: int) -> int:
    """Return the most elements held if several tiles take turns; only one has its caches on the device."""
    most = [max(cost.peak for cost in costs) for costs in (first, tile, last)]
    return max(middle + most[0], middle + output + most[1], output + most[2])


def _peak_alone(first: RunCosts, tile: RunCosts, last: RunCosts, middle: int, output: int) -> int:
    """Return the most elements held if whole frames run one by one, with all caches on the device."""
    none = RunCost(0, 0, 0, 0)
    output = output if len(tile) > 1 else 0  # a single first chunk is not buffered
    moments = []
    for k, (a, b, c) in enumerate(zip(first, tile, last, strict=True)):
        b_before, c_before = (tile[k - 1], last[k - 1]) if k else (none, none)
        moments += [
            a.peak + b_before.cache + c_before.cache,
            middle + output + a.cache + b.peak + c_before.cache,
            output + a.cache + b.cache + c.peak,
        ]
    return max(moments)


def _halo(grid: Grid, inputs: tuple[list[Span], list[Span]], whole_in: Rect) -> tuple[int, int, int, int]:
    """Return the largest halo of the tiles in latent pixels."""
    scale = whole_in.rows.size / grid.frame.rows.size * grid.unit  # input pixels in one latent pixel
    sides = []
    for cores, reads in ((grid.cols, inputs[1]), (grid.rows, inputs[0])):
        pairs = list(zip(cores, reads, strict=True))
        sides.append(max(core.lo / grid.unit - read.lo / scale for core, read in pairs))
        sides.append(max(read.hi / scale - core.hi / grid.unit for core, read in pairs))
    left, right, above, below = (-int(-side // 1) for side in sides)
    return left, right, above, below


def tile_grid(height: int, width: int, tile: tuple[int, int] | None, unit: int, stride: int) -> Grid:
    """Cut a frame of height x width latent pixels into tiles of at most `tile` (height, width) pixels of video.

    tile: None for whole frames. unit, stride: as in `Grid`. Raise ValueError if the tile is too small.
    """
    if tile is not None and min(tile) < MIN_TILE:
        raise ValueError(
            f"A tile of {tile[0]}x{tile[1]} pixels is too small, nearly all of it would be its neighbours' "
            f"border: make its sides at least {MIN_TILE}."
        )
    most = (height, width) if tile is None else (tile[0] // stride, tile[1] // stride)
    rows, cols = (divide(size, side, unit) for size, side in zip((height, width), most, strict=True))
    return Grid(rows, cols, unit, stride)


def divide(size: int, most: int, unit: int) -> tuple[Span, ...]:
    """Cut `size` latent pixels into the fewest spans of at most `most`, nearly equal; `unit` pixels to a latent one."""
    n = -(-size // most)
    return tuple(Span(lo * unit, hi * unit, size * unit) for lo, hi in pairwise(size * i // n for i in range(n + 1)))


def halve(core: Rect, unit: int, stride: int) -> tuple[Rect, ...]:
    """Cut a tile in half along its longer side; return the tile itself if the halves would be too small.

    unit, stride: as in `Grid`.
    """
    if len(core.rows) >= len(core.cols):
        parts = tuple(Rect(rows, core.cols) for rows in core.rows.halves(unit))
    else:
        parts = tuple(Rect(core.rows, cols) for cols in core.cols.halves(unit))
    short = min(min(len(part.rows), len(part.cols)) for part in parts)
    return parts if short * stride >= MIN_TILE * unit else (core,)
