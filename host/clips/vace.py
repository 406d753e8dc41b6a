"""VACE contexts: control video, mask and reference pictures as the official code lays them out (`wan/vace.py`)."""

from collections.abc import Iterator
from itertools import chain

import comfy.latent_formats
import torch
from einops import rearrange

from ...wan_model.messages import Message
from ...wan_model.variants import WAN21
from ..messages import latents
from . import images
from .conditioning import Clip

SQUARE = 8  # pixels of one latent pixel: their 64 mask values are channels of the context


def check_vae(channels: int) -> None:
    """Raise ValueError if a VAE with `channels` latent channels is not the one of the VACE models."""
    if channels != WAN21.channels:
        raise ValueError(
            Message(
                "vace_vae",
                "WanVACE works on {wanted} and the VAE makes {made}: load wan_2.1_vae in WanVAELoader.",
                wanted=latents(WAN21.channels),
                made=latents(channels),
            )
        )


def frame_masks(mask: torch.Tensor | None, video: torch.Tensor | None, clip: Clip) -> torch.Tensor:
    """Return `mask` (N, H, W) or (H, W) as one mask (N, H, W, 1) for each frame of `video`, or of the clip without one.

    A single mask applies to all frames; no mask means 1 everywhere. Raise ValueError if there are neither one mask nor
    as many as frames, and for masks that `images.check` refuses.
    """
    frames = clip.length if video is None else video.shape[0]
    if mask is None:
        mask = torch.ones(1, 1, 1).expand(1, clip.height, clip.width)
    mask = mask.reshape(-1, *mask.shape[-2:], 1)  # (N, H, W, 1)
    images.check(mask, "control_mask of WanVACE", clip.width, clip.height)
    if mask.shape[0] not in (1, frames):
        what = "the clip" if video is None else "control_video"
        raise ValueError(
            f"control_mask of WanVACE has {mask.shape[0]} frames and {what} {frames}: give one mask for all frames or "
            "one for each."
        )
    return mask.expand(frames, -1, -1, -1)


def length_notes(clip: Clip, video: torch.Tensor | None) -> list[str]:
    """Return a note if the control video (N, H, W, C) is shorter or longer than the clip, else an empty list."""
    frames = clip.length if video is None else video.shape[0]
    if frames == clip.length:
        return []
    if frames > clip.length:
        return [f"control_video has {frames} frames, the last {frames - clip.length} are left out"]
    return [f"control_video has {frames} frames, the other {clip.length - frames} are free"]


def check_previous(conditioning: list, clip: Clip, references: int) -> None:
    """Raise ValueError if an earlier WanVACE of the chain made a context of another size."""
    size = (clip.latent[2] + references, *clip.latent[3:])
    for _, entries in conditioning:
        for context in entries.get("vace_frames", ()):
            if tuple(context.shape[2:]) != size:
                raise ValueError(
                    f"This WanVACE makes a context of {size} latent frames, rows and columns and the one before it "
                    f"{tuple(context.shape[2:])}: give both the same width, height, length and number of references."
                )


def context_entries(vae, clip: Clip, video, mask, references: list[torch.Tensor], strength: float, tile) -> dict:
    """Return the conditioning entries of one context, as lists to which further contexts are appended.

    video: RGB frames (N, H, W, 3), cut or padded with grey to the clip's length; None for all grey. mask: its
    `frame_masks`, 1 where the clip is generated and 0 where the video is kept.
    references: RGB pictures (H, W, 3), one latent frame each before the clip.
    """

    def encode(keep):
        return images.encode_pieces(vae, split_pieces(clip, video, mask, keep), clip.length, tile)

    inactive = encode(keep=True)
    reactive = inactive if video is None else encode(keep=False)
    frames = torch.cat((inactive, reactive), dim=1)  # (1, 32, T, h, w)
    masks = context_mask(clip, mask)
    if references:
        known = torch.cat([encode_reference(vae, clip, picture, tile) for picture in references], dim=2)
        nothing = comfy.latent_formats.Wan21().process_out(torch.zeros_like(known))
        frames = torch.cat((torch.cat((known, nothing), dim=1), frames), dim=2)
        masks = torch.cat((masks.new_zeros(*masks.shape[:2], len(references), *masks.shape[3:]), masks), dim=2)
    return {"vace_frames": [frames], "vace_mask": [masks], "vace_strength": [strength]}


