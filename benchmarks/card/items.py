"""The list of checks and rows: each has a name, a group that shares a process, and a function of the place it runs in.

A check returns what it found and raises an exception if that is wrong; a row yields one dictionary for each contender.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import torch

CHECKS = ("models", "host", "dynamic", "compile")  # groups whose processes run beside each other
ROWS = "rows"
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


class Skip(Exception):
    """The item does not apply to this machine or this ComfyUI; the message says why."""


class Wrong(Exception):
    """A result is not as expected; the message has both."""


@dataclass(frozen=True)
class Here:
    """Where an item runs. dry: in small sizes, on a CPU. folder: for its files. room, node: of the loaded pack, as
    `bench.load_pack` and `bench.run_node` give them; None in the group "models"."""

    device: torch.device
    dry: bool
    folder: Path
    room: Callable[[str], ModuleType] | None = None
    node: Callable[..., tuple] | None = None

    @cached_property
    def models(self) -> Path:
        """A models folder with the checkpoints of `tiny.random_weights`."""
        from tiny import random_weights

        random_weights.write(self.folder / "models")
        return self.folder / "models"

    def size(self, real, small):
        """`real`, or `small` in a dry run."""
        return small if self.dry else real


@dataclass(frozen=True)
class Item:
    """A check or a row. seconds: that it takes at most on a fast card, roughly."""

    name: str
    group: str
    run: Callable[[Here], object]
    seconds: float

    @property
    def is_row(self) -> bool:
        """Whether it measures."""
        return self.group == ROWS


ITEMS: dict[str, Item] = {}


def item(name: str, *groups: str, over: Iterable = ((),), seconds: float = 5) -> Callable:
    """Register a function as one item for each tuple of further arguments in `over`, in each of the groups.

    An item's name is `name` and its arguments; in another group than the first, also the group.
    """

    def register(function):
        for place, group in enumerate(groups):
            for case in over:
                words = [group] * (place > 0) + [name, *(str(part).removeprefix("torch.") for part in case)]
                full = " ".join(words)
                ITEMS[full] = Item(full, group, partial(call, function, case), seconds)
        return function

    return register


def call(function: Callable, case: tuple, here: Here) -> object:
    """Run a registered function; a row's results become a list."""
    found = function(here, *case)
    return list(found) if isinstance(found, Iterator) else found


def chosen(only: Iterable[str]) -> list[Item]:
    """Return the items whose name or group has one of the texts `only`; all for none."""
    texts = list(only)
    return [x for x in ITEMS.values() if not texts or any(text in x.name or text == x.group for text in texts)]


def below(found: float, bound: float, what: str = "the error") -> float:
    """Return `found`, rounded. Raise Wrong if it is not finite or not below `bound`."""
    if not found < bound:
        raise Wrong(f"{what} is {found:.3g} and must be below {bound:.3g}")
    return float(f"{found:.3g}")


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| in the 2-norm, in parts; infinite for other shapes and bad values."""
    if actual.shape != expected.shape or not bool(actual.isfinite().all()):
        return float("inf")
    difference = size = 0.0
    parts = (x.detach().flatten().split(2**26) for x in (actual, expected))
    for a, e in zip(*parts, strict=True):
        a, e = a.to(e.device).double(), e.double()
        difference, size = difference + float((a - e).square().sum()), size + float(e.square().sum())
    return (difference / size) ** 0.5 if size else float("inf")


def random_weights(shapes: dict, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random tensors of `shapes` by name, made on the device, that keep activations near 1."""
    generator, found = torch.Generator(device).manual_seed(0), {}
    for name, shape in shapes.items():
        x = torch.empty(tuple(shape), device=device)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            x.uniform_(0.8, 1.2, generator=generator)
        else:
            fan = x[0].numel() if x.ndim > 1 else 50
            x.normal_(0, fan**-0.5, generator=generator)
        found[name] = x.to(dtype)
    return found
