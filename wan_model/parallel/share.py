"""Ulysses (https://arxiv.org/abs/2309.14509): tokens shared between attentions, heads shared during them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dit.attention import Attention
from ..dit.layers import Exchange
from ..dit.runtime import Runtime, Whole
from ..dit.sequence import Sequence
from . import layout
from .group import Group


@dataclass(frozen=True)
class Ulysses(Whole):
    """A forward whose tokens are shared by the processes of `group`.

    For an attention, each device gets all tokens of some heads and sends back what it made of them: 4 L dim / P values
    for P devices, of which it keeps one in P. Neither the tokens nor the heads need divide by P.
    """

    group: Group

    def sequence(self, sequence: Sequence) -> Sequence:
        """As `Whole.sequence`."""
        return layout.sequence_of(sequence, self.group.rank, self.group.size)

    def shard(self, x: Tensor, sequence: Sequence) -> Tensor:
        """As `Whole.shard`. sequence: of all tokens."""
        return x.index_select(1, self._places(sequence.groups, self.group.rank, x.device))

    def gather(self, x: Tensor, groups: tuple[int, ...]) -> Tensor:
        """As `Whole.gather`."""
        shapes = [(x.shape[0], count, x.shape[2]) for count in self._counts(groups)]
        return self._joined(self.group.all_to_all([x] * self.group.size, shapes), groups)

    def exchange(self, sequence: Sequence) -> Exchange:
        """As `Whole.exchange`. sequence: of all tokens."""
        groups = sequence.groups

        def exchange(attention: Attention, project: Callable[[], tuple[Tensor, ...]], heads: int) -> Tensor:
            start, stop, _ = layout.heads_of(heads, self.group.rank, self.group.size)
            parts = list(project())
            for i, x in enumerate(parts):  # one by one, so that what is sent can be freed
                parts[i] = self._to_heads(x, groups, heads)
                del x
            q, k, v = parts
            out = attention(q, k, v, stop - start)
            del parts, q, k, v
            return self._to_tokens(out, groups, heads)

        return torch.compiler.disable(exchange)

    def mean_over_heads(self, x: Tensor, heads: int) -> Tensor:
        """As `Whole.mean_over_heads`."""
        start, stop, counts = layout.heads_of(heads, self.group.rank, self.group.size)
        return self.group.sum(x * ((stop - start) * counts / heads))

    def _to_heads(self, x: Tensor, groups: tuple[int, ...], heads: int) -> Tensor:
        """Return all tokens (B, L, heads of this device * head_dim) from this device's, x (B, n, heads * head_dim)."""
        channels, size = x.shape[2] // heads, self.group.size
        spans = [layout.heads_of(heads, rank, size) for rank in range(size)]
        parts = [x[..., start * channels : stop * channels] for start, stop, _ in spans]
        start, stop, _ = spans[self.group.rank]
        shapes = [(x.shape[0], count, (stop - start) * channels) for count in self._counts(groups)]
        return self._joined(self.group.all_to_all(parts, shapes), groups)

    def _to_tokens(self, x: Tensor, groups: tuple[int, ...], heads: int) -> Tensor:
        """Return this device's tokens (B, n, heads * head_dim) from all tokens of its heads, x (B, L, ...)."""
        rank, size = self.group.rank, self.group.size
        spans = [layout.heads_of(heads, other, size) for other in range(size)]
        start, stop, counts = spans[rank]
        channels = x.shape[2] // (stop - start)
        sent = [x.index_select(1, self._places(groups, other, x.device)) for other in range(size)] if counts else []
        own = self._counts(groups)[rank]
        shapes = [(x.shape[0], own, (stop - start) * channels if counts else 0) for start, stop, counts in spans]
        return torch.cat(self.group.all_to_all(sent or [x.new_empty(0)] * size, shapes), dim=-1)

    def _joined(self, parts: list[Tensor], groups: tuple[int, ...]) -> Tensor:
        """Return all tokens in order from those of each device."""
        first = parts[0]
        whole = first.new_empty(first.shape[0], sum(groups), first.shape[2])
        for rank, tokens in enumerate(parts):
            whole.index_copy_(1, self._places(groups, rank, first.device), tokens)
        return whole

    def _places(self, groups: tuple[int, ...], rank: int, device: torch.device) -> Tensor:
        return layout.places(groups, rank, self.group.size, device)

    def _counts(self, groups: tuple[int, ...]) -> list[int]:
        return [sum(layout.held(groups, rank, self.group.size)) for rank in range(self.group.size)]


def spread(runtime: Runtime, group: Group) -> Runtime:
    """Return `runtime` for a forward that every process of `group` calls with the same arguments.

    All processes return the same result. Each needs a token of every frame of the clip at least.
    """
    return replace(runtime, share=Ulysses(group)) if group.size > 1 else runtime
