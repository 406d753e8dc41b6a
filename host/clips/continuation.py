"""The next part of a clip: what its model is given of the frames so far, in latents, so nothing is encoded again.

The end of the clip is given as each model takes it (`Variant.continues`). The frames that a part shares with the clip
before it are in front of the part, and are cut off when the two are joined.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ...wan_model import geometry
from ...wan_model.dit.parts.motion import LATENT_FRAMES as MOTION_FRAMES
from ...wan_model.variants import FAMILIES, TIME_STRIDE
from ..messages import latents
from ..vae import vae as host_vae
from . import images
from . import vace as host_vace

VACE = ("vace_frames", "vace_mask")


@dataclass(frozen=True)
class Part:
    """The next part of a clip.

    previous: latent so far (B, C, T, h, w); T is 0 at the beginning. frames: latent frames of the part, the shared ones
    included. shared: how many of them repeat the last ones of `previous`. anchor: latent (1 or B, C, 1, h, w) of the
    frame that every part is to look like, or None. vae: or None. tile: as in `HostVAE.encode`.
    """

    previous: torch.Tensor
    frames: int
    shared: int
    anchor: torch.Tensor | None = None
    vae: object = None
    tile: tuple[int, int] = host_vae.AUTO

    @property
    def first(self) -> int:
        """The place of the part's first frame in the clip, in latent frames."""
        return self.previous.shape[2] - self.shared

    @property
    def end(self) -> torch.Tensor:
        """The shared frames (B, C, shared, h, w)."""
        return self.previous[:, :, self.first :]

    def empty(self, frames: int) -> torch.Tensor:
        """Return latents (B, C, frames, h, w) that are zero for the model."""
        batch, channels, _, height, width = self.previous.shape
        mean = self.previous.new_tensor(FAMILIES[channels].mean).view(1, -1, 1, 1, 1)
        return mean.expand(batch, channels, frames, height, width).clone()

    def mask(self, known: int) -> torch.Tensor:
        """Return a mask (1, 4, frames, h, w) that is 0 in the first `known` frames and 1 in the others."""
        mask = self.previous.new_ones(1, TIME_STRIDE, self.frames, *self.previous.shape[3:])
        mask[:, :, :known] = 0
        return mask

    def grey(self, frames: int) -> torch.Tensor:
        """Return the latent (B, C, frames, h, w) of a grey clip; raise ValueError without its VAE."""
        batch, channels, _, height, width = self.previous.shape
        if self.vae is None:
            raise ValueError("WanContinue fills empty frames with grey: connect the model's VAE to its vae.")
        if self.vae.latent_channels != channels:
            raise ValueError(
                f"previous of WanContinue is {latents(channels)} and vae makes {latents(self.vae.latent_channels)}: "
                "connect the VAE of the model's family."
            )
        stride, length = FAMILIES[channels].stride, geometry.video_frames(frames)
        pieces = images.fill(images.GREY, length, (3, height * stride, width * stride))
        grey = images.encode_pieces(self.vae, pieces, length, self.tile).to(self.previous)
        return grey.expand(batch, -1, -1, -1, -1)


@dataclass(frozen=True)
class Way:
    """A way to give a model the end of a clip.

    shared: how many latent frames, unless asked otherwise. entries: (part, entries of a conditioning) -> entries to
    set. leads: frames of the part that are in front of the shared ones. extra: entries of a conditioning -> frames in
    front of the part.
    """

    shared: int
    entries: Callable[[Part, Mapping], dict]
    leads: int = 0
    extra: Callable[[Mapping], int] = lambda given: 0


def anchored(part: Part, given: Mapping) -> dict:
    """Return the image latent of SVI 2.0 Pro: anchor, last latents, zeros (`wan_video_svi_pro.py` of its authors).

    The mask marks the anchor alone. It is the clip's first frame unless another one is given.
    """
    anchor = part.previous[:, :, :1] if part.anchor is None else part.anchor.to(part.previous)
    known = torch.cat((anchor.expand(len(part.previous), -1, -1, -1, -1), part.end), dim=2)
    image = torch.cat((known, part.empty(part.frames - known.shape[2])), dim=2)
    return {"concat_latent_image": image, "concat_mask": part.mask(1)}


def imaged(part: Part, given: Mapping) -> dict:
    """Return the image latent of a plain image-to-video model: the last latents, then grey, as the mask says."""
    image = torch.cat((part.end, part.grey(part.frames)[:, :, part.shared :]), dim=2)
    return {"concat_latent_image": image, "concat_mask": part.mask(part.shared)}


