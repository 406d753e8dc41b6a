"""What a decode or encode will cost, before any weight is loaded, and the tiles that fit a memory budget."""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from ..variants import VAEConfig
from .model import WanVAE, decode_plan, encode_plan, make_vae
from .tiling import MIN_TILE, TilePlan

Tile = tuple[int, int] | None


def plan_decode(config: VAEConfig, latent_shape: Sequence[int], tile: Tile, itemsize: int | torch.dtype) -> TilePlan:
    """The plan of decoding a latent (B, C, F, H, W) in tiles of (height, width) pixels, or None for whole frames.

    itemsize: bytes in a number, or the dtype. Raises ValueError where the tile is too small.
    """
    return decode_plan(_weightless(config), latent_shape, tile, _bytes(itemsize))


def plan_encode(config: VAEConfig, video_shape: Sequence[int], tile: Tile, itemsize: int | torch.dtype) -> TilePlan:
    """The plan of encoding a video (B, 3, T, H, W) in tiles of (height, width) pixels, or None for whole frames.

    T is None where the length is not known before the end. itemsize: bytes in a number, or the dtype. Raises ValueError
    where the tile is too small.
    """
    return encode_plan(_weightless(config), video_shape, tile, _bytes(itemsize))


def fit_decode(config: VAEConfig, latent_shape: Sequence[int], budget_bytes: int, itemsize: int | torch.dtype) -> Tile:
    """The largest tile whose peak memory fits the budget: None where whole frames do, the smallest where nothing does.

    The caches of waiting tiles (`TilePlan.parked_bytes`) are taken to be parked elsewhere.
    """
    stride = config.stride
    frame = latent_shape[3] * stride, latent_shape[4] * stride
    return _fit(frame, stride, budget_bytes, lambda tile: plan_decode(config, latent_shape, tile, itemsize))


def fit_encode(config: VAEConfig, video_shape: Sequence[int], budget_bytes: int, itemsize: int | torch.dtype) -> Tile:
    """As `fit_decode`, for a video (B, 3, T, H, W)."""
    frame = video_shape[3], video_shape[4]
    return _fit(frame, config.stride, budget_bytes, lambda tile: plan_encode(config, video_shape, tile, itemsize))


def _fit(frame: tuple[int, int], stride: int, budget: int, plan: Callable[[Tile], TilePlan]) -> Tile:
    tile = None
    for tile in _ever_smaller(frame, stride):
        if plan(tile).peak_bytes <= budget:
            break
    return tile


def _ever_smaller(frame: tuple[int, int], stride: int) -> Iterator[Tile]:
    """Whole frames, then tiles with one cut more at a time, always across the longer side."""
    yield None
    rows = cols = 1
    while True:
        height, width = (-(-side // stride // n) * stride for side, n in zip(frame, (rows, cols), strict=True))
        rows, cols = (rows + 1, cols) if height > width else (rows, cols + 1)
        tile = tuple(-(-(side // stride) // n) * stride for side, n in zip(frame, (rows, cols), strict=True))
        if min(tile) < MIN_TILE:
            return
        yield tile


def _bytes(itemsize: int | torch.dtype) -> int:
    return itemsize.itemsize if isinstance(itemsize, torch.dtype) else itemsize


@functools.lru_cache(maxsize=8)
def _weightless(config: VAEConfig) -> WanVAE:
    return make_vae(config, device="meta")
