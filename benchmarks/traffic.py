"""Bytes that devices send each other in one forward and in one decode: counted between real processes, and formulas."""

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # takes long, and a shared forward wants it: once, before processes are forked
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo

from wan_model.dit.config import HEAD_DIM, PATCH_AREA, DiTConfig
from wan_model.parallel import Deal, Group, Mesh, layout
from wan_model.vae import TilePlan, WanVAE
from wan_model.vae.runtime import CPU

PATIENCE = timedelta(minutes=10)


class Counter:
    """A backend of torch that counts the bytes that this process gives to others."""

    def __init__(self, backend):
        self.backend, self.sent = backend, 0

    def rank(self) -> int:
        """As the backend's."""
        return self.backend.rank()

    def size(self) -> int:
        """As the backend's."""
        return self.backend.size()

    def alltoall_base(self, received: Tensor, sent: Tensor, *arguments):
        """As the backend's: `Group` puts nothing for this process itself into `sent`."""
        self.sent += sent.numel() * sent.element_size()
        return self.backend.alltoall_base(received, sent, *arguments)

    def broadcast(self, tensors: list[Tensor], options):
        """As the backend's. One copy for each other process counts, however the backend hands them on."""
        copies = (self.size() - 1) * (options.rootRank == self.rank())
        self.sent += sum(x.numel() * x.element_size() for x in tensors) * copies
        return self.backend.broadcast(tensors, options)


@dataclass(frozen=True)
class Connections:
    """The groups of one process. store: a file in which the processes meet."""

    store: str
    rank: int
    size: int

    def group(self, name: str, rank: int, size: int) -> Group:
        """Return a group by its name, whose bytes are counted."""
        store = PrefixStore(name, FileStore(self.store, -1))
        return Group(Counter(ProcessGroupGloo(store, rank, size, PATIENCE)))

    def mesh(self, rows: int) -> Mesh:
        """Return the mesh of so many rows of the same length."""
        length = self.size // rows
        row, place = divmod(self.rank, length)
        return Mesh(self.group("world", self.rank, self.size), self.group(f"row {row}", place, length))


def between(size: int, work: Callable[[Connections], tuple[int, float]]) -> tuple[list[int], float]:
    """Return what `work` returns in `size` processes, forked from this one: bytes of each, and the largest error."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        places = [Connections(str(Path(folder) / "store"), rank, size) for rank in range(size)]
        processes = [context.Process(target=lambda at: answers.put((at.rank, *work(at))), args=(at,)) for at in places]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if failed := sum(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"{failed} of {size} processes failed, see above.")
        told = sorted(answers.get() for _ in processes)
    return [sent for _, sent, _ in told], max(error for *_, error in told)


def counted_forward(model, given: Sequence[Tensor], rows: int, size: int) -> tuple[list[int], float]:
    """Count the bytes of a forward of the DiT `model` by `size` processes in `rows`; given: x, t, context."""
    with torch.no_grad():
        alone = model(*given)

    def work(at: Connections) -> tuple[int, float]:
        mesh = at.mesh(rows)
        with torch.no_grad():
            v = mesh.forward(model, *given)
        return mesh.world.backend.sent + mesh.row.backend.sent, error(v, alone)

    return between(size, work)


def sent_in_forward(config: DiTConfig, groups: tuple[int, ...], size: int, itemsize: int) -> list[int]:
    """Return the bytes that each of `size` devices sends in a forward whose tokens all of them share.

    groups: tokens of each frame. Per block a device sends q, k and v of its tokens to the heads of others, and what its
    own heads made to the tokens of others; at the end all get all patches of the velocity, in float32.
    """
    counts = [sum(layout.held(groups, rank, size)) for rank in range(size)]
    spans = [layout.heads_of(config.heads, rank, size) for rank in range(size)]
    attended = sum(stop - start for start, stop, _ in spans)  # more than there are, where devices repeat heads
    values = []
    for count, (start, stop, sends) in zip(counts, spans, strict=True):
        own = stop - start
        to_heads = 3 * count * (attended - own) * HEAD_DIM
        to_tokens = (sum(groups) - count) * own * HEAD_DIM * sends
        patches = (size - 1) * count * config.out_dim * PATCH_AREA
        values.append(itemsize * config.layers * (to_heads + to_tokens) + torch.float32.itemsize * patches)
    return values


def sent_by_rows(config: DiTConfig, groups: tuple[int, ...], v: int, rows: int, size: int, itemsize: int) -> list[int]:
    """Return the same for a batch of `rows` samples, one a row. v: numbers in the velocity of one sample."""
    length = size // rows
    of_row = sent_in_forward(config, groups, length, itemsize)
    return [of_row[rank % length] + (rank % length == 0) * v * (size - 1) * itemsize for rank in range(size)]


def counted_decode(vae: WanVAE, latent: Tensor, tile: tuple[int, int], size: int) -> tuple[list[int], float]:
    """Count the bytes of a decode in tiles of (height, width) pixels that are dealt to `size` processes."""
    with torch.no_grad():
        alone = vae.decode(latent, tile=tile)

    def work(at: Connections) -> tuple[int, float]:
        group = at.group("world", at.rank, size)
        told = latent if at.rank == 0 else torch.empty_like(latent)
        with torch.no_grad():
            runtime = replace(CPU, share=Deal(group))
            frames = list(vae.decode_stream(group.broadcast(told, 0), tile=tile, runtime=runtime))
        return group.backend.sent, error(torch.cat(frames, dim=2), alone) if frames else 0.0

    return between(size, work)


def sent_in_decode(latent: int, plan: TilePlan, frames: int, size: int, itemsize: int) -> list[int]:
    """Return the bytes that each device sends for its tile. latent: numbers in it. frames: of the video."""
    pixels = [3 * frames * core.area for core in plan.cores]
    return [itemsize * (latent * (size - 1) if rank == 0 else pixels[rank]) for rank in range(size)]


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the difference relative to `expected`, in the 2-norm."""
    return ((actual - expected).norm() / expected.norm()).item()
