"""Encoding and decoding in order of time and in constant memory: whole-frame layers, then tiles, or the reverse.

A window is a few latent frames. Within it the blocks of `before` run on whole frames, then each tile runs through all
the window's frames while its caches are on the device, then the blocks of `after` run on whole frames. Between windows
the tiles' caches wait on the `park` device. Only the layers' causal caches pass from one window to the next, so the
memory does not depend on how long the video is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import torch

from ..transfer import send
from .past import Past
from .tile_run import TileRun, block_rects
from .tiling import LONG_WINDOW, TilePlan, halve

OnStep = Callable[[float, int | None], None]


class Stream:
    """Iterator over finished chunks of time.

    After an exception from a layer (out of memory), from moving a chunk to the device or from `on_step` (cancelled),
    the next `next()` continues from the block that failed; `split()` before it makes every tile smaller. No finished
    work is lost or repeated.

    sources: chunks of time for the first blocks, moved to `device` and `dtype` (default: their own) when they are
    run. park: device for the caches of waiting tiles (default: where they are). look_ahead: whether to fetch the next
    chunk before one is run, so that the last leaves no caches. on_step(done, total) is called after each latent frame
    of each tile, in latent frames; total is None while the length is not known. past: of the stream that this one goes
    on from. Its tiles stay, but whole frames are cut into those of the plan. clip: what the two have in common.

    Several devices share the tiles if `plan.runtime.share` says so. Each runs a stream of the same sources and plan,
    and one of them has the chunks. They agree on the work of a window before they exchange it, so one that splits its
    tiles does so alone.
    """

    def __init__(
        self,
        sources: Iterator[torch.Tensor],
        plan: TilePlan,
        *,
        device: torch.device,
        dtype: torch.dtype | None = None,
        park: torch.device | str | None = None,
        total: int | None = None,
        look_ahead: bool = True,
        on_step: OnStep | None = None,
        past: Past | None = None,
        clip: tuple = (),
    ):
        before, tiled, after = plan.blocks
        self.grid = plan.grid
        self.device, self.dtype, self.park = device, dtype, park or device
        self.total, self.on_step, self.look_ahead, self.clip = total, on_step, look_ahead, clip
        self._sources = sources
        self._upcoming: deque[torch.Tensor] = deque()
        frame = plan.grid.frame
        begin, end = (None, None) if past is None else past.whole
        self._before = TileRun(before, block_rects(tiled, frame)[0], plan.runtime, begin)
        self._after = TileRun(after, frame, plan.runtime, end)
        self._share, self._cores = plan.runtime.share, plan.cores
        self._tiles = self._share.own(tile_runs(plan, past))
        self._area = sum(tile.output_rect.area for tile in self._tiles)
        self.window = LONG_WINDOW if past is not None and len(self._tiles) > 1 else plan.window
        self._filled, self._exhausted = False, False
        self._middle: list[torch.Tensor] = []  # inputs of the tiles in this window
        self._output: list[torch.Tensor] = []  # their outputs
        self._ready: deque[torch.Tensor] = deque()
        self._done = 0.0

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        while not self._ready:
            if not self._filled:
                self._fill()
            if not self._middle:
                raise StopIteration
            for tile in self._tiles:
                self._run_tile(tile)
            self._finish_window()
        return self._ready.popleft()

    def past(self, park: torch.device | str | None = None) -> Past:
        """Return the caches after the last chunk, for a stream that goes on with the clip. park: device for them.

        Raise RuntimeError if a chunk is not finished, or if the end was known in advance (`look_ahead`), which leaves
        no caches.
        """
        if self._ready or self._middle or self._before.busy or self._exhausted:
            raise RuntimeError("No caches to go on from: take all chunks of a stream that was made without look_ahead.")
        for run in (self._before, *self._tiles, self._after):
            run.move_caches(park or self.park)
        tiles = tuple((tile.output_rect, tuple(tile.caches)) for tile in self._tiles)
        return Past(self.clip, (tuple(self._before.caches), tuple(self._after.caches)), tiles)

    def split(self, park: torch.device | str | None = None) -> None:
        """Halve every tile along its longer side, at its current progress.

        park: device for caches from now on; they are cut there, without memory of another device. Raise
        ValueError if no tile can be halved.
        """
        unit, stride = self.grid.unit, self.grid.stride
        halves = [halve(tile.output_rect, unit, stride) for tile in self._tiles]
        if all(len(parts) == 1 for parts in halves):
            core, scale = self._tiles[0].output_rect, stride // unit
            raise ValueError(
                f"The tiles are {len(core.rows) * scale}x{len(core.cols) * scale} pixels and cannot be made smaller: "
                "free some memory, or use a smaller frame."
            )
        self.park = park or self.park
        for run in (self._before, *self._tiles, self._after):
            run.move_caches(self.park)
        tiles: list[TileRun] = []
        for tile, parts in zip(self._tiles, halves, strict=True):
            tiles += [tile] if len(parts) == 1 else tile.cut(parts)
        self._tiles = tiles
        if self._share.size == 1:  # several devices exchange a window at a time, the same one
            self.window = max(self.window, LONG_WINDOW)

    def _fill(self) -> None:
        """Run the first blocks on the frames of the next window."""
        self._before.move_caches(self.device)
        while len(self._middle) < self.window:
            if not self._before.busy and not self._take():
                break
            self._middle.append(self._before.run())
            self._before.advance()
        self._park(self._before)
        self._filled = bool(self._middle)

    def _take(self) -> bool:
        """Start the first blocks on the next source chunk, if there is one."""
        while len(self._upcoming) < 1 + self.look_ahead and (chunk := next(self._sources, None)) is not None:
            self._upcoming.append(chunk)
        if not self._upcoming:
            return False
        chunk = send(self._upcoming[0], self.device).to(dtype=self.dtype)
        self._upcoming.popleft()
        self._exhausted = self.look_ahead and not self._upcoming
        self._before.start(chunk, self._exhausted)
        return True

    def _park(self, run: TileRun) -> None:
        """Park the caches of a run that has finished its part of the window."""
        if run is self._before or len(self._tiles) > 1:
            run.move_caches(self.park)

    def _run_tile(self, tile: TileRun) -> None:
        if tile.finished == len(self._middle):
            return
        tile.move_caches(self.device)
        while tile.finished < len(self._middle):
            k = tile.finished
            if not tile.busy:
                x = self._before.output_rect.crop(self._middle[k], tile.input_rect)
                tile.start(x.to(self.device), self._exhausted and k == len(self._middle) - 1)
            self._put(k, tile, tile.run())
            tile.advance()
            if tile.busy:
                continue
            if tile is self._tiles[-1]:
                self._middle[k] = self._middle[k].new_empty(0)  # no tile needs it any more
            self._done += tile.output_rect.area / self._area
            if self.on_step is not None:
                self.on_step(self._done, self.total)
        self._park(tile)

    def _put(self, k: int, tile: TileRun, y: torch.Tensor) -> None:
        """Write a tile's result into the window's k-th output."""
        if k == len(self._output):
            b, c, t = y.shape[:3]
            frame = self.grid.frame
            shape = (b, c, t + tile.remaining, frame.rows.size, frame.cols.size)
            self._output.append(torch.empty(shape, dtype=y.dtype, device=self.device))
        frames = self._output[k][:, :, tile.emitted : tile.emitted + y.shape[2]]
        self.grid.frame.crop(frames, tile.output_rect).copy_(y)

    def _finish_window(self) -> None:
        """Run the last blocks on the window's frames and clear it."""
        self._output = self._share.gather(self._output, self._cores, self.grid.frame)
        self._after.move_caches(self.device)
        while self._after.finished < len(self._output):
            if not self._after.busy:
                k = self._after.finished
                self._after.start(self._output[k], self._exhausted and k == len(self._output) - 1)
            y = self._after.run()
            self._after.advance()
            self._ready.append(y)
        for run in (self._before, *self._tiles, self._after):
            run.finished = 0
        self._middle, self._output, self._filled = [], [], False


