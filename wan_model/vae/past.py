"""The caches that a stream leaves behind, from which another goes on with the same clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import VAEConfig
from .convolution import Cache
from .rect import Rect, Span

Numbers = list  # nested lists of integers and None, which JSON can hold


@dataclass(frozen=True)
class Past:
    """The causal caches that a stream left.

    A value: several streams can go on from one. clip: what both streams must have in common (`clip_of`). whole: caches
    of the blocks before and after the tiles. tiles: each tile's rectangle and caches.
    """

    clip: tuple
    whole: tuple[tuple[Cache, ...], tuple[Cache, ...]] = field(repr=False)
    tiles: tuple[tuple[Rect, tuple[Cache, ...]], ...] = field(repr=False)

    def tensors(self) -> tuple[dict[str, Tensor], Numbers]:
        """Return the caches by name, and the numbers with which `from_tensors` reads them."""
        runs = (*self.whole, *(caches for _, caches in self.tiles))
        named = {
            f"{run}.{block}.{index}": tensor
            for run, caches in enumerate(runs)
            for block, cache in enumerate(caches)
            for index, tensor in enumerate(cache or ())
        }
        counts = [[None if cache is None else len(cache) for cache in caches] for caches in runs]
        return named, [counts, [_numbers(rect) for rect, _ in self.tiles]]


def from_tensors(clip: tuple, tensors: Mapping[str, Tensor], numbers: Numbers) -> Past:
    """Return the `Past` of `clip` from what `Past.tensors` returned."""
    counts, rects = numbers
    before, after, *tiles = (
        tuple(_cache(tensors, f"{run}.{block}", count) for block, count in enumerate(blocks))
        for run, blocks in enumerate(counts)
    )
    spans = ((Span(*rect[:3]), Span(*rect[3:])) for rect in rects)
    return Past(clip, (before, after), tuple((Rect(*pair), caches) for pair, caches in zip(spans, tiles, strict=True)))


def clip_of(config: VAEConfig, shape: Sequence[int | None], dtype: torch.dtype) -> tuple:
    """Return what the streams of one clip have in common. shape: (B, C, any number of frames, h, w) of the latent."""
    return config, shape[0], shape[3], shape[4], dtype


def check_past(past: Past | None, clip: tuple) -> None:
    """Raise ValueError if a decode of `clip` cannot go on from `past`."""
    if past is None or past.clip == clip:
        return
    names = ("VAE", "batch size", "height in latent pixels", "width in latent pixels", "dtype")
    name, before, now = next(each for each in zip(names, past.clip, clip, strict=True) if each[1] != each[2])
    raise ValueError(
        f"This decode goes on from one of another {name}: {before} before, {now} now. Begin anew, or decode both the "
        "same way."
    )


def _cache(tensors: Mapping[str, Tensor], name: str, count: int | None) -> Cache:
    return None if count is None else tuple(tensors[f"{name}.{index}"] for index in range(count))


def _numbers(rect: Rect) -> list[int]:
    return [number for span in (rect.rows, rect.cols) for number in (span.lo, span.hi, span.size)]
