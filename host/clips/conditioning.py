"""Conditionings for given frames: the official constructions, in the host's conventions."""

from dataclasses import dataclass
from itertools import chain

import comfy.latent_formats
import node_helpers
import torch
from einops import repeat

from ...wan_model import geometry
from ...wan_model.messages import Message
from ...wan_model.variants import FAMILIES, TIME_STRIDE
from ..messages import latents
from ..vae.vae import latent_shape
from . import images


@dataclass(frozen=True)
class Clip:
    """A new clip: width and height (pixels), length (frames), and the shape of its latent."""

    width: int
    height: int
    length: int
    latent: tuple[int, int, int, int, int]

    @property
    def held(self) -> bool:
        """Whether the model of this clip's family keeps the given frames in the latent itself (5B)."""
        return FAMILIES[self.latent[1]].holds_frames

    def __str__(self):
        return f"{self.width}x{self.height}, {self.length} frames = {self.latent[2]} latent frames"


def new_clip(vae, width: int, height: int, length: int, batch: int) -> Clip:
    """Return the clip nearest below the asked size that `vae` and its model can make.

    Sides are multiples of a token, 16 pixels for Wan 2.1 and A14B and 32 for the 5B; lengths are 4n+1. Raise
    ValueError if a size is out of range, and for a VAE that is not a Wan VAE.
    """
    geometry.check_side("width", width)
    geometry.check_side("height", height)
    geometry.check_length(length)
    length, step = geometry.snap_length(length), FAMILIES[vae.latent_channels].side_step
    if min(width, height) < step:
        raise ValueError(
            f"The clip is {width}x{height} pixels and sides of {latents(vae.latent_channels)} start at {step}: choose "
            "a larger width and height."
        )
    width, height = width // step * step, height // step * step
    return Clip(width, height, length, latent_shape(vae, batch, length, height, width))


def check_frames(clip: Clip, start: torch.Tensor | None, end: torch.Tensor | None) -> None:
    """Raise ValueError if the start and end frames (N, H, W, C) do not fit into the clip."""
    counts = [0 if images is None else images.shape[0] for images in (start, end)]
    if end is not None:
        check_end_image(clip.latent[1])
    if sum(counts) > clip.length:
        raise ValueError(
            f"WanConditioning has {counts[0]} start and {counts[1]} end frames, the clip has {clip.length}: raise "
            "length or connect fewer frames."
        )


def check_end_image(channels: int) -> None:
    """Raise ValueError if no model of a VAE with `channels` latent channels takes an end image."""
    if FAMILIES[channels].holds_frames:
        raise ValueError(
            Message(
                "end_image_5b",
                "WanConditioning has an end_image and the VAE of Wan 2.2 5B, a model that holds first frames only: "
                "disconnect end_image, or use an A14B or 2.1 image-to-video model with its VAE.",
            )
        )


def concat_entries(vae, clip: Clip, start: torch.Tensor | None, end: torch.Tensor | None, tile) -> dict:
    """Return the conditioning entries for the image-to-video models of Wan 2.1 and A14B, from RGB frames (N, H, W, 3).

    The image latent (1, 16, T, h, w) encodes the start frames, then grey, then the end frames (`image2video.py`,
    `first_last_frame2video.py`). Frames are encoded as they are made, so the whole clip is never in memory.
    """
    size = (clip.width, clip.height)
    counts = [0 if images is None else images.shape[0] for images in (start, end)]
    pieces = chain(
        () if start is None else images.fit(start, *size),
        images.fill(images.GREY, clip.length - sum(counts), (3, clip.height, clip.width)),
        () if end is None else images.fit(end, *size),
    )
    return {
        "concat_latent_image": images.encode_pieces(vae, pieces, clip.length, tile),
        "concat_mask": concat_mask(clip, *counts),
    }


def concat_mask(clip: Clip, start: int, end: int) -> torch.Tensor:
    """Return a mask (1, 4, T, h, w) that is 1 where a frame is unknown.

    This is the host's convention, the reverse of the official one. The four channels of a latent frame are its four
    video frames; the first latent frame repeats its only one.
    """
    unknown = torch.ones(clip.length)
    unknown[:start] = 0
    unknown[clip.length - end :] = 0
    slots = torch.cat((unknown[:1].expand(TIME_STRIDE - 1), unknown))
    return repeat(slots, "(t s) -> 1 s t h w", s=TIME_STRIDE, h=clip.latent[3], w=clip.latent[4])


def held_latent(vae, clip: Clip, start: torch.Tensor, tile) -> dict:
    """Return a LATENT for the 5B that starts with the RGB frames `start` (N, H, W, 3) and holds them.

    As `textimage2video.py`. The frames to sample are zero in model space. The first 4n+1 start frames are used.
    """
    frames = geometry.snap_length(start.shape[0])
    known = images.encode_pieces(vae, images.fit(start[:frames], clip.width, clip.height), frames, tile)
    samples = comfy.latent_formats.Wan22().process_out(torch.zeros(clip.latent))
    samples[:, :, : known.shape[2]] = known
    mask = torch.ones(clip.latent[0], 1, *clip.latent[2:])
    mask[:, :, : known.shape[2]] = 0
    return {"samples": samples, "noise_mask": mask}


def clip_vision_entries(output, batch: int) -> dict:
    """Return the conditioning entry of a CLIP_VISION_OUTPUT; raise ValueError if its batch is neither 1 nor `batch`."""
    count = output.penultimate_hidden_states.shape[0]
    if count not in (1, batch):
        raise ValueError(
            f"clip_vision_output of WanConditioning holds {count} separate pictures and batch_size is {batch}: encode "
            "the first and the last frame with one WanClipVision node."
        )
    return {"clip_vision_output": output}


def with_entries(conditioning: list, entries: dict, append: bool = False) -> list:
    """Return a copy of the CONDITIONING with `entries` set, or appended to lists that are there."""
    return node_helpers.conditioning_set_values(conditioning, entries, append=append)
