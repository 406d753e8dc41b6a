"""How WanContinue begins the next part of a clip: which way the model takes, and whether the inputs fit."""

from collections.abc import Mapping, Sequence

import torch

from ...wan_model import geometry
from ...wan_model.variants import VARIANTS
from ..messages import latents
from ..model.classes import HostModel
from . import conditioning
from .continuation import WAYS, Part, Way, held

AUTO, ANCHOR, PLAIN = "auto", "anchor", "plain"
LAYOUTS = (AUTO, ANCHOR, PLAIN)


def variant_of(model) -> str:
    """Return the variant of a MODEL; raise ValueError for one that another loader made."""
    if not isinstance(model.model, HostModel):
        raise ValueError(
            "WanContinue cannot tell what model this is: load it with WanModelLoader, which reads that from its file."
        )
    return model.model.diffusion_model.config.variant


def way_of(variant: str, layout: str = AUTO, names: Sequence[str] = ()) -> Way:
    """Return how a model of `variant` is given the end of a clip.

    layout: for models that take an image; "auto" decides by the `names` of the model's files. Raise ValueError for
    variants that cannot go on with a clip, and for a LoRA whose layout is not known.
    """
    row = VARIANTS[variant]
    if row.continues is None:
        raise ValueError(
            f"WanContinue cannot go on with a clip of a model for {row.title}: load an image-to-video, VACE, 5B, "
            "SkyReels-V2 DF, S2V or Animate model."
        )
    if row.continues != "image":
        return WAYS[row.continues]
    if layout == AUTO:
        layout = layout_of(names)
    return WAYS["anchor" if layout == ANCHOR else "image"]


def layout_of(names: Sequence[str]) -> str:
    """Return the layout that the LoRAs among `names` are trained for; raise ValueError if it is not known."""
    svi = [name for name in names if "svi" in name.lower()]
    if other := [name for name in svi if "pro" not in name.lower()]:
        raise ValueError(
            f"{other[0]} looks like a LoRA of Stable Video Infinity of another version than 2.0 Pro, whose layout is "
            'not known here: take the 2.0 Pro LoRA, or set layout to "anchor" or "plain".'
        )
    return ANCHOR if svi else PLAIN


def begin(
    way: Way, given: Mapping, latent: dict | None, anchor: dict | None, length: int, overlap: int, **options
) -> Part:
    """Return the next part of the LATENT `latent`, or the first one if it is None.

    given: entries of the positive prompt. anchor: LATENT or None. length: frames of the part. overlap: latent frames
    that it shares with `latent`; 0 is the way's own number. options: of `Part`. Raise ValueError for what does not fit.
    """
    geometry.check_length(length)
    anchor = None if anchor is None else checked(anchor["samples"], "anchor")[:, :, :1]
    previous = start(way, given, anchor) if latent is None else checked(latent["samples"], "previous")
    if anchor is not None and (anchor.shape[1:2] + anchor.shape[3:] != previous.shape[1:2] + previous.shape[3:]):
        raise ValueError(
            f"anchor of WanContinue is {tuple(anchor.shape)} and previous {tuple(previous.shape)} (batch, channels, "
            "frames, height, width): encode a picture of the clip's size with the same VAE."
        )
    if overlap and not way.shared:
        raise ValueError(
            f"overlap of WanContinue is {overlap} and this model shares no frames with the clip before: set it to 0."
        )
    frames, before = geometry.latent_frames(length), max(previous.shape[2] - way.leads, 0)
    if overlap > before:
        raise ValueError(
            f"overlap of WanContinue is {overlap} latent frames and previous has {before} to share: lower overlap or "
            "set it to 0."
        )
    part = Part(previous, frames, min(overlap or way.shared, before) if way.shared else 0, anchor, **options)
    if frames <= part.shared + way.leads:
        raise ValueError(
            f"length of WanContinue is {length} frames = {frames} latent frames and {part.shared + way.leads} of them "
            "are no new ones: raise length or lower overlap."
        )
    return part


def checked(samples: torch.Tensor, name: str) -> torch.Tensor:
    """Return latents (B, C, T, h, w) as they are; raise ValueError if they are none or not finite."""
    if samples.ndim != 5 or not samples.numel() or not samples.isfinite().all():
        raise ValueError(
            f"{name} of WanContinue is {tuple(samples.shape)}, and a clip has 5 dimensions (batch, channels, frames, "
            "height, width) and finite values: connect the latent of WanSampler or WanVAEEncode."
        )
    return samples


def start(way: Way, given: Mapping, anchor: torch.Tensor | None) -> torch.Tensor:
    """Return the empty clip (B, C, 0, h, w) before a first part; raise ValueError if nothing tells its size."""
    sizes = {"anchor": anchor, "sound": given.get("control_video"), "pose": given.get("concat_latent_image")}
    like = next((sizes[name] for name in sizes if WAYS[name] is way), None)
    if like is None:
        raise ValueError(
            "previous of WanContinue is not connected, and nothing else begins this clip: connect the latent of "
            "WanSampler, or for its first part the encoded first picture."
        )
    return like[:, :, :0]


def check_model(variant: str, channels: int, part: Part) -> None:
    """Raise ValueError if a model of `variant`, with so many latent channels, does not make clips like the part's."""
    if part.previous.shape[1] != channels:
        raise ValueError(
            f"previous of WanContinue is {latents(part.previous.shape[1])} and the model ({VARIANTS[variant].title}) "
            f"makes {latents(channels)}: connect a clip of this model's family."
        )


def latent_of(way: Way, part: Part, given: Mapping) -> tuple[dict, int]:
    """Return the LATENT of the part, and how many frames in front of it are not new."""
    extra = way.extra(given)
    old = extra + part.shared + (way.leads if part.previous.shape[2] else 0)
    batch, channels, _, height, width = part.previous.shape
    if way.entries is not held:
        return {"samples": part.previous.new_zeros(batch, channels, extra + part.frames, height, width)}, old
    samples = torch.cat((part.end, part.empty(part.frames - part.shared)), dim=2)
    mask = samples.new_ones(batch, 1, *samples.shape[2:])
    mask[:, :, : part.shared] = 0
    return {"samples": samples, "noise_mask": mask}, old


def with_part(prompt: list, way: Way, part: Part) -> list:
    """Return a CONDITIONING with the entries of the part in each of its prompts."""
    changed = []
    for text, given in prompt:
        changed += conditioning.with_entries([[text, given]], way.entries(part, given))
    return changed