def encode_reference(vae, clip: Clip, picture: torch.Tensor, tile) -> torch.Tensor:
    """Return the latent (1, 16, 1, h, w) of a picture (H, W, 3) alone."""
    frame = images.fit_inside(picture, clip.width, clip.height)
    return images.encode_pieces(vae, iter([frame]), 1, tile)


def split_pieces(clip: Clip, video, mask, keep: bool) -> Iterator[torch.Tensor]:
    """Yield pieces (1, 3, t, H, W) of the control video, grey where the clip is generated (`keep`), or else."""
    for piece, unknown in zip(pieces_of(clip, video, 3, images.GREY), pieces_of(clip, mask, 1, 1.0), strict=True):
        unknown = unknown.to(piece.device)  # pictures may be on the GPU, the padding is not
        part = 1 - unknown if keep else unknown
        yield (piece - images.GREY) * part + images.GREY


def pieces_of(clip: Clip, frames, channels: int, filling: float) -> Iterator[torch.Tensor]:
    """Yield frames (N, H, W, C) or None in pieces (1, C, t, H, W), cut or padded to the clip's length."""
    count = 0 if frames is None else min(frames.shape[0], clip.length)
    return chain(
        images.fit(frames[:count], clip.width, clip.height) if count else (),
        images.fill(filling, clip.length - count, (channels, clip.height, clip.width)),
    )


def context_mask(clip: Clip, mask) -> torch.Tensor:
    """Return the mask (1, 64, T, h, w): each latent frame takes the mask of one video frame.

    It is the frame in the middle of its share of the clip, as the official nearest-exact interpolation picks it.
    """
    latent_frames = clip.latent[2]
    picked = {(2 * index + 1) * clip.length // (2 * latent_frames) for index in range(latent_frames)}
    frames = (frame for piece in pieces_of(clip, mask, 1, 1.0) for frame in piece[0, 0])
    kept = torch.stack([frame.cpu() for index, frame in enumerate(frames) if index in picked])  # (T, H, W)
    return rearrange(kept, "t (h p) (w q) -> 1 (p q) t h w", p=SQUARE, q=SQUARE)


def pictures_of(frames: torch.Tensor, mask: torch.Tensor) -> int:
    """Return how many reference pictures a context (B, 32, T, h, w) with its mask (B, 64, T, h, w) begins with.

    What is to be generated of a picture is zero for the model, which no video is, and its mask is 0.
    """
    nothing = comfy.latent_formats.Wan21().process_out(torch.zeros_like(frames[:1, :16, :1, :1, :1]))
    empty = (frames[:, 16:] - nothing).abs().amax(dim=(0, 1, 3, 4)) < 1e-5  # (T,)
    kept = mask.amax(dim=(0, 1, 3, 4)).to(empty.device) == 0
    return int((empty & kept).cumprod(0).sum())


def keep_first(frames: torch.Tensor, mask: torch.Tensor, known: torch.Tensor, grey: torch.Tensor, size) -> tuple:
    """Return a context and its mask with the latents `known` (B, 16, k, h, w) in front of the clip, to be kept.

    frames, mask: as in `pictures_of`; the pictures stay in front. grey: latents (B, 16, k or more, h, w) of grey.
    Raise ValueError if the context is not of `size` (frames, rows, columns) behind its pictures.
    """
    pictures = pictures_of(frames, mask)
    found = (frames.shape[2] - pictures, *frames.shape[3:])
    if found != size:
        raise ValueError(
            f"The VACE context is {found} latent frames, rows and columns and this part {size}: give WanVACE the "
            "length of WanContinue and the size of the clip."
        )
    place, batch = slice(pictures, pictures + known.shape[2]), len(known)
    frames, mask = (each.expand(batch, -1, -1, -1, -1).to(known).clone() for each in (frames, mask))
    frames[:, :, place] = torch.cat((known, grey[:, :, : known.shape[2]]), dim=1)
    mask[:, :, place] = 0
    return frames, mask
