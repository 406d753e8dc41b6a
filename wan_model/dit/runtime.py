"""The runtime: choices of the caller about where and how a forward runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .attention import Attention, sdpa
from .layers import TORCH, BlockInputs, Kernels
from .rope import Axes

if TYPE_CHECKING:
    from .sequence import Sequence

RunBlock = Callable[[int, Any, Tensor, BlockInputs], Tensor]  # Any: a `Block`, or its compiled form


def call_block(index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
    """Run main block number `index` on x (B, L, dim)."""
    return block(x, inputs)


def keep(x: Tensor, sequence: Sequence) -> tuple[Tensor, Sequence]:
    """Return the tokens x (B, L, dim) and their `sequence`: all of them are on this device."""
    return x, sequence


def keep_tokens(x: Tensor, sequence: Sequence) -> Tensor:
    """Return the tokens x (B, L, dim): all of `sequence` are on this device."""
    return x


@dataclass(frozen=True)
class Runtime:
    """Choices of a caller; the defaults are exact, on one device, without chunks.

    attention: self-attention, unless `config.window_size` limits it. cross_attention: attention to text and images,
    None for `attention`. kernels, chunk: as in `BlockInputs`. run_block: runs each main block. rope_scale, rope_shift:
    applied to the clip's rotary positions. shard: maps all tokens (B, L, dim) and their sequence to those of this
    device; gather: maps the tokens of this device back to all tokens after the blocks.
    """

    attention: Attention = sdpa
    cross_attention: Attention | None = None
    kernels: Kernels = TORCH
    chunk: int | None = None
    run_block: RunBlock = call_block
    rope_scale: Axes = (1.0, 1.0, 1.0)
    rope_shift: Axes = (0.0, 0.0, 0.0)
    shard: Callable[[Tensor, Sequence], tuple[Tensor, Sequence]] = keep
    gather: Callable[[Tensor, Sequence], Tensor] = keep_tokens
