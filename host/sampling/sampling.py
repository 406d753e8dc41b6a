"""Wan's solvers inside the host's sampling: its guidance, masks, previews, progress bar and cancel."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...wan_model import solvers
from ...wan_model.variants import VARIANTS
from ..editor import estimate
from ..messages import latents
from ..model import offload
from ..model.classes import HostModel
from ..observe import preview

TRIM = (
    "trim_start"  # entry of a LATENT: latent frames before the clip (VACE references) that are cut off after sampling
)


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a run.

    steps: solver steps that are run. shift: time shift of the schedule. solver: a key of `solvers.SOLVERS`.
    denoise: how much of the schedule is run, in (0, 1]; below 1 the run starts from the given latent, partly noised.
    """

    steps: int
    shift: float
    solver: str
    denoise: float = 1.0

    def sigmas(self) -> torch.Tensor:
        """(steps + 1,) float32: the last `steps` steps of a schedule of steps / denoise, as the host counts them."""
        return solvers.flow_sigmas(int(self.steps / self.denoise), self.shift, self.solver)[-(self.steps + 1) :]


@dataclass(frozen=True)
class Expert:
    """A model and the part of the schedule that is its own.

    model: a MODEL. guidance: classifier-free guidance scale. until: the expert serves noise levels from here upwards.
    """

    model: object
    guidance: float
    until: float = 0.0

    @property
    def name(self) -> str:
        """The file the model came from, as far as it is known."""
        return getattr(self.model.model, "source", type(self.model.model).__name__)

    @property
    def channels(self) -> int:
        """Latent channels that the model takes in."""
        return self.model.model.diffusion_model.patch_embedding.weight.shape[1]


class FlowSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers` as a host sampler, which several experts can take forward one after the other."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.run = None
        self.until = 0.0  # the host's call returns at the first sigma below this one

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """What the host calls with a model loaded and its conditionings prepared; returns the latent it has reached."""
        extra_args["denoise_mask"] = denoise_mask
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        if self.run is None:
            x = noise  # as the official loop: from noise alone, although the first sigma can be below 1
            if self.schedule.denoise < 1:
                x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
            self.run = solvers.Run(self.schedule.solver, x, sigmas.tolist())
        run = self.run
        while not run.done and serves(self.until, run.sigma):
            x0 = model(run.x, run.x.new_full((run.x.shape[0],), run.sigma), **extra_args)
            callback(run.index, x0, run.x, len(sigmas) - 1)
            run.step(x0)
        return run.x


def timestep(sigma):
    """The whole timestep trunc(1000 sigma) of a float or tensor, which the official loop gives the network."""
    return (sigma * 1000 + 1e-3) // 1  # float32 must not lose a whole step to rounding


def serves(until: float, sigma: float) -> bool:
    """Whether noise level `sigma` is one of an expert that serves those from `until` upwards."""
    return timestep(sigma) >= 1000 * until


def with_official_timesteps(model):
    """A clone of the MODEL `model` whose network sees whole timesteps."""
    sampling = copy.copy(model.get_model_object("model_sampling"))
    sampling.timestep = timestep
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def experts(model, guidance: float, low_noise_model=None, low_noise_guidance: float = 0.0, boundary: float = 0.0):
    """The one or two experts of a run.

    low_noise_guidance 0: the same as `guidance`. boundary 0: the official one of the model's kind.
    Raises ValueError for two models that are no pair.
    """
    if low_noise_model is None:
        return [Expert(model, guidance)]
    pair = [
        Expert(model, guidance, boundary or official_boundary(model.model)),
        Expert(low_noise_model, low_noise_guidance or guidance),
    ]
    check_pair(*pair)
    return pair


def official_boundary(model) -> float:
    """Return the noise level at which the low-noise expert of a host model takes over, by whether it takes an image."""
    row = VARIANTS["i2v_a14b" if model.image_to_video else "t2v"]
    return (row.experts or row.sampling).boundary


def check_pair(high: Expert, low: Expert) -> None:
    """Raises ValueError where `high` and `low`, by their names and channels, are not the two experts of one model."""
    if high.channels != low.channels:
        raise ValueError(
            f"The experts are no pair: {high.name} takes {high.channels} channels and {low.name} {low.channels} (16 is "
            "text to video, 36 image to video): load both files of the same model."
        )
    for expert, wrong, socket in ((high, "low_noise", "model"), (low, "high_noise", "low_noise_model")):
        if wrong in expert.name:
            raise ValueError(
                f"{expert.name} is connected to {socket} of WanSampler, where the other expert belongs: connect the "
                "high-noise file to model and the low-noise file to low_noise_model."
            )


def check_latent(model, samples: torch.Tensor) -> None:
    """Raises ValueError where `samples` are no latents of this model's VAE."""
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 5:
        raise ValueError(
            f"The latent has {samples.ndim} dimensions, a Wan clip has 5 (batch, channels, frames, height, width): "
            "make it with WanEmptyLatent or WanVAEEncode."
        )
    check_channels(wanted, samples.shape[1])


def check_channels(sampled: int, given: int) -> None:
    """Raises ValueError where a model that samples latents of `sampled` channels is given others."""
    if sampled != given:
        raise ValueError(
            f"The model samples {latents(sampled)} and was given {latents(given)}: connect the VAE of the model's "
            "family to the node that made the latent."
        )


def check_conditioning(model, positive) -> None:
    """Logs what the conditioning lacks that our model was trained with, and what it will not read."""
    if not isinstance(model.model, HostModel):
        return
    config = model.model.diffusion_model.config
    entries = [options for _, options in positive]
    has_clip = all("clip_vision_output" in options for options in entries)
    if config.part("clip") and not has_clip:
        logging.warning(
            "The %s model was trained with CLIP vision of the start image, and the conditioning has none: connect "
            "WanClipVision to clip_vision_output of WanConditioning.",
            config.variant,
        )
    has_image = any("concat_latent_image" in options for options in entries)
    if config.in_dim == config.out_dim and has_image:
        logging.warning("The %s model takes no start image: the one in the conditioning is ignored.", config.variant)
    if not config.part("vace") and any("vace_frames" in options for options in entries):
        logging.warning("The %s model has no VACE blocks: what WanVACE made is ignored.", config.variant)
    if config.in_dim > config.out_dim and not has_image:
        logging.warning("The %s model was given no start image: it starts from an empty one.", config.variant)


def sample(stages: Sequence[Expert], positive, negative, latent: dict, schedule: Schedule, seed: int) -> dict:
    """Samples the host LATENT `latent`; returns a LATENT with the same other entries.

    stages: `experts`, each taking over where the last one's noise levels end, with the solver's history.
    positive, negative: CONDITIONINGs. Raises ValueError for inputs of another model, before any weight is loaded.
    """
    samples = latent["samples"]
    for stage in stages:
        check_latent(stage.model, samples)
        check_conditioning(stage.model, positive)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    sigmas = schedule.sigmas()
    sampler = FlowSampler(schedule)
    callback = latent_preview.prepare_callback(stages[0].model, len(sigmas) - 1)
    announce(stages, positive, samples.shape, schedule.steps)
    for stage in stages:
        run = sampler.run
        if run.done if run else not serves(stage.until, float(sigmas[0])):
            continue  # no step is left, or none of this expert's
        if run is not None and run.index > 0:
            release(stage, run)
        sampler.until = stage.until
        model = with_official_timesteps(stage.model)
        preview.watch(model, skip=latent.get(TRIM, 0))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(stage.guidance)
        out = guider.sample(
            noise,
            samples,
            sampler,
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    entries = {name: value for name, value in latent.items() if name != TRIM}
    out = out[:, :, latent.get(TRIM, 0) :]
    return {**entries, "samples": out.to(comfy.model_management.intermediate_device())}


def announce(stages: Sequence[Expert], positive, shape: Sequence[int], steps: int) -> None:
    """Logs what the run will take, where all its models are this pack's."""
    parts = [estimate.part_of_model(stage.model) for stage in stages]
    if None not in parts:
        contexts = max(len(options.get("vace_frames", ())) for _, options in positive)
        guided = any(stage.guidance != 1 for stage in stages)
        shapes = estimate.vace_shapes(parts[0].config, contexts)
        found = estimate.estimate(parts, shape, steps, guided, estimate.here(), shapes)
        logging.info("%s", estimate.sentence(found))


def release(following: Expert, run: solvers.Run) -> None:
    """Frees the device of the last expert before `following` is loaded, and says so in the log.

    A dynamic patcher takes what it needs by itself, and keeps what it can for the next run.
    """
    if offload.is_dynamic(following.model):
        return
    device = following.model.load_device
    before = comfy.model_management.get_free_memory(device)
    comfy.model_management.free_memory(1e30, device)
    comfy.model_management.soft_empty_cache()
    freed = comfy.model_management.get_free_memory(device) - before
    logging.info(
        "Step %d, sigma %.3f: switching to %s (guidance %g), %.0f MB freed first.",
        *(run.index + 1, run.sigma, following.name, following.guidance, freed / 2**20),
    )
