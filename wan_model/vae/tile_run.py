"""A list of blocks run on one rectangle of the frame, chunk by chunk in time, interruptible after every block."""

from collections.abc import Sequence

import torch

from .convolution import Cache
from .rect import Rect
from .resampling import Upsample
from .runtime import Runtime
from .vae22 import Fork, Join


def block_rects(blocks: Sequence, out: Rect) -> list[Rect]:
    """Return the input rectangle of each block, and last that of the output, for the result on `out`."""
    rects = [out]
    for block in reversed(blocks):
        rects.append(block.input_rect(rects[-1]))
    return rects[::-1]


def after_last_doubling(blocks: Sequence) -> int:
    """Return the index from which no block changes the number of frames, or 0 if none doubles it."""
    doubling = [i for i, block in enumerate(blocks) if isinstance(block, Upsample) and block.time_conv is not None]
    if not doubling:
        return 0
    after = doubling[-1] + 1
    return after + int(isinstance(blocks[after], Join))


class TileRun:
    """The run of `blocks` on one rectangle: its caches, and the chunk in progress.

    caches: of a run on the same rectangle that this one continues; None for a clip's beginning. After an exception
    inside a block, `run` can be called again and resumes at that block; `cut` moves the unfinished work to smaller
    rectangles.
    """

    def __init__(self, blocks: Sequence, out: Rect, runtime: Runtime, caches: Sequence[Cache] | None = None):
        self.blocks, self.runtime = blocks, runtime
        self.rects = block_rects(blocks, out)
        self.caches: list[Cache] = [None] * len(blocks) if caches is None else list(caches)
        self.split_at = after_last_doubling(blocks)
        self.finished = 0  # chunks of the current window
        self._reset()

    @property
    def input_rect(self) -> Rect:
        """The rectangle that `start` takes."""
        return self.rects[0]

    @property
    def output_rect(self) -> Rect:
        """The rectangle of the result."""
        return self.rects[-1]

    @property
    def busy(self) -> bool:
        """Whether a chunk is in progress."""
        return self._x is not None

    def _reset(self) -> None:
        self._at, self._last = 0, False
        self._x: torch.Tensor | None = None
        self._skip: tuple[int, torch.Tensor] | None = None  # index and input of the open `Fork`
        self._subchunks: tuple[torch.Tensor, ...] = ()  # of this chunk, waiting before the block `split_at`
        self.emitted = 0  # frames of this chunk that are finished

    def start(self, x: torch.Tensor, last: bool) -> None:
        """Take the next chunk, x (B, C, T, H, W) on `input_rect`. After the `last` one no caches are left."""
        self._x, self._last = x, last

    def run(self) -> torch.Tensor:
        """Run the chunk, or its next subchunk, through the blocks; return (B, C, t, H, W) on `output_rect`.

        `advance` then releases it.
        """
        if self._x is None:
            raise RuntimeError("No chunk has been started.")
        while self._at < len(self.blocks):
            if self._at == self.split_at > 0 and self._x.shape[2] > self.runtime.subchunk:
                self._x, *subchunks = self._x.split(self.runtime.subchunk, dim=2)
                self._subchunks = tuple(subchunks)
            block, out = self.blocks[self._at], self.rects[self._at + 1]
            x, skip, cache = self._x, self._skip, self.caches[self._at]
            if isinstance(block, Join) and skip is not None:
                at, shortcut = skip[0], block.shortcut
                saved = self.rects[at].crop(skip[1], shortcut.input_rect(out))
                x = shortcut(saved, x, out, first=cache is None)
                skip, cache = None, ()
            elif isinstance(block, Fork):
                skip, cache = (self._at, x), ()
            else:
                keep = not self._last or bool(self._subchunks)
                x, cache = block.step(x, cache, out, keep, self.runtime)
            self._x, self._skip, self.caches[self._at] = x, skip, cache
            self._at += 1
        return self._x

    @property
    def remaining(self) -> int:
        """Frames of this chunk that follow those of the last `run`."""
        return sum(subchunk.shape[2] for subchunk in self._subchunks)

    def advance(self) -> None:
        """Continue with the next subchunk, or count the chunk as finished."""
        if self._x is not None and self._subchunks:
            self.emitted += self._x.shape[2]
            self._x, *subchunks = self._subchunks
            self._at, self._subchunks = self.split_at, tuple(subchunks)
        else:
            self._reset()
            self.finished += 1

    def cut(self, outs: Sequence[Rect]) -> list["TileRun"]:
        """Return runs that continue from here on the rectangles `outs` inside this one's."""
        return [self._cut_to(out) for out in outs]

    def _cut_to(self, out: Rect) -> "TileRun":
        part = TileRun(self.blocks, out, self.runtime)
        part.finished, part.emitted, part._at, part._last = self.finished, self.emitted, self._at, self._last
        for i, (block, cache) in enumerate(zip(self.blocks, self.caches, strict=True)):
            if cache is not None:
                rects = (block.cache_rects(run.rects[i + 1]) for run in (self, part))
                cached = zip(cache, *rects, strict=True)
                part.caches[i] = tuple(x.clone() for x in (whole.crop(x, inner) for x, whole, inner in cached))
        if self._x is not None:
            part._x = self.rects[self._at].crop(self._x, part.rects[self._at])
            part._subchunks = tuple(
                self.rects[self.split_at].crop(x, part.rects[self.split_at]) for x in self._subchunks
            )
            if self._skip is not None:
                at, x = self._skip
                part._skip = at, self.rects[at].crop(x, part.rects[at])
        return part

    def move_caches(self, device: torch.device | str) -> None:
        """Move the caches to `device`."""
        for i, cache in enumerate(self.caches):
            if cache:
                self.caches[i] = tuple(x.to(device) for x in cache)
