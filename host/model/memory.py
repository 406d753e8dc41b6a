"""The chunk size with which a forward of the DiT fits into free memory."""

from collections.abc import Sequence

import torch

from ...wan_model.causal import cache_bytes
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.cost import Shapes, forward_bytes, largest_weight
from .. import compat

CHUNKS = (65536, 32768, 16384, 8192, 4096)  # tokens; below the last one, matrix products lose speed
IN_CACHES = 512  # tokens, on a CPU: a chunk then fits its caches, up to 10% faster than all at once
PREFERRED = 16384  # tokens: with fewer at once, offloaded weights are copied to the device too often
USABLE = 0.9  # of the free memory: the rest is for workspaces of the backend and errors of the formula


def needed(config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, shapes: Shapes | None = None) -> int:
    """Return the bytes that the host should keep free for a forward: as much as chunks of `PREFERRED` need.

    Making room for more would push weights off the device, which costs more time.
    """
    least = forward_bytes(config, shape, dtype, shapes=shapes, chunk=PREFERRED)
    return least + largest_weight(config, dtype) + kept(config, shape, dtype)


def kept(config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, window: int | None = None) -> int:
    """Return the bytes that a run keeps between forwards: a causal model's cache, of `window` frames or the clip's."""
    frames = shape[2] if window is None else min(window, shape[2])
    return cache_bytes(config, shape, frames, dtype) if config.facts.causal else 0


def choose_chunk(
    config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, free: int, *, shapes: Shapes | None = None
) -> int | None:
    """Return the largest of `CHUNKS`, None for all tokens, with which a forward fits `free` bytes, or the smallest."""
    for chunk in (None, *CHUNKS):
        if forward_bytes(config, shape, dtype, shapes=shapes, chunk=chunk) <= USABLE * free:
            return chunk
    return CHUNKS[-1]


def chunk_on(
    device: torch.device,
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    shapes: Shapes | None = None,
    compiled: bool = False,
) -> int | None:
    """Return how many tokens a forward that begins on `device` now projects at once; None for all.

    compiled: whether the blocks are compiled. They are recompiled for each number of chunks, so chunks are used only
    if all tokens do not fit.
    """
    if device.type == "cpu":
        return None if compiled else IN_CACHES
    return choose_chunk(config, shape, dtype, compat.free_memory(device), shapes=shapes)
