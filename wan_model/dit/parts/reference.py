"""A reference image as one frame of tokens before the clip (VideoX-Fun, `wan_transformer3d.py`, `ref_conv`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...variants import PATCH
from ..config import DiTConfig
from ..cost import clip_tokens
from ..sequence import Stream, to_tokens
from .base import Part


@dataclass(frozen=True)
class Reference(Part):
    """A convolution of its own for the latent of a reference image, of so many channels."""

    name = "reference"
    mark = "ref_conv.weight"
    conditions = ("ref_latent",)

    channels: int = 16

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("ref_conv.weight", 1))

    def build(self, network, config, ops, **factory):
        network.ref_conv = ops.Conv2d(self.channels, config.dim, kernel_size=PATCH[1:], stride=PATCH[1:], **factory)

    def check(self, config, given, x):
        if "ref_latent" in given:
            check_reference(config, given["ref_latent"], self.channels)

    def prepare(self, network, draft):
        """Put `ref_latent` (B, C, 1, H, W) before the clip as rotary frame 0, which moves the clip on by one frame."""
        latent = draft.given.get("ref_latent")
        if latent is None:
            return
        embedded = network.ref_conv(network.pad_to_patch(latent.to(draft.x))[:, :, 0]).unsqueeze(2)  # (B, dim, 1, h, w)
        draft.front.append(Stream(to_tokens(embedded), (draft.place(tuple(embedded.shape[2:])),)))
        draft.first_frame += 1

    def extra_tokens(self, shape, shapes):
        return clip_tokens((1, *shapes["ref_latent"][1:])) if "ref_latent" in shapes else 0


def check_reference(config: DiTConfig, latent: Tensor, channels: int) -> None:
    """Raise ValueError if `latent` is not that of one image, (B, channels, 1, H, W)."""
    if latent.ndim != 5 or latent.shape[1] != channels or latent.shape[2] != 1:
        raise ValueError(
            f"The reference latent is {tuple(latent.shape)}, this {config.variant} model takes (batch, "
            f"{channels}, 1, height, width): encode one image with the VAE of the model."
        )
