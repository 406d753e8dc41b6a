"""The runtime: choices of the caller about where and how a forward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .attention import Attention, sdpa
from .layers import TORCH, BlockInputs, Exchange, Kernels, attend
from .rope import Axes

if TYPE_CHECKING:
    from .sequence import Sequence

Lend = Callable[[nn.ModuleList], Iterable[Any]]  # Any: as in RunBlock
RunBlock = Callable[[int, Any, Tensor, BlockInputs], Tensor]  # Any: a `Block`, or its compiled form


def call_block(index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
    """Run main block number `index` on x (B, L, dim)."""
    return block(x, inputs)


def in_order(blocks: nn.ModuleList) -> Iterable[nn.Module]:
    """Return the blocks of a stack in order: all have their weights."""
    return blocks


class Whole:
    """How the tokens of a forward are shared by devices. Here one device holds them all.

    Every token belongs to one device. Between the blocks' attentions a device works on its own tokens alone.
    """

    def sequence(self, sequence: Sequence) -> Sequence:
        """Return what `sequence` is for the tokens of this device."""
        return sequence

    def shard(self, x: Tensor, sequence: Sequence) -> Tensor:
        """Return those of all tokens x (B, L, n) of `sequence` that this device holds, in the same order."""
        return x

    def gather(self, x: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Return all tokens (B, L, n) of consecutive `groups` (`Sequence.groups`) from those of this device, x."""
        return x

    def exchange(self, sequence: Sequence) -> Exchange:
        """Return what runs attention between all tokens of `sequence`."""
        return attend

    def mean_over_heads(self, x: Tensor, heads: int) -> Tensor:
        """Return the mean over all `heads` from x, the mean over those that this device attends with."""
        return x


WHOLE = Whole()


@dataclass(frozen=True)
class Runtime:
    """Choices of a caller; the defaults are exact, on one device, without chunks.

    attention: self-attention, unless `config.window_size` limits it. cross_attention: attention to text and images,
    None for `attention`. kernels, chunk: as in `BlockInputs`. run_block: runs each main block. rope_scale, rope_shift:
    applied to the clip's rotary positions. share: which tokens this device holds. lend: yields the blocks of a stack in
    order, each of which has its weights until the next is asked for.
    """

    attention: Attention = sdpa
    cross_attention: Attention | None = None
    kernels: Kernels = TORCH
    chunk: int | None = None
    run_block: RunBlock = call_block
    rope_scale: Axes = (1.0, 1.0, 1.0)
    rope_shift: Axes = (0.0, 0.0, 0.0)
    share: Whole = WHOLE
    lend: Lend = in_order
