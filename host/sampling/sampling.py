"""Wan's solvers inside the host's sampling: its guidance, masks, previews, progress bar and cancel."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...wan_model import solvers
from ..editor import estimate
from ..observe import preview
from . import blockwise, checks
from .experts import Expert, release
from .schedule import Schedule
from .unfinished import Unfinished

TRIM = "trim_start"  # entry of a LATENT: frames before the clip (VACE references) that are cut off after sampling


class FlowSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers` as a host sampler, which several experts can take forward one after the other.

    schedule: of the whole run. before: what an earlier run left off, or None. expert: the one at work; the host's call
    returns at the first noise level that is not its own. draws: how often noise was drawn, with those of `before`.
    """

    def __init__(self, schedule: Schedule, before: Unfinished | None):
        self.schedule = schedule
        self.before = before
        self.draws = 0
        self.run: solvers.Run | None = None
        self.expert: Expert | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Run the steps of the expert at work and return the latent; the host calls this with a model loaded.

        A finished run that ends above noise level 0 returns it divided by 1 - sigma, as the host's samplers do.
        """
        extra_args["denoise_mask"] = denoise_mask
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        scaling = model_wrap.inner_model.model_sampling
        if self.run is None:
            x = noise if self.schedule.from_noise else scaling.noise_scaling(sigmas[0], noise, latent_image)
            source = self.noise_source(x, extra_args.get("seed"))
            self.run = solvers.Run(self.schedule.solver, x, sigmas.tolist(), source)
        run = self.run
        while not run.done and self.expert.serves(run.sigma, self.schedule.solver):
            x0 = model(run.x, run.x.new_full((run.x.shape[0],), run.sigma), **extra_args)
            callback(run.index, x0, run.x, len(sigmas) - 1)
            run.step(x0)
        return scaling.inverse_noise_scaling(sigmas[-1], run.x) if run.done else run.x

    def noise_source(self, x: torch.Tensor, seed: int | None) -> solvers.Noise:
        """Noise as the host's samplers draw it, after as many draws as the earlier run made."""
        sampler = comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)

        def draw(like: torch.Tensor) -> torch.Tensor:
            self.draws += 1
            return sampler(None, None).to(like)

        for _ in range(self.before.draws if self.before else 0):
            draw(x)
        return draw


def with_timesteps(model, solver: str):
    """A clone of the MODEL `model` whose network sees the timesteps of `solver`: `solvers.timestep`."""
    sampling = copy.copy(model.get_model_object("model_sampling"))
    sampling.timestep = partial(solvers.timestep, solver=solver)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def sample(
    stages: Sequence[Expert],
    positive,
    negative,
    latent: dict,
    schedule: Schedule,
    seed: int,
    add_noise: bool = True,
) -> dict:
    """Samples the host LATENT `latent`; returns a LATENT with the same other entries.

    stages: `experts`, each taking over where the last one's noise levels end, with the solver's history.
    positive, negative: CONDITIONINGs; negative None where guidance is 1. add_noise: False for a latent that still holds
    the noise of another sampler; one of this function's own says so itself. Raises ValueError for inputs of another
    model or schedule, before any weight is loaded.
    """
    samples = latent["samples"]
    checks.check_negative(stages, negative)
    for stage in stages:
        checks.check_latent(stage.model, samples)
        checks.check_conditioning(stage.model, positive)
    before = Unfinished.of(latent)
    checks.check_start(schedule, add_noise, before)
    if before is not None or not add_noise:
        add_noise, schedule = False, replace(schedule, from_noise=False)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    sampler = blockwise.sampler_of(stages, schedule, before, samples.shape[2]) or FlowSampler(schedule, before)
    callback = latent_preview.prepare_callback(stages[0].model, schedule.steps)
    announce(stages, positive, samples.shape, schedule.steps)
    for stage in stages:
        run = sampler.run
        if run.done if run else not stage.serves(float(schedule.sigmas[0]), schedule.solver):
            continue  # no step is left, or none of this expert's
        if run is not None and run.index > 0:
            release(stage, run)
        sampler.expert = stage
        model = with_timesteps(stage.model, schedule.solver)
        preview.watch(model, skip=latent.get(TRIM, 0))
        out = guider(stage, model, positive, negative).sample(
            noise if add_noise else torch.zeros_like(noise),
            samples,
            sampler,
            schedule.sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    return finished(latent, out, schedule, sampler.draws)


def guider(stage: Expert, model, positive, negative) -> comfy.samplers.CFGGuider:
    """The host's guider of one stage, without the negative prompt where nothing reads it."""
    guider = comfy.samplers.CFGGuider(model)
    conditionings = {"positive": positive, "negative": negative} if stage.reads_negative else {"positive": positive}
    guider.inner_set_conds(conditionings)
    guider.set_cfg(stage.guidance)
    return guider


def finished(latent: dict, out: torch.Tensor, schedule: Schedule, draws: int) -> dict:
    """The LATENT of a run's result `out`: without the frames before the clip, once there is no noise left in it."""
    samples, last = out.to(comfy.model_management.intermediate_device()), float(schedule.sigmas[-1])
    if last > 0:
        return {**latent, "samples": samples, Unfinished.ENTRY: Unfinished(last, draws, samples)}
    entries = {name: value for name, value in latent.items() if name not in (TRIM, Unfinished.ENTRY)}
    return {**entries, "samples": samples[:, :, latent.get(TRIM, 0) :]}


def announce(stages: Sequence[Expert], positive, shape: Sequence[int], steps: int) -> None:
    """Logs what the run will take, where all its models are this pack's."""
    parts = [estimate.part_of_model(stage.model) for stage in stages]
    if None not in parts:
        contexts = max(len(options.get("vace_frames", ())) for _, options in positive)
        guided = any(stage.reads_negative for stage in stages)
        shapes = estimate.vace_shapes(parts[0].config, contexts)
        found = estimate.estimate(parts, shape, steps, guided, estimate.here(), shapes)
        logging.info("%s", estimate.sentence(found))
