"""Choices of the caller about how a VAE runs; all give the same result up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from .rect import Rect


class Kernels(NamedTuple):
    """Fused kernels in place of torch's operations.

    activate(x, cache, gamma, buffer, history, top, left): write RMSNorm and SiLU of x into the padded `buffer`, as
    `triton_kernels.activate` does. accepts(x): whether `activate` can read a tensor laid out as x.
    """

    activate: Callable[[Tensor, Tensor | None, Tensor, Tensor, int, int, int], None]
    accepts: Callable[[Tensor], bool]


@dataclass(frozen=True)
class Whole:
    """All tiles on one device; `wan_model.parallel` has the other kind."""

    @property
    def size(self) -> int:
        """How many devices share the tiles."""
        return 1

    def own(self, tiles: Sequence) -> list:
        """Return those of the `tiles` of a frame that this device runs."""
        return list(tiles)

    def gather(self, output: list[Tensor], cores: Sequence[Rect], frame: Rect) -> list[Tensor]:
        """Return whole frames from `output`, (B, C, T, H, W) on `frame`, of which each device has its own `cores`.

        The devices that return none have sent theirs to the one that does.
        """
        return output


@dataclass(frozen=True)
class Runtime:
    """Kernels and thresholds for one kind of device.

    product_pixels: a 3x3x3 convolution of at most this many output pixels per sample is one matrix product.
    fold_pixels: from this many input pixels on, upsampling and its convolution are four small convolutions. subchunk:
    frames that pass the layers after the last temporal upsampling together; fewer take less memory. share: which tiles
    this device runs.
    """

    kernels: Kernels | None = None
    product_pixels: int = 0
    fold_pixels: int = 512
    subchunk: int = 2
    share: Whole = Whole()


CPU = Runtime(product_pixels=400)  # thresholds measured on two cores
