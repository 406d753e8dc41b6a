"""How much memory is free, and what a forward of the DiT takes beside its weights, all at once or in parts."""

import math
from collections.abc import Sequence

import comfy.model_management
import comfy.model_patcher
import torch

from ...wan_model.dit.model import HEAD_DIM
from ...wan_model.variants import PATCH, TEXT_LENGTH, DiTConfig

CHUNKS = (65536, 32768, 16384, 8192, 4096)  # tokens; below the last one, matrix products lose speed
IN_CACHES = 512  # tokens, on a CPU, whose caches then hold a part: up to a tenth faster than all at once
PREFERRED = 16384  # tokens: with fewer at once an offloaded weight is brought to the device too often
USABLE = 0.9  # of the free memory: the rest is for the backend's workspaces and for what the formula misses


def free(device: torch.device) -> int:
    """Bytes that the host can give on `device`; a newer host counts the weights that it would take off for them."""
    with_weights = getattr(comfy.model_patcher.ModelPatcher, "get_free_memory", None)  # the same for every patcher
    return int(with_weights(None, device) if with_weights else comfy.model_management.get_free_memory(device))


def tokens(shape: Sequence[int]) -> int:
    """Tokens of a latent of `shape` (B, C, F, H, W), whose sides may be odd."""
    return shape[0] * shape[2] * math.ceil(shape[3] / PATCH[1]) * math.ceil(shape[4] / PATCH[2])


def forward_bytes(
    config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, *, contexts: int = 0, chunk: int | None = None
) -> int:
    """The most memory that a forward holds at a time besides weights and input.

    shape: of the latent (B, C, F, H, W). dtype: what it computes in. contexts: VACE contexts. chunk: most tokens that
    are projected at once, or None. Counted from the blocks' code for attention without a matrix of scores, as torch's,
    flash and SageAttention are; the host's split and sub-quadratic ones size themselves by what is free.
    """
    count = tokens(shape)
    part = count if chunk is None else min(chunk, count)
    joined = part < count  # the results of the parts are collected in a tensor of their own
    dim = config.dim * dtype.itemsize
    rotating = 6 if dtype.itemsize < 4 else 4  # rotation is in float32
    phases = (
        # the block's input; of a part: normed, q, k and what makes the second of these
        count * dim * (4 if joined else 1) + part * dim * rotating,
        # the block's input, q, k, v and the result of attention
        count * dim * 5,
        # the block's input, that of cross-attention; of a part: normed, q, and what attention gives and is made of that
        count * dim * (3 if joined else 2) + part * dim * (5 if config.image_tokens else 4),
        # the block's input, that of the feed-forward; of a part: normed, hidden, projected
        count * dim * (3 if joined else 2) + part * (2 * dim + config.ffn_dim * dtype.itemsize),
    )
    controls = count * dim * (contexts + 1) if contexts else 0  # their tokens, and the main ones while theirs run
    context = 3 * shape[0] * (TEXT_LENGTH + config.image_tokens) * dim  # embedded, and a block's keys and values of it
    rotations = count // shape[0] * HEAD_DIM * torch.float32.itemsize
    return max(phases) + controls + context + rotations


def largest_weight(config: DiTConfig, dtype: torch.dtype) -> int:
    """Bytes of the largest weight, of which a copy is made where it is cast or brought to the device."""
    return config.dim * config.ffn_dim * dtype.itemsize


def needed(config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, contexts: int = 0) -> int:
    """What the host should keep free for a forward: as much as chunks of `PREFERRED` need.

    Making room for more would push weights off the device, which costs more time.
    """
    least = forward_bytes(config, shape, dtype, contexts=contexts, chunk=PREFERRED)
    return least + largest_weight(config, dtype)


def choose_chunk(
    config: DiTConfig, shape: Sequence[int], dtype: torch.dtype, free: int, *, contexts: int = 0
) -> int | None:
    """The largest of `CHUNKS`, or None for all tokens at once, with which a forward fits `free` bytes; or the least."""
    for chunk in (None, *CHUNKS):
        if forward_bytes(config, shape, dtype, contexts=contexts, chunk=chunk) <= USABLE * free:
            return chunk
    return CHUNKS[-1]


def chunk_on(
    device: torch.device,
    config: DiTConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    contexts: int = 0,
    compiled: bool = False,
) -> int | None:
    """How many tokens are projected at once by a forward that begins on `device` now; None for all.

    compiled: whether by compiled blocks, which are compiled anew for each number of parts: then only what does not fit
    is done in parts.
    """
    if device.type == "cpu":
        return None if compiled else IN_CACHES
    return choose_chunk(config, shape, dtype, free(device), contexts=contexts)
