"""Conversion of images to the channels of a VAE."""

import torch
from torch.nn import functional as F

USUAL = (1, 3, 4)  # grey, RGB, RGBA


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Return images (..., 1, 3 or 4) in [0, 1] with 3 or 4 `channels`, without a copy unless alpha is added.

    Grey is repeated, a missing alpha is opaque, a surplus one is dropped. Raise ValueError for other images.
    """
    given = images.shape[-1]
    if given not in USUAL:
        raise ValueError(
            f"The images have {given} channels and the VAE takes 1 (grey), 3 (RGB) or 4 (RGBA): connect RGB images."
        )
    colours = images.expand(*images.shape[:-1], 3) if given == 1 else images[..., :channels]
    missing = channels - colours.shape[-1]
    return F.pad(colours, (0, missing), value=1.0) if missing else colours