def held(part: Part, given: Mapping) -> dict:
    """Return no entry: the model holds the last latents in the latent itself."""
    return {}


def context(part: Part, given: Mapping) -> dict:
    """Return the VACE contexts, the first of them with the last latents in front, to be kept (`wan/vace.py`)."""
    size, batch = (part.frames, *part.previous.shape[3:]), len(part.previous)
    frames, masks = ([each.expand(batch, -1, -1, -1, -1) for each in given.get(name, ())] for name in VACE)
    grey = part.grey(part.shared if frames else part.frames)
    if not frames:
        frames = [torch.cat((grey, grey), dim=1)]
        masks = [grey.new_ones(batch, host_vace.SQUARE**2, *size)]
    frames[0], masks[0] = host_vace.keep_first(frames[0], masks[0], part.end, grey, size)
    strengths = given.get("vace_strength", [1.0] * len(frames))
    return {**dict(zip(VACE, (frames, masks), strict=True)), "vace_strength": strengths}


def sounding(part: Part, given: Mapping) -> dict:
    """Return the motion before an S2V part, and the part's own piece of sound and pose (`speech2video.py`)."""
    entries = {}
    if part.previous.shape[2]:
        entries["reference_motion"] = part.previous[:, :, -MOTION_FRAMES:]
    if "audio_embed" in given:
        start, count = TIME_STRIDE * part.first, TIME_STRIDE * part.frames
        entries["audio_embed"] = piece("sound", given["audio_embed"], 3, start, count)
    if "control_video" in given:
        entries["control_video"] = pictured("pose video", given["control_video"], part)
    return entries


def posing(part: Part, given: Mapping) -> dict:
    """Return an Animate part's own piece of all videos, with the last latents in front of it (`animate.py`)."""
    if "concat_latent_image" not in given:
        raise ValueError("The conditioning has no reference picture: make it with WanAnimateToVideo.")
    image, mask = given["concat_latent_image"], given["concat_mask"]
    image, body = image[:, :, :1], pictured("background", image[:, :, 1:], part)
    mask, unknown = mask[:, :, :1], piece("mask", mask[:, :, 1:], 2, part.first, part.frames).clone()
    unknown[:, :, : part.shared] = 0
    batch = max(len(part.previous), len(body))
    frames = [each.expand(batch, -1, -1, -1, -1) for each in (image, part.end, body[:, :, part.shared :])]
    entries = {
        "concat_latent_image": torch.cat([each.to(part.previous) for each in frames], dim=2),
        "concat_mask": torch.cat((mask, unknown), dim=2),
    }
    if "pose_video_latent" in given:
        entries["pose_video_latent"] = pictured("pose video", given["pose_video_latent"], part)
    if "face_video_pixels" in given:
        count = geometry.video_frames(part.frames)
        entries["face_video_pixels"] = piece(
            "face video", given["face_video_pixels"], 2, TIME_STRIDE * part.first, count
        )
    return entries


def pictured(name: str, video: torch.Tensor, part: Part) -> torch.Tensor:
    """Return the part's piece of the latents `video` (B, C, T, h, w) of the whole clip; raise ValueError as `piece`."""
    if video.shape[3:] != part.previous.shape[3:]:
        raise ValueError(
            f"The {name} is {tuple(video.shape[3:])} latent rows and columns and previous of WanContinue "
            f"{tuple(part.previous.shape[3:])}: give the node that made it the size of the clip."
        )
    return piece(name, video, 2, part.first, part.frames)


def piece(name: str, whole: torch.Tensor, axis: int, start: int, count: int) -> torch.Tensor:
    """Return `count` entries of `whole` from `start` on along `axis`; raise ValueError if it ends before."""
    if whole.shape[axis] < start + count:
        raise ValueError(
            f"The {name} of the conditioning ends at frame {whole.shape[axis]} and this part at {start + count}: give "
            "the node that made it the length of the whole clip, or WanContinue a smaller length."
        )
    return whole.narrow(axis, start, count)


def pictures(given: Mapping) -> int:
    """Return the frames of reference pictures in front of the VACE context."""
    frames = given.get("vace_frames")
    return host_vace.pictures_of(frames[0], given["vace_mask"][0]) if frames else 0


WAYS = {
    "anchor": Way(1, anchored, leads=1),
    "image": Way(1, imaged),
    "held": Way(1, held),
    "history": Way(5, held),
    "vace": Way(4, context, extra=pictures),
    "sound": Way(0, sounding),
    "pose": Way(2, posing, extra=lambda given: 1),
}
