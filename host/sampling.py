"""Wan's solvers inside the host's sampling: its guidance, masks, previews, progress bar and cancel."""

import copy
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ..wan_model import solvers
from .messages import latents


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


class FlowSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers` as a host sampler."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """What the host calls with the model loaded and the conditionings prepared; returns the latent at sigma 0."""
        extra_args["denoise_mask"] = denoise_mask
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        x = noise  # a whole run starts from noise alone, as the official loop does, although its first sigma is below 1
        if self.schedule.denoise < 1:
            x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, latent_image)

        def denoise(x, sigma):
            return model(x, x.new_full((x.shape[0],), sigma), **extra_args)

        def report(step):
            callback(step["i"], step["denoised"], step["x"], len(sigmas) - 1)

        return solvers.SOLVERS[self.schedule.solver](denoise, x, sigmas.tolist(), callback=report)


def with_official_timesteps(model):
    """A clone of the MODEL `model` whose network sees whole timesteps, trunc(1000 sigma), as in the official loop."""
    sampling = copy.copy(model.get_model_object("model_sampling"))
    sampling.timestep = lambda sigma: torch.floor(sigma * 1000 + 1e-3)  # float32 must not lose a whole step to rounding
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def check_latent(model, samples: torch.Tensor) -> None:
    """Raises ValueError where `samples` are no latents of this model's VAE; before any weight is loaded."""
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 5:
        raise ValueError(
            f"The latent has {samples.ndim} dimensions, a Wan clip has 5 (batch, channels, frames, height, width): "
            "make it with WanEmptyLatent or WanVAEEncode."
        )
    if samples.shape[1] != wanted:
        raise ValueError(
            f"The model samples {latents(wanted)} and was given {latents(samples.shape[1])}: connect the VAE of the "
            "model's family to the node that made the latent."
        )


def sample(model, positive, negative, latent: dict, schedule: Schedule, guidance: float, seed: int) -> dict:
    """Samples the host LATENT `latent`; returns a LATENT with the same other entries.

    model: a MODEL. positive, negative: CONDITIONINGs. guidance: classifier-free guidance scale.
    Raises ValueError for a latent of another family.
    """
    samples = latent["samples"]
    check_latent(model, samples)
    model = with_official_timesteps(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(guidance)
    sigmas = schedule.sigmas()
    out = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        FlowSampler(schedule),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}
