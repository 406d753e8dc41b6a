"""IMAGE and MASK inputs for the VAE: checked, scaled to a clip's size, and produced frame by frame."""

from collections.abc import Iterator
from itertools import chain

import comfy.utils
import torch
from torch.nn import functional as F

from ...wan_model.variants import TIME_STRIDE
from ..vae.pixels import USUAL, with_channels
from ..vae.vae import HostVAE, encode

GREY = 0.5  # of [0, 1]: 0 for the VAE, the official filling of unknown frames
MIN_SIDE = 16  # pixels
MAX_STRETCH = 10  # how much wider or narrower than the clip a picture may be
UNMENTIONED = 0.05  # fraction of a picture that may be cropped without a note


def check(images: torch.Tensor, title: str, width: int, height: int) -> None:
    """Raise ValueError if `images` (N, H, W, C) cannot be frames of a clip of width x height.

    There must be at least one, in grey, RGB or RGBA, with long enough sides and similar proportions.
    title: name of the input for the message, such as "start_image of WanConditioning".
    """
    frames, rows, columns, channels = images.shape
    if frames == 0 or channels not in USUAL:
        raise ValueError(
            f"{title} has {frames} frames of {channels} channels, it takes 1 or more of 1, 3 or 4: connect RGB images."
        )
    stretch = columns * height / (rows * width)
    if min(rows, columns) < MIN_SIDE or not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        raise ValueError(
            f"{title} is {columns}x{rows} pixels and the clip {width}x{height}: a picture needs sides of at least "
            f"{MIN_SIDE} pixels and nearly the clip's proportions. Crop or scale it before this node."
        )


def rgb(images: torch.Tensor, title: str, width: int, height: int) -> torch.Tensor:
    """Return `images` as RGB (N, H, W, 3) without a copy: grey is repeated, alpha is dropped. Raise as `check`."""
    check(images, title, width, height)
    return with_channels(images, 3)


def cropping_notes(title: str, images: torch.Tensor | None, width: int, height: int) -> list[str]:
    """Return a note on how much `fit` crops of `images` (N, H, W, C), in a list that is empty if it is little."""
    if images is None:
        return []
    rows, columns = images.shape[1:3]
    ratio = columns * height / (rows * width)
    part = 1 - min(ratio, 1 / ratio)
    if part <= UNMENTIONED:
        return []
    side = "left and right" if ratio > 1 else "top and bottom"
    return [f"{title} is {columns}x{rows}: {part:.0%} of it, at its {side}, is outside the clip"]


def fit(images: torch.Tensor, width: int, height: int) -> Iterator[torch.Tensor]:
    """Yield pieces (1, C, t, height, width) of frames (N, H, W, C), scaled to cover the clip and centre-cropped.

    The scaling is the host's own, as its Wan nodes do it.
    """
    for piece in images.split(TIME_STRIDE):
        scaled = comfy.utils.common_upscale(piece.movedim(-1, 1), width, height, "bilinear", "center")
        yield scaled.movedim(0, 1).unsqueeze(0)  # (t, C, H, W) -> (1, C, t, H, W)


def fit_inside(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return one frame (H, W, 3) as (1, 3, 1, height, width), uncropped on white (`prepare_source` of wan/vace.py)."""
    rows, columns = image.shape[:2]
    if columns * height > rows * width:
        rows, columns = rows * width // columns, width
    else:
        rows, columns = height, columns * height // rows
    canvas = image.new_ones(1, 3, 1, height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    scaled = F.interpolate(image.movedim(-1, 0).unsqueeze(0), size=(rows, columns), mode="bilinear")
    canvas[:, :, 0, top : top + rows, left : left + columns] = scaled
    return canvas


def fill(value: float, frames: int, shape: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    """Yield pieces (1, C, t, H, W) of `frames` frames of one `value`; shape: (C, H, W)."""
    channels, height, width = shape
    for done in range(0, frames, TIME_STRIDE):
        yield torch.full((1, channels, min(TIME_STRIDE, frames - done), height, width), value)


def encode_pieces(vae, pieces: Iterator[torch.Tensor], frames: int, tile) -> torch.Tensor:
    """Return the latent (1, C, t, h, w) of a clip of `frames` frames that comes in pieces (1, 3, t, H, W) in [0, 1].

    A VAE of this pack encodes piece by piece; the host's own needs the whole clip. tile: as in `HostVAE.decode`.
    """
    first = next(pieces)
    pieces = chain([first], pieces)
    if isinstance(vae, HostVAE):
        chunks = (with_channels(piece.movedim(1, -1), vae.output_channels).movedim(-1, 1) for piece in pieces)
        return torch.cat(list(vae.encode_chunks(chunks, (1, 3, frames, *first.shape[-2:]), tile)), dim=2)
    whole = torch.cat(list(pieces), dim=2)  # (1, 3, T, H, W)
    return encode(vae, whole[0].movedim(0, -1), tile)  # (T, H, W, 3)