def tile_runs(plan: TilePlan, past: Past | None) -> list[TileRun]:
    """Return the runs of the tiles: those of `plan`, or those of `past`, with whole frames cut into the plan's."""
    blocks = plan.blocks[1]
    if past is None:
        return [TileRun(blocks, core, plan.runtime) for core in plan.cores]
    tiles = [TileRun(blocks, core, plan.runtime, caches) for core, caches in past.tiles]
    return tiles[0].cut(plan.cores) if len(tiles) == 1 < len(plan.cores) else tiles


class Regroup:
    """Iterator that turns pieces of video (B, C, t, H, W) of any lengths into chunks of 1, 4, 4 ... frames."""

    def __init__(self, pieces: Iterable[torch.Tensor]):
        self._pieces, self._seen = iter(pieces), 0
        self._held: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        want = 4 if self._seen else 1
        while self._count() < want:
            piece = next(self._pieces, None)
            if piece is None:
                self._end()
            self._held.append(piece)
        whole = self._held[0] if len(self._held) == 1 else torch.cat(self._held, dim=2)
        rest = whole[:, :, want:]
        self._held = [rest] if rest.shape[2] else []
        self._seen += want
        return whole[:, :, :want]

    def _count(self) -> int:
        """Frames waiting for the next chunk."""
        return sum(piece.shape[2] for piece in self._held)

    def _end(self) -> NoReturn:
        left = self._count()
        if left or not self._seen:
            total = self._seen + left
            fitting = -(-(total - 1) // 4) * 4 + 1
            raise ValueError(
                f"The video has {total} frames, and the VAE encodes 4n + 1 of them (1, 5, 9, ...): extend it to "
                f"{fitting} or leave some out."
            )
        raise StopIteration
