"""Choices of the caller about how a VAE runs; all give the same result up to rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Kernels(NamedTuple):
    """Fused kernels in place of torch's operations.

    activate(x, cache, gamma, buffer, history, top, left): write RMSNorm and SiLU of x into the padded `buffer`, as
    `triton_kernels.activate` does. accepts(x): whether `activate` can read a tensor laid out as x.
    """

    activate: Callable[[Tensor, Tensor | None, Tensor, Tensor, int, int, int], None]
    accepts: Callable[[Tensor], bool]


@dataclass(frozen=True)
class Runtime:
    """Kernels and thresholds for one kind of device.

    product_pixels: a 3x3x3 convolution of at most this many output pixels per sample is one matrix product.
    fold_pixels: from this many input pixels on, upsampling and its convolution are four small convolutions. subchunk:
    frames that pass the layers after the last temporal upsampling together; fewer take less memory.
    """

    kernels: Kernels | None = None
    product_pixels: int = 0
    fold_pixels: int = 512
    subchunk: int = 2


CPU = Runtime(product_pixels=400)  # thresholds measured on two cores
