"""Tiles of a VAE that several devices share: each runs its own, and the first has the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..vae.rect import Rect
from ..vae.runtime import Whole
from .group import Group
from .layout import part


def go_on() -> None:
    """Agree to everything."""


@dataclass(frozen=True)
class Deal(Whole):
    """Tiles that are dealt to the processes of `group`, each of which runs the same stream.

    Process 0 gets the frames, the others return none. What comes before the tiles each process computes for itself: it
    is 1 to 4 percent of the work, and its input is much smaller than its output. Nothing depends on who ran a tile, so
    the frames are those of one process with the same tiles, bit for bit.

    check: called before each exchange, by all; it raises where one of them gives up.
    """

    group: Group
    check: Callable[[], None] = go_on

    @property
    def size(self) -> int:
        """As `Whole.size`."""
        return self.group.size

    def own(self, tiles: Sequence) -> list:
        """As `Whole.own`. Raise ValueError for fewer tiles than processes."""
        if len(tiles) < self.size:
            raise ValueError(f"{len(tiles)} tiles cannot be dealt to {self.size} processes: choose smaller tiles.")
        return self._of(tiles, self.group.rank)

    def gather(self, output: list[Tensor], cores: Sequence[Rect], frame: Rect) -> list[Tensor]:
        """As `Whole.gather`."""
        self.check()
        for frames in output:
            self._send(frames, cores, frame)
        return [] if self.group.rank else output

    def _send(self, frames: Tensor, cores: Sequence[Rect], frame: Rect) -> None:
        """Write all other processes' tiles into the `frames` of process 0."""
        pieces = [[frame.crop(frames, core) for core in self._of(cores, rank)] for rank in range(self.size)]
        empty = [frames.new_empty(0)] * self.size
        if self.group.rank:
            own = torch.cat([piece.reshape(-1) for piece in pieces[self.group.rank]])
            self.group.all_to_all([own, *empty[1:]], [(0,)] * self.size)
            return
        sizes = [[piece.numel() for piece in of_one] for of_one in pieces]
        received = self.group.all_to_all(empty, [(0,), *((sum(counts),) for counts in sizes[1:])])
        for rank in range(1, self.size):
            for piece, values in zip(pieces[rank], received[rank].split(sizes[rank]), strict=True):
                piece.copy_(values.view(piece.shape))

    def _of(self, tiles: Sequence, rank: int) -> list:
        start, stop = part(len(tiles), rank, self.size)
        return list(tiles[start:stop])
