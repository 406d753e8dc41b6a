"""A list of blocks run on one rectangle of the frame, one chunk of time after another, stoppable after every block."""

from collections.abc import Sequence

import torch

from .causal import Cache, Upsample
from .region import Region
from .vae22 import Fork, Join

STRIP = 2  # frames that pass the blocks after the last doubling of time together: fewer frames, less memory


def regions(blocks: Sequence, out: Region) -> list[Region]:
    """What enters each block, and last what leaves them, when the end result is wanted on `out` and nothing more."""
    needed = [out]
    for block in reversed(blocks):
        needed.append(block.reads(needed[-1]))
    return needed[::-1]


def last_doubling(blocks: Sequence) -> int:
    """The index after which no block changes the number of frames, or 0 where none doubles it."""
    doubling = [i for i, block in enumerate(blocks) if isinstance(block, Upsample) and block.time_conv is not None]
    if not doubling:
        return 0
    at = doubling[-1] + 1
    return at + int(isinstance(blocks[at], Join))


class Lane:
    """One rectangle's way through `blocks`: its caches, and the chunk that is under way.

    An exception inside a block leaves the lane at that block's start, so `run` can be called again; `cut` can move
    the unfinished work to smaller rectangles.
    """

    def __init__(self, blocks: Sequence, out: Region):
        self.blocks = blocks
        self.regions = regions(blocks, out)
        self.caches: list[Cache] = [None] * len(blocks)
        self.strip_at = last_doubling(blocks)
        self.done = 0  # chunks finished in the current window
        self._drop()

    @property
    def reads(self) -> Region:
        """What `start` takes."""
        return self.regions[0]

    @property
    def out(self) -> Region:
        """What the lane makes."""
        return self.regions[-1]

    @property
    def busy(self) -> bool:
        """Whether a chunk is under way."""
        return self._x is not None

    def _drop(self) -> None:
        self._at, self._x, self._skip, self._last = 0, None, None, False
        self._strips: tuple[torch.Tensor, ...] = ()  # of this chunk, still to pass the blocks from `strip_at` on
        self.ahead = 0  # frames of this chunk that were handed over

    def start(self, x: torch.Tensor, last: bool) -> None:
        """Take the next chunk: x (B, C, T, H, W) on `reads`. After the `last` one no caches are left."""
        self._x, self._last = x, last

    def run(self) -> torch.Tensor:
        """Bring the chunk, or the next strip of it, to the end of the blocks: (B, C, t, H, W) on `out`.

        `advance` then lets go of it.
        """
        while self._at < len(self.blocks):
            if self._at == self.strip_at > 0 and self._x.shape[2] > STRIP:
                self._x, *strips = self._x.split(STRIP, dim=2)
                self._strips = tuple(strips)
            block, out = self.blocks[self._at], self.regions[self._at + 1]
            x, skip, cache = self._x, self._skip, self.caches[self._at]
            if isinstance(block, Join):
                at, shortcut = skip[0], block.shortcut
                saved = self.regions[at].crop(skip[1], shortcut.reads(out))
                x = shortcut(saved, x, out, first=cache is None)
                skip, cache = None, ()
            elif isinstance(block, Fork):
                skip, cache = (self._at, x), ()
            else:
                x, cache = block.step(x, cache, out, keep=not self._last or bool(self._strips))
            self._x, self._skip, self.caches[self._at] = x, skip, cache
            self._at += 1
        return self._x

    @property
    def left(self) -> int:
        """Frames of this chunk still to be handed over after the ones that `run` gave."""
        return sum(strip.shape[2] for strip in self._strips)

    def advance(self) -> None:
        """Go on to the chunk's next strip, or count it as done."""
        if self._strips:
            self.ahead += self._x.shape[2]
            self._x, *strips = self._strips
            self._at, self._strips = self.strip_at, tuple(strips)
        else:
            self._drop()
            self.done += 1

    def cut(self, outs: Sequence[Region]) -> list["Lane"]:
        """The same work at the same point, on parts of this lane's rectangle."""
        return [self._part(out) for out in outs]

    def _part(self, out: Region) -> "Lane":
        part = Lane(self.blocks, out)
        part.done, part.ahead, part._at, part._last = self.done, self.ahead, self._at, self._last
        for i, block in enumerate(self.blocks):
            if self.caches[i] is not None:
                held = zip(
                    self.caches[i], block.holds(self.regions[i + 1]), block.holds(part.regions[i + 1]), strict=True
                )
                part.caches[i] = tuple(whole.crop(x, inner).clone() for x, whole, inner in held)
        if self.busy:
            part._x = self.regions[self._at].crop(self._x, part.regions[self._at])
            strips = (self.regions[self.strip_at].crop(x, part.regions[self.strip_at]) for x in self._strips)
            part._strips = tuple(strips)
            if self._skip is not None:
                at, x = self._skip
                part._skip = at, self.regions[at].crop(x, part.regions[at])
        return part

    def move_caches(self, device: torch.device) -> None:
        """Park the caches on `device`, or bring them back."""
        for i, cache in enumerate(self.caches):
            if cache:
                self.caches[i] = tuple(x.to(device) for x in cache)
