"""Measurements of every benchmark: interleaved times, memory and operations of one run, and errors."""

import math
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[], torch.Tensor | None]

KINDS = {  # what part of an operation's name says about it, the first that fits
    "convolution": ("convolution", "conv"),
    "attention": ("attention", "bmm", "softmax"),
    "matrix products": ("mm", "linear"),
    "copies": ("copy", "clone", "cat", "pad", "zero", "fill", "upsample"),
}
OTHER = "elementwise"
MATRIX_PEAK = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "RTX 4090": 165,
    "RTX 5090": 209,
}  # bf16 TFLOP/s


@dataclass(frozen=True)
class Traced:
    """One run looked at closely. peak: bytes. shares: part of the time in each kind of operation, largest first.

    kernels: operations that compute or copy. moved: bytes that they read and wrote.
    """

    result: torch.Tensor | None
    peak: int
    shares: dict[str, float]
    kernels: int
    moved: int


def median_seconds(
    runs: dict[str, Run], rounds: int, budget: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, float], int]:
    """Median time of each run on `clock`, and how many rounds there were.

    They take turns, so that what else the machine does hits all alike; no round begins after `budget` seconds.
    """
    times = {name: [] for name in runs}
    start, done = time.perf_counter(), 0
    while done == 0 or (done < rounds and time.perf_counter() - start < budget):
        for name, run in runs.items():
            times[name].append(seconds(run, clock))
        done += 1
    return {name: statistics.median(taken) for name, taken in times.items()}, done


def seconds(run: Run, clock: Callable[[], float]) -> float:
    """Time of one run on `clock`, with the device's queue empty before and after."""
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for what the device has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def traced(run: Run) -> Traced:
    """Run once, slower, for what times do not tell.

    The peak counts what the run itself allocates: on CUDA as the allocator counts it, else as `Tracer` does.
    """
    with Tracer() as tracer:
        result = run()
    peak = tracer.peak
    if torch.cuda.is_available():
        del result
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        peak = torch.cuda.max_memory_allocated() - before
    total = sum(tracer.seconds.values())
    shares = {kind: taken / total for kind, taken in tracer.seconds.most_common()}
    return Traced(result, peak, shares, tracer.kernels, tracer.moved)


class Tracer(TorchDispatchMode):
    """Counts the bytes of all living tensors that operations made, the seconds in each kind of operation, and more.

    Tensors that were there before (weights, inputs) do not count. An operation's own scratch memory is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._live = self.kernels = self.moved = 0
        self.seconds = Counter()
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for x in given:
            self._seen.setdefault(x.untyped_storage(), 0)
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        synchronize()
        self.seconds[kind(function.overloadpacket.__name__)] += time.perf_counter() - start
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if function._schema.is_mutable or not any(x.untyped_storage() in self._seen for x in made):  # else a view
            self.kernels += 1
            self.moved += sum(size(x) for x in (*given, *made))
        for x in made:
            self._count(x.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = self._seen[storage] = storage.nbytes()
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._live -= size


def size(x: torch.Tensor) -> int:
    """Bytes of the different elements of `x`, which may be expanded."""
    lengths = (length for length, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return math.prod(lengths) * x.element_size()


def kind(operation: str) -> str:
    """The key of `KINDS` that an operation belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def fraction_of_peak(rate: float) -> str:
    """How much of this card's peak in bf16 matrix products `rate` (TFLOP/s) is; nothing for an unknown card."""
    peak = next((peak for card, peak in MATRIX_PEAK.items() if card in torch.cuda.get_device_name()), None)
    return f", {rate / peak:.0%} of the card's peak" if peak else ""


def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Largest difference, and the difference's 2-norm relative to that of `expected`."""
    difference = actual.cpu().float() - expected.cpu()
    return difference.abs().max().item(), (difference.norm() / expected.norm()).item()
