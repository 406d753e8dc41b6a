"""The cost of a decode or encode, before any weight is loaded, and the tiles that fit a memory budget."""

import functools
from collections.abc import Callable, Iterator

import torch

from .config import VAEConfig
from .model import Shape, WanVAE, decode_plan, encode_plan, make_vae
from .runtime import CPU, Runtime
from .tiling import MIN_TILE, TilePlan

Tile = tuple[int, int] | None


def plan_decode(
    config: VAEConfig, latent_shape: Shape, tile: Tile, itemsize: int | torch.dtype, runtime: Runtime = CPU
) -> TilePlan:
    """Return the plan of decoding a latent (B, C, F, H, W) in tiles of (height, width) pixels, None for whole frames.

    F is None if the length is not known before the end. itemsize: bytes in a number, or the dtype. Raise ValueError
    if the tile is too small.
    """
    return decode_plan(_weightless(config), latent_shape, tile, _bytes(itemsize), runtime)


def plan_encode(
    config: VAEConfig, video_shape: Shape, tile: Tile, itemsize: int | torch.dtype, runtime: Runtime = CPU
) -> TilePlan:
    """Return the plan of encoding a video (B, C, T, H, W) in tiles of (height, width) pixels, None for whole frames.

    T is None if the length is not known before the end. itemsize: bytes in a number, or the dtype. Raise ValueError
    if the tile is too small.
    """
    return encode_plan(_weightless(config), video_shape, tile, _bytes(itemsize), runtime)


def fit_decode(
    config: VAEConfig,
    latent_shape: Shape,
    budget_bytes: int,
    itemsize: int | torch.dtype,
    runtime: Runtime = CPU,
) -> Tile:
    """Return the largest tile whose peak memory fits the budget, None for whole frames, the smallest if none fits.

    The caches of waiting tiles (`TilePlan.parked_bytes`) are assumed to be parked elsewhere.
    """
    stride = config.decoded_stride
    frame = latent_shape[3] * stride, latent_shape[4] * stride
    return _fit(frame, stride, budget_bytes, lambda tile: plan_decode(config, latent_shape, tile, itemsize, runtime))


def fit_encode(
    config: VAEConfig,
    video_shape: Shape,
    budget_bytes: int,
    itemsize: int | torch.dtype,
    runtime: Runtime = CPU,
) -> Tile:
    """Return what `fit_decode` returns, for encoding a video (B, C, T, H, W)."""
    frame = video_shape[3], video_shape[4]
    plan = functools.partial(plan_encode, config, video_shape, itemsize=itemsize, runtime=runtime)
    return _fit(frame, config.stride, budget_bytes, lambda tile: plan(tile=tile))


def _fit(frame: tuple[int, int], stride: int, budget: int, plan: Callable[[Tile], TilePlan]) -> Tile:
    if budget <= 0:
        return list(_ever_smaller(frame, stride))[-1]
    tile = None
    for tile in _ever_smaller(frame, stride):
        if plan(tile).peak_bytes <= budget:
            break
    return tile


def _ever_smaller(frame: tuple[int, int], stride: int) -> Iterator[Tile]:
    """Yield None for whole frames, then tiles with one more cut each time, across the longer side."""
    yield None
    rows = cols = 1
    while True:
        height, width = (-(-side // stride // n) * stride for side, n in zip(frame, (rows, cols), strict=True))
        rows, cols = (rows + 1, cols) if height > width else (rows, cols + 1)
        height, width = (-(-(side // stride) // n) * stride for side, n in zip(frame, (rows, cols), strict=True))
        if min(height, width) < MIN_TILE:
            return
        yield height, width


def _bytes(itemsize: int | torch.dtype) -> int:
    return itemsize.itemsize if isinstance(itemsize, torch.dtype) else itemsize


@functools.lru_cache(maxsize=8)
def _weightless(config: VAEConfig) -> WanVAE:
    return make_vae(config, device="meta")
