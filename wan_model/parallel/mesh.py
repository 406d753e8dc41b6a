"""Two dimensions of devices: rows share the samples of a batch, the devices of a row share the tokens of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dit.runtime import Runtime
from .group import Group
from .share import spread


def rows_of(batch: int, size: int) -> int:
    """Return in how many rows `size` devices best stand for a `batch`: samples need nothing from each other."""
    return math.gcd(batch, size)


@dataclass(frozen=True)
class Mesh:
    """The place of this process. world: all processes. row: those of its row, whose numbers in the world follow."""

    world: Group
    row: Group

    @property
    def rows(self) -> int:
        """Number of rows, all of the same length."""
        return self.world.size // self.row.size

    def forward(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        runtime: Runtime | None = None,
        **conditions: object,
    ) -> Tensor:
        """Return what `model`, a `WanDiT`, makes of the arguments; every process calls it with the same ones.

        x: (B, C, F, H, W), where B divides by the number of rows, and each frame has a token for every device of a row.
        """
        runtime = spread(runtime or Runtime(), self.row)
        if self.rows == 1:
            return model(x, t, context, runtime=runtime, **conditions)
        own = {name: self._own(value, len(x)) for name, value in conditions.items()}
        v = model(*(self._own(value, len(x)) for value in (x, t, context)), runtime=runtime, **own)
        return self._joined(v)

    def _own(self, value, batch: int):
        """Return what this row needs of an argument for `batch` samples. Only tensors have an axis of samples."""
        if isinstance(value, list):
            return [self._own(item, batch) for item in value]
        if not isinstance(value, Tensor) or value.shape[:1] != (batch,):
            return value
        return value.chunk(self.rows)[self.world.rank // self.row.size]

    def _joined(self, v: Tensor) -> Tensor:
        """Return the samples of all rows (B, ...) from those of this one, v."""
        sends = self.row.rank == 0
        parts = [v if sends else v.new_empty(0)] * self.world.size
        shapes = [v.shape if rank % self.row.size == 0 else (0,) for rank in range(self.world.size)]
        return torch.cat([part for part in self.world.all_to_all(parts, shapes) if part.numel()])
