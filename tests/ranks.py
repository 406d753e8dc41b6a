"""A pytest plugin: this process is one of several that run the same tests, and every forward of a DiT is shared.

RANK and WORLD_SIZE say which one it is; RANKS_STORE is a file in which they meet, and RANKS_ADDRESS the address of this
host for the others, where it is not this machine alone. With RANKS_WEIGHTS=sharded each has the weights of some
blocks alone.
"""

import copy
import os
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo

from wan_model.dit.model import WanDiT
from wan_model.dit.runtime import Runtime
from wan_model.parallel import Borrowed, Group, Loan, Mesh, rows_of
from wan_model.parallel.loan import owner

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SHARDED = os.environ.get("RANKS_WEIGHTS") == "sharded"


class Ranks:
    """The groups of this process, and how often it waited for the others."""

    def __init__(self) -> None:
        self.waits = 0
        self.store = FileStore(os.environ["RANKS_STORE"], SIZE * SIZE)
        self.world, self.weights = (self.group(name, RANK, SIZE) for name in ("world", "weights"))
        self.meshes: dict[int, Mesh] = {}

    def group(self, name: str, rank: int, size: int) -> Group:
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname=os.environ.get("RANKS_ADDRESS", "127.0.0.1"))]
        options._timeout = timedelta(seconds=300)
        return Group(ProcessGroupGloo(PrefixStore(name, self.store), rank, size, options), self.wait)

    def wait(self, work) -> None:
        work.wait()
        self.waits += 1

    def mesh(self, batch: int) -> Mesh:
        rows = rows_of(batch, SIZE)
        if rows not in self.meshes:
            row, rank = divmod(RANK, SIZE // rows)
            self.meshes[rows] = Mesh(self.world, self.group(f"{rows}/{row}", rank, SIZE // rows))
        return self.meshes[rows]

    @contextmanager
    def lent(self, network: WanDiT, runtime: Runtime):
        """Give `runtime` for a forward for which `network` has no numbers in the blocks that are others'."""
        stacks = [getattr(network, name) for name in ("blocks", "vace_blocks") if hasattr(network, name)]
        others = [
            (stack, index, stack[index])
            for stack in stacks
            for index in range(len(stack))
            if SHARDED and owner(index, SIZE) != RANK
        ]
        for stack, index, block in others:
            stack[index] = Borrowed(without_numbers(block))
        loan = Loan(stacks, torch.device("cpu"))
        try:
            yield replace(runtime, lend=loan.by(self.weights)) if SHARDED else runtime
        finally:
            for stack, index, block in others:
                stack[index] = block


def without_numbers(block: torch.nn.Module) -> torch.nn.Module:
    """A copy of `block` that makes NaN of everything."""
    copied = copy.deepcopy(block)
    for weight in copied.parameters():
        weight.data = torch.full_like(weight.data, torch.nan)
    return copied


@pytest.fixture(scope="session")
def ranks():
    return Ranks()


@pytest.fixture(autouse=True)
def _shared_forwards(ranks, monkeypatch):
    alone = WanDiT.forward

    def forward(self, x, t, context, *, runtime=None, **arguments):
        before = ranks.waits
        with ranks.lent(self, runtime or Runtime()) as lent:
            v = ranks.mesh(len(x)).forward(
                lambda *given, **named: alone(self, *given, **named),
                x,
                t,
                context,
                runtime=lent,
                **arguments,
            )
        assert ranks.waits > before, "nothing was shared"
        return v

    monkeypatch.setattr(WanDiT, "forward", forward)
