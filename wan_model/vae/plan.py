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

    If several devices share the tiles (`runtime.share`), each has as many; raise ValueError if the frame is too small
    for that. The caches of waiting tiles (`TilePlan.parked_bytes`) are assumed to be parked elsewhere.
    """
    stride = config.decoded_stride
    frame = latent_shape[3] * stride, latent_shape[4] * stride
    plan = functools.partial(plan_decode, config, latent_shape, itemsize=itemsize, runtime=runtime)
    return _fit(_tiles(frame, stride, runtime), budget_bytes, lambda tile: plan(tile=tile))


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
    return _fit(_tiles(frame, config.stride, runtime), budget_bytes, lambda tile: plan(tile=tile))


def even_tiles(frame: tuple[int, int], stride: int, devices: int) -> Iterator[tuple[int, int]]:
    """Yield ever smaller tiles, (height, width) in pixels: first one for each device, then two for each, and so on.

    Of those that give as many tiles, the ones with the shortest borders. frame: (height, width) in pixels. stride: the
    side of a latent pixel. Nothing is yielded for a frame that is too small.
    """
    sides = [side // stride for side in frame]
    most = [side * stride // MIN_TILE for side in sides]
    for count in range(devices, most[0] * most[1] + 1, devices):
        cuts = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        tiles = {cut: tile for cut in cuts if (tile := _tile_of(sides, cut, stride)) is not None}
        if tiles:
            yield tiles[min(tiles, key=lambda cut: (cut[0] - 1) * sides[1] + (cut[1] - 1) * sides[0])]


def _tile_of(sides: list[int], cut: tuple[int, int], stride: int) -> tuple[int, int] | None:
    """Return the tile in pixels that cuts a frame of latent pixels into so many rows and columns, or None."""
    tile = [-(-side // count) for side, count in zip(sides, cut, strict=True)]
    is_exact = all(-(-side // part) == count for side, part, count in zip(sides, tile, cut, strict=True))
    smallest = min(side // count for side, count in zip(sides, cut, strict=True)) * stride
    return (tile[0] * stride, tile[1] * stride) if is_exact and smallest >= MIN_TILE else None


def _tiles(frame: tuple[int, int], stride: int, runtime: Runtime) -> list[Tile]:
    """Return the tiles to choose from, the largest first."""
    devices = runtime.share.size
    tiles = list(_ever_smaller(frame, stride) if devices == 1 else even_tiles(frame, stride, devices))
    if not tiles:
        raise ValueError(
            f"A frame of {frame[1]}x{frame[0]} pixels is too small for a tile on each of {devices} devices."
        )
    return tiles


def _fit(tiles: list[Tile], budget: int, plan: Callable[[Tile], TilePlan]) -> Tile:
    if budget <= 0:
        return tiles[-1]
    tile = None
    for tile in tiles:
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
