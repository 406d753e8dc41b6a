"""Errors and warnings about the inputs of a run, before any weight is loaded."""

import logging
from collections.abc import Iterable

import torch

from ...wan_model import solvers
from ...wan_model.messages import Message
from ..messages import latents
from ..model.classes import HostModel
from . import entries
from .schedule import Schedule
from .unfinished import Unfinished


def check_latent(model, samples: torch.Tensor) -> None:
    """Raise ValueError if `samples` are not latents of this model's VAE."""
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 5:
        raise ValueError(
            f"The latent has {samples.ndim} dimensions, a Wan clip has 5 (batch, channels, frames, height, width): "
            "make it with WanEmptyLatent or WanVAEEncode."
        )
    check_channels(wanted, samples.shape[1])


def check_channels(sampled: int, given: int) -> None:
    """Raise ValueError if a model of `sampled` latent channels is given others."""
    if sampled != given:
        raise ValueError(
            Message(
                "sampled_latent",
                "The model samples {sampled} and was given {given}: connect the VAE of the model's family to the node "
                "that made the latent.",
                sampled=latents(sampled), given=latents(given),
            )
        )  # fmt: skip


def check_causal(name: str, causal: bool) -> None:
    """Raise ValueError unless the model in the file `name` makes a clip block by block."""
    if not causal:
        raise ValueError(
            Message(
                "not_causal",
                "{file} is not a causal model, and WanStream makes a video block by block: load a causal model, such "
                "as Self-Forcing or LongLive, in WanModelLoader, or make a clip with WanSampler.",
                file=name,
            )
        )


def check_negative(stages: Iterable, negative) -> None:
    """Raise ValueError if a stage (an `Expert`) needs a negative prompt and there is none."""
    for stage in stages:
        if negative is None and stage.reads_negative:
            why = f"guidance {stage.guidance:g}" if stage.guidance != 1 else "one of the model's patches"
            raise ValueError(
                f"{why[0].upper()}{why[1:]} needs a negative prompt, and negative of WanSampler is not connected: "
                "connect one, or set guidance to 1."
            )


def check_conditioning(model, conditioning) -> None:
    """Raise ValueError if our model would misread its conditioning.

    Log conditions that it needs and lacks, and those that it does not read.
    """
    if not isinstance(model.model, HostModel):
        return
    config = model.model.diffusion_model.config
    given = entries.given(conditioning)
    has_clip = all("clip_vision_output" in options for _, options in conditioning)
    if config.part("clip") and not has_clip:
        logging.warning(
            "The %s model was trained with CLIP vision of the start image, and the conditioning has none: connect "
            "WanClipVision to clip_vision_output of WanConditioning.",
            config.variant,
        )
    unread = entries.unread_entries(model, conditioning)
    if unread:
        words = ", ".join(f"{words} ({key})" for key, words in unread.items())
        logging.warning(
            "%s, a %s model, does not read %s: no effect on the clip. Load a model that does, or remove the node that "
            "adds it.",
            *(model.model.source, config.variant, words),
        )
    if config.part("pose_branch") and "animate2_cache" in model.model_options["transformer_options"]:
        logging.info(
            "WanAnimate2Cache keeps nothing for %s: this pack computes the pose video again in every step.",
            model.model.source,
        )
    behind = config.in_dim - config.out_dim
    if behind and "concat_latent_image" not in given:
        logging.warning("The %s model was given no start image: it starts from an empty one.", config.variant)
    elif behind:
        _check_behind(config.variant, behind, given["concat_latent_image"].shape[1])


def _check_behind(variant: str, behind: int, given: int) -> None:
    """Raise ValueError unless `given` channels fill the `behind` ones that the model reads, with or without a mask.

    The host would cut off surplus channels, and take a control video for the start image.
    """
    if given not in (behind, behind - 4):
        raise ValueError(
            f"The conditioning holds {given} channels of images and this {variant} model reads {behind - 4}: use the "
            "node that was made for this model, such as WanConditioning."
        )


def check_start(schedule: Schedule, add_noise: bool, before: Unfinished | None) -> None:
    """Raise ValueError if a run cannot start from its latent. before: the noise that the latent still holds."""
    if before is not None:
        before.check_start(schedule)
    elif not add_noise and float(schedule.sigmas[0]) >= solvers.SIGMA_MAX[schedule.solver]:
        raise ValueError(
            "add_noise is off and the run starts at full noise, which replaces the latent: turn it on, or "
            "set start_step to the step at which the other sampler ended."
        )
