"""What every benchmark measures: interleaved times, the memory and the operations of one run, and errors."""

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
    "copies": ("copy", "clone", "cat", "pad", "zero", "fill", "upsample"),
}
OTHER = "elementwise"


@dataclass(frozen=True)
class Traced:
    """One run looked at closely. peak: bytes. shares: part of the time in each kind of operation, largest first."""

    result: torch.Tensor | None
    peak: int
    shares: dict[str, float]


def median_seconds(runs: dict[str, Run], rounds: int, budget: float) -> tuple[dict[str, float], int]:
    """Median time of each run, and how many rounds there were.

    They take turns, so that what else the machine does hits all alike; no round begins after `budget` seconds.
    """
    times = {name: [] for name in runs}
    start, done = time.perf_counter(), 0
    while done == 0 or (done < rounds and time.perf_counter() - start < budget):
        for name, run in runs.items():
            times[name].append(seconds(run))
        done += 1
    return {name: statistics.median(taken) for name, taken in times.items()}, done


def seconds(run: Run) -> float:
    """Time of one run, with the device's queue empty before and after."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


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
    return Traced(result, peak, {kind: taken / total for kind, taken in tracer.seconds.most_common()})


class Tracer(TorchDispatchMode):
    """Counts the bytes of all living tensors that operations made, and the seconds in each kind of operation.

    Tensors that were there before (weights, inputs) do not count. An operation's own scratch memory is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._live = 0
        self.seconds = Counter()
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):
                self._seen.setdefault(x.untyped_storage(), 0)
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        synchronize()
        self.seconds[kind(function.overloadpacket.__name__)] += time.perf_counter() - start
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
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


def kind(operation: str) -> str:
    """The key of `KINDS` that an operation belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Largest difference, and the difference's 2-norm relative to that of `expected`."""
    difference = actual.cpu().float() - expected.cpu()
    return difference.abs().max().item(), (difference.norm() / expected.norm()).item()
