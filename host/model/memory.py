"""The chunk size with which a forward of the DiT fits into free memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...wan_model.causal import cache_bytes
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.cost import Shapes, forward_bytes, largest_weight
from .. import compat

CHUNKS = (65536, 32768, 16384, 8192, 4096)  # tokens; below the last one, matrix products lose speed
IN_CACHES = 512  # tokens, on a CPU: a chunk then fits its caches, up to 10% faster than all at once
PREFERRED = 16384  # tokens: with fewer at once, offloaded weights are copied to the device too often
USABLE = 0.9  # of the free memory: the rest is for workspaces of the backend and errors of the formula


class Blocks(NamedTuple):
    """How a causal run is made: latent frames of a block and of its window; in_ram: whether its cache lies in RAM."""

    frames: int
    window: int
    in_ram: bool = False

    def one(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a block of a latent of `shape`."""
        return (*shape[:2], min(self.frames, shape[2]), *shape[3:])


def needed(
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    shapes: Shapes | None = None,
    blocks: Blocks | None = None,
    devices: int = 1,
) -> int:
    """Return the bytes that the host should keep free for a forward: as much as chunks of `PREFERRED` need.

    Making room for more would push weights off the device, which costs more time. blocks: of a causal run. devices:
    that share the forward, of which this is one.
    """
    at_once = shape if blocks is None else blocks.one(shape)
    least = forward_bytes(config, at_once, dtype, shapes=shapes, chunk=PREFERRED, devices=devices)
    return least + largest_weight(config, dtype) + kept(config, shape, dtype, blocks, devices)


def kept(
    config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, blocks: Blocks | None = None, devices: int = 1
) -> int:
    """Return the bytes on the device that a run keeps between forwards: a causal model's cache, as long as the clip.

    blocks: how the run is made, if that is known: its cache is as long as the window. Of one in RAM, what a block of
    the network reads is brought to the device. devices: each keeps the keys and values of its heads.
    """
    if not config.facts.causal:
        return 0
    frames = shape[2] if blocks is None else min(blocks.window, shape[2])
    whole = cache_bytes(config, shape, frames, dtype) * -(-config.heads // devices) // config.heads
    return whole // config.layers if blocks is not None and blocks.in_ram else whole


def in_ram(config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, blocks: Blocks | None) -> int:
    """Return the bytes of a run's cache that lie in RAM though there is a device."""
    if blocks is None or not blocks.in_ram:
        return 0
    return cache_bytes(config, shape, min(blocks.window, shape[2]), dtype)


def fits(
    config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, blocks: Blocks, free: int, devices: int = 1
) -> bool:
    """Return whether a causal run has room for its cache in `free` bytes of each of the `devices` that share it.

    Where it has, weights are offloaded to make the room: they are read once a forward, and so is the cache.
    """
    return needed(config, shape, dtype, blocks=blocks, devices=devices) <= USABLE * free


def choose_chunk(
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    free: int,
    *,
    shapes: Shapes | None = None,
    devices: int = 1,
) -> int | None:
    """Return the largest of `CHUNKS`, None for all tokens, with which a forward fits `free` bytes, or the smallest.

    devices: that share the forward, each with so much free.
    """
    for chunk in (None, *CHUNKS):
        if forward_bytes(config, shape, dtype, shapes=shapes, chunk=chunk, devices=devices) <= USABLE * free:
            return chunk
    return CHUNKS[-1]


def chunk_on(
    device: torch.device,
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    shapes: Shapes | None = None,
    devices: int = 1,
    compiled: bool = False,
) -> int | None:
    """Return how many tokens a forward that begins on `device` now projects at once; None for all.

    devices: that share the forward. compiled: whether the blocks are compiled. They are recompiled for each number of
    chunks, so chunks are used only if all tokens do not fit.
    """
    if device.type == "cpu":
        return None if compiled else IN_CACHES
    return choose_chunk(config, shape, dtype, compat.free_memory(device), shapes=shapes, devices=devices)
