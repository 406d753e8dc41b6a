"""Devices that work on one forward, as a group of `torch.distributed` that the caller has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, AllToAllOptions, BroadcastOptions

Shape = Sequence[int]


def wait(work: Any) -> None:
    """Wait for a collective of torch to end."""
    work.wait()


@dataclass(frozen=True)
class Group:
    """Processes with a device each.

    backend: of `torch.distributed` (`ProcessGroupGloo`, `ProcessGroupNCCL`), not registered, so that a host may have
    others. wait: waits for what `backend` has begun, and may give up by raising.
    """

    backend: Any
    wait: Callable[[Any], None] = wait

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.backend.rank()

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.backend.size()

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Send `parts[i]` to process i and return what the others sent, of `shapes[i]` from process i.

        All are of one dtype, on one device. An empty part sends nothing. The own part is returned as it is.
        """
        counts = [part.numel() * (rank != self.rank) for rank, part in enumerate(parts)]
        sizes = [torch.Size(shape).numel() * (rank != self.rank) for rank, shape in enumerate(shapes)]
        others = [part.reshape(-1) for part, count in zip(parts, counts, strict=True) if count]
        sent = torch.cat(others) if others else parts[0].new_empty(0)
        del others  # copies, where parts are slices
        received = sent.new_empty(sum(sizes))
        self.wait(self.backend.alltoall_base(received, sent, sizes, counts, AllToAllOptions()))
        pieces = enumerate(zip(received.split(sizes), shapes, strict=True))
        return [parts[rank] if rank == self.rank else piece.view(*shape) for rank, (piece, shape) in pieces]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of the x of all processes, in the memory of x."""
        options = AllreduceOptions()  # whose operation is the sum
        self.wait(self.backend.allreduce([x], options))
        return x

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Return the x of the process `source`, in the memory of x."""
        self.wait(self.begin_broadcast(x, source))
        return x

    def begin_broadcast(self, x: Tensor, source: int) -> Any:
        """Begin to put the x of the process `source` into the memory of x; return what `wait` takes."""
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = source, 0
        return self.backend.broadcast([x], options)
