"""A simulated CUDA device, for machines without one: it counts the calls that make the host wait for the device.

Its tensors report the device cuda:0, hold their values in RAM and compute on the CPU. The calls that count are those
that torch's own debug mode reports on a card (`torch.cuda.set_sync_debug_mode`): reading a value, results whose size
depends on values, and copies between RAM and the device that are not asynchronous. Neither time nor memory is
simulated. Works under `torch.inference_mode`.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("cuda", 0)
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnCard(torch.Tensor):
    """A tensor on the simulated device. held: its values on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        strides, offset = held.stride(), held.storage_offset()
        options = {"strides": strides, "storage_offset": offset, "dtype": held.dtype, "device": "meta"}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("This tensor belongs to a simulated device that is no longer there.")

    def new_tensor(self, data, **options):
        """As torch's, which copies `data` from RAM."""
        return torch.tensor(data, dtype=options.get("dtype", self.dtype), device=CARD)

    def tolist(self):
        """As torch's."""
        return self.to("cpu").tolist()

    def record_stream(self, stream) -> None:
        """As torch's: nothing to do."""


class Simulation(TorchDispatchMode):
    """Runs operations for the simulated device while it is active. waits: (operation, place in the code) of each."""

    def __init__(self):
        super().__init__()
        self.waits: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # inference mode hands over whole compositions, whose parts come here again
            found = function.decompose(*args, **kwargs)
        return self.run(function, args, kwargs) if found is NotImplemented else found

    def run(self, function, args, kwargs):
        """Run one operation on the values that its tensors hold."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        card = [x for x in tensors if isinstance(x, OnCard)]
        asked = kwargs.get("device")
        there = bool(card) if asked is None else torch.device(asked).type != "cpu"
        if card or there:
            self.note(function.overloadpacket.__name__, args, kwargs, there)
        known = {id(x.held): x for x in card}
        args, kwargs = tree_map(_held, (args, kwargs))
        kwargs.pop("pin_memory", None)
        result = function(*args, **kwargs)

        def close(x):
            is_new = isinstance(x, torch.Tensor) and id(x) not in known
            return OnCard(x) if is_new and there else known.get(id(x), x)

        return tree_map(close, result)

    def note(self, name: str, args, kwargs, there: bool) -> None:
        """Count an operation if it waits for the device."""
        if name in READS or (name in INDEXING and _is_read(args[1])) or self.is_copy(name, args, kwargs, there):
            self.add(name)

    def is_copy(self, name: str, args, kwargs, there: bool) -> bool:
        """Return whether an operation copies between RAM and the device and waits for it."""
        if name == "copy_":
            target, source = args[:2]
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            scalar = not isinstance(source, OnCard) and source.untyped_storage().nbytes() <= source.element_size()
            return type(target) is not type(source) and not asynchronous and not scalar
        return name == "_to_copy" and isinstance(args[0], OnCard) != there and not kwargs.get("non_blocking")

    def add(self, name: str) -> None:
        """Count a wait in `name`."""
        self.waits.append((name, place(sys._getframe(1))))


def _held(x):
    if isinstance(x, OnCard):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _is_read(indices) -> bool:
    """Return whether indexing by these waits: for the number of true values, or for a copy of an index from RAM."""
    given = [x for x in indices if x is not None]
    return any(x.dtype in (torch.bool, torch.uint8) or (x.ndim and not isinstance(x, OnCard)) for x in given)


def place(frame: FrameType | None) -> str:
    """Return file and line of the innermost caller that is neither torch nor this file."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and "torch" not in path.parts:
            return f"{'/'.join(path.parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Stream:
    """A stream of the simulated device, and an event on it. Waiting for an event is not counted."""

    def wait_stream(self, other) -> None:
        """As torch's: nothing to do."""

    def record_event(self) -> "Stream":
        """Return the event."""
        return self

    def synchronize(self) -> None:
        """As torch's: nothing to do."""


@contextmanager
def simulated() -> Iterator[Simulation]:
    """Simulate a CUDA device inside; yields the count."""
    simulation, made, generator = Simulation(), torch.tensor, torch.Generator

    def tensor(data, *, device=None, **options):
        x = made(data, **options)
        return x if device is None or torch.device(device).type == "cpu" else x.to(CARD)

    patches = {
        "_lazy_init": lambda: None,
        "Stream": lambda *_: Stream(),
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: nullcontext(),
    }
    with ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "tensor", tensor))
        stack.enter_context(mock.patch.object(torch, "Generator", lambda device=None: generator()))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x, *_: x))
        stack.enter_context(simulation)
        yield simulation


def to_card(module: torch.nn.Module) -> None:
    """Put all parameters and buffers of `module` on the simulated device, which must be active."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, x in held.items():
                if x is not None:
                    moved = OnCard(x.detach())
                    held[name] = torch.nn.Parameter(moved, requires_grad=False) if held is part._parameters else moved
