"""Blocks whose weights one process each keeps: the others get them while the block before runs."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..dit.runtime import Lend
from .group import Group

ALIGNED = 256  # bytes: where a tensor may begin in a buffer
PARAMETERS, BUFFERS = "_parameters", "_buffers"

Values = Callable[[nn.Module], AbstractContextManager[dict[str, Tensor]]]
Dress = Callable[[nn.Module, nn.Module], None]


def owner(index: int, size: int) -> int:
    """Return which of `size` processes keeps the weights of block `index`."""
    return index % size


class Borrowed(nn.Module):
    """Stands in a stack for a block whose weights another process keeps.

    It has no parameters, so that nothing loads, moves or patches those of `block`, which say what they are like.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.held = (block,)  # in a tuple: a module would become part of this one

    @property
    def block(self) -> nn.Module:
        """The block itself."""
        return self.held[0]


def whole(block: nn.Module) -> nn.Module:
    """Return the block for which `block` may stand."""
    return block.block if isinstance(block, Borrowed) else block


def stored(layer: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Return what a layer computes with: its own parameters and buffers, without those of its children."""
    return nullcontext({name: value for _, name, value in _own(layer)})


def as_it_is(lent: nn.Module, block: nn.Module) -> None:
    """Change nothing of a lent block."""


class Loan:
    """The stacks of blocks of one network, each with two buffers: one that is computed with, one that is received.

    device: of the buffers. values: what a layer computes with, by the names of its parameters and buffers, in the
    form in which they are stored, for as long as its context lasts. dress: called with each lent block and the one that
    it stands for.
    """

    def __init__(
        self,
        stacks: Iterable[nn.ModuleList],
        device: torch.device,
        values: Values = stored,
        dress: Dress = as_it_is,
    ):
        self.values, self.dress = values, dress
        self.pending: list[Any] = []  # what `Group.wait` takes
        self.buffers = {
            id(stack): [torch.empty(buffer_size(stack), dtype=torch.uint8, device=device) for _ in range(2)]
            for stack in stacks
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for pair in self.buffers.values() for buffer in pair)

    def by(self, group: Group) -> Lend:
        """Return `Runtime.lend` of a forward that all processes of `group`, which is used for nothing else, run."""
        self.settle(group)
        return functools.partial(self.blocks, group)

    def blocks(self, group: Group, stack: nn.ModuleList) -> Iterator[nn.Module]:
        """Yield the blocks of `stack` in order, each with its weights; those of the next are sent meanwhile.

        A lent block holds its weights until the next one is asked for.
        """
        work = self._send(group, stack, 0)
        for index, block in enumerate(stack):
            self._wait(group, work)
            work = self._send(group, stack, index + 1) if index + 1 < len(stack) else None
            yield self._lent(stack, index) if isinstance(block, Borrowed) else block

    def settle(self, group: Group) -> None:
        """Wait for what a forward that was left early had begun to send."""
        for work in tuple(self.pending):
            self._wait(group, work)

    def _wait(self, group: Group, work: Any) -> None:
        self.pending.remove(work)
        group.wait(work)

    def _send(self, group: Group, stack: nn.ModuleList, index: int) -> Any:
        """Begin to send block `index` of `stack` from its owner to the others."""
        block, buffer = stack[index], self.buffers[id(stack)][index % 2]
        places = places_of(whole(block))
        if not isinstance(block, Borrowed):
            self._fill(block, buffer, places)
        work = group.begin_broadcast(buffer[: places[-1][1]], owner(index, group.size))
        self.pending.append(work)
        return work

    def _fill(self, block: nn.Module, buffer: Tensor, places: list[tuple[int, int]]) -> None:
        """Copy what `block` computes with into `buffer`."""
        spans = iter(places)
        for layer in block.modules():
            with self.values(layer) as values:
                for _, name, like in _own(layer):
                    for kept, value in zip(plain(like), plain(values[name]), strict=True):
                        view = buffer[slice(*next(spans))].view(kept.dtype)
                        view.copy_(value.reshape(-1))

    def _lent(self, stack: nn.ModuleList, index: int) -> nn.Module:
        """Return block `index` with the weights in its buffer."""
        block, buffer = whole(stack[index]), self.buffers[id(stack)][index % 2]
        tensors = [kept for layer in block.modules() for _, _, value in _own(layer) for kept in plain(value)]
        spans = zip(tensors, places_of(block), strict=True)
        views = (buffer[slice(*span)].view(kept.dtype).view(kept.shape) for kept, span in spans)
        lent = _with(block, views)
        self.dress(lent, block)
        return lent


def plain(value: Tensor) -> list[Tensor]:
    """Return the tensors that hold the numbers of `value`: itself, or those that a quantised weight wraps."""
    wrapper = _wrapper(value)
    if wrapper is None:
        return [value.detach()]
    return [inner for name in wrapper.__tensor_flatten__()[0] for inner in plain(getattr(wrapper, name))]


def places_of(block: nn.Module) -> list[tuple[int, int]]:
    """Return first byte and end of each plain tensor of `block` in a buffer."""
    places, at = [], 0
    for layer in block.modules():
        for _, _, value in _own(layer):
            for tensor in plain(value):
                places.append((at, at + tensor.numel() * tensor.itemsize))
                at = -(-places[-1][1] // ALIGNED) * ALIGNED
    return places


def form(stacks: Iterable[nn.ModuleList]) -> str:
    """Return a digest of dtypes and shapes of all blocks: processes that send each other weights have the same."""
    words = [
        f"{kind} {name} {tensor.dtype} {tuple(tensor.shape)}"
        for stack in stacks
        for block in map(whole, stack)
        for layer in block.modules()
        for kind, name, value in _own(layer)
        for tensor in plain(value)
    ]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def buffer_size(stack: nn.ModuleList) -> int:
    """Return the bytes of a buffer for any block of `stack`."""
    return max(places_of(whole(block))[-1][1] for block in stack)


def _own(layer: nn.Module) -> list[tuple[str, str, Tensor]]:
    """Return kind, name and value of each parameter and buffer of a layer, without those of its children."""
    return [
        (kind, name, value)
        for kind in (PARAMETERS, BUFFERS)
        for name, value in vars(layer)[kind].items()
        if value is not None
    ]


def _with(module: nn.Module, tensors: Iterator[Tensor]) -> nn.Module:
    """Return a copy of `module` whose parameters and buffers are made of `tensors`, in the order of `modules()`."""
    made = copy.copy(module)
    own: dict[str, dict[str, Tensor]] = {PARAMETERS: {}, BUFFERS: {}}
    for kind, name, value in _own(module):
        tensor = _like(value, tensors)
        own[kind][name] = nn.Parameter(tensor, requires_grad=False) if kind == PARAMETERS else tensor
    for kind in own:
        vars(made)[kind] = dict.fromkeys(vars(module)[kind]) | own[kind]
    children = {name: None if child is None else _with(child, tensors) for name, child in module._modules.items()}
    vars(made)["_modules"] = children
    return made


def _like(value: Tensor, tensors: Iterator[Tensor]) -> Tensor:
    """Return a tensor of the kind of `value` whose numbers are the next of `tensors`."""
    wrapper = _wrapper(value)
    if wrapper is None:
        return next(tensors)
    names, context = wrapper.__tensor_flatten__()
    inner = {name: _like(getattr(wrapper, name), tensors) for name in names}
    return type(wrapper).__tensor_unflatten__(inner, context, wrapper.size(), wrapper.stride())


def _wrapper(value: Tensor) -> Any:
    """Return the tensor subclass that `value` is, or hides as a parameter; None for a plain tensor."""
    return next((one for one in (value, value.data) if hasattr(one, "__tensor_flatten__")), None)
