"""Each fact that tells one Wan model from another, once."""

from dataclasses import dataclass

from .families import FAMILIES, PATCH, TIME_STRIDE, WAN21, WAN22, Family
from .models import VARIANTS, Sampling, Variant
from .text import NEGATIVE_PROMPT, TEXT_LENGTH

__all__ = [
    "FAMILIES",
    "NEGATIVE_PROMPT",
    "PATCH",
    "TEXT_LENGTH",
    "TIME_STRIDE",
    "VARIANTS",
    "WAN21",
    "WAN22",
    "Family",
    "Sampling",
    "VAEConfig",
    "Variant",
]


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of one Wan VAE, all read from its checkpoint.

    version: "2.1" (8x8x4, residual stages) or "2.2" (16x16x4, patchified pixels and averaging shortcuts).
    latent_channels: a key of `FAMILIES`. dim / dec_dim: base width of the encoder and of the decoder.
    """

    version: str
    latent_channels: int
    dim: int
    dec_dim: int

    @property
    def patch(self) -> int:
        """Side in pixels of the squares that the first convolution sees as one pixel."""
        return 2 if self.version == "2.2" else 1

    @property
    def stride(self) -> int:
        """Pixels of video per latent pixel, along height and width."""
        return 8 * self.patch
