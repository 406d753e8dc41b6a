"""Wan's solvers inside the host's sampling, with its guidance, masks, previews, progress bar and cancelling."""

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
from ..parallel.run import shared_by
from . import blockwise, checks, levels
from .experts import Expert, release
from .joint import join
from .schedule import Schedule
from .unfinished import Unfinished

TRIM = "trim_start"  # entry of a LATENT: leading frames (references, shared ones) that are cut off after sampling
BEFORE = "wan_before"  # entry of a LATENT: the LATENT of the clip before it, to which it is joined after that


class FlowSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers` as a host sampler, which several experts can advance in turn.

    schedule: of the whole run. before: state of an earlier run to continue, or None. expert: the current one; the
    host's call returns at the first noise level outside its range. draws: draws of noise, those of `before` included.
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
        """Run the steps of the current expert and return the latent; the host calls this with its model loaded.

        A run that ends above noise level 0 returns the latent divided by 1 - sigma, as the host's samplers do.
        """
        extra_args["denoise_mask"] = denoise_mask
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        scaling = model_wrap.inner_model.model_sampling
        whole = sigmas.tolist()
        if self.run is None:
            x = noise if self.schedule.from_noise else scaling.noise_scaling(sigmas[0], noise, latent_image)
            source = self.noise_source(x, extra_args.get("seed"))
            self.run = solvers.Run(self.schedule.solver, x, whole, source)
        run = self.run
        options = extra_args["model_options"].setdefault("transformer_options", {})
        while not run.done and self.expert.serves(run.sigma, self.schedule.solver):
            options[levels.KEY] = levels.Levels(run.sigma, whole)
            x0 = model(run.x, run.x.new_full((run.x.shape[0],), run.sigma), **extra_args)
            callback(run.index, x0, run.x, len(sigmas) - 1)
            run.step(x0)
        return scaling.inverse_noise_scaling(sigmas[-1], run.x) if run.done else run.x

    def noise_source(self, x: torch.Tensor, seed: int | None) -> solvers.Noise:
        """Return the noise source of the host's samplers, advanced by the draws of the earlier run."""
        sampler = comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)

        def draw(like: torch.Tensor) -> torch.Tensor:
            self.draws += 1
            return sampler(None, None).to(like)

        for _ in range(self.before.draws if self.before else 0):
            draw(x)
        return draw


def with_timesteps(model, solver: str):
    """Return a clone of the MODEL `model` whose network gets the timesteps of `solver` (`solvers.timestep`)."""
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
    """Sample the LATENT `latent`; return a LATENT with the same other entries.

    stages: `experts`, each continuing where the last one's noise levels end, with the solver's history.
    positive, negative: CONDITIONINGs; negative may be None if guidance is 1. add_noise: False for a latent that still
    holds the noise of another sampler; a latent of this function is recognised. Raise ValueError for inputs of another
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
    blocks = blockwise.sampler_of(stages, schedule, before, samples.shape)
    sampler = blocks or FlowSampler(schedule, before)
    callback = latent_preview.prepare_callback(stages[0].model, schedule.steps)
    announce(stages, positive, samples.shape, schedule.steps)
    for stage in stages:
        run = sampler.run
        if run.done if run else not stage.serves(float(schedule.sigmas[0]), schedule.solver):
            continue  # no step is left for this expert
        if run is not None and run.index > 0:
            release(stage, run)
        sampler.expert = stage
        model = with_timesteps(stage.model, schedule.solver)
        if blocks is not None:
            blockwise.make_room(model, blocks.blocks)
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
    """Return the host's guider of one stage, without the negative prompt if nothing reads it."""
    guider = comfy.samplers.CFGGuider(model)
    conditionings = {"positive": positive, "negative": negative} if stage.reads_negative else {"positive": positive}
    guider.inner_set_conds(conditionings)
    guider.set_cfg(stage.guidance)
    return guider


def finished(latent: dict, out: torch.Tensor, schedule: Schedule, draws: int) -> dict:
    """Return the LATENT of a run's result `out`; once it holds no noise, it is joined to the clip before."""
    samples, last = out.to(comfy.model_management.intermediate_device()), float(schedule.sigmas[-1])
    if last > 0:
        return {**latent, "samples": samples, Unfinished.ENTRY: Unfinished(last, draws, samples)}
    entries = {name: value for name, value in latent.items() if name not in (TRIM, BEFORE, Unfinished.ENTRY)}
    samples = samples[:, :, latent.get(TRIM, 0) :]
    if BEFORE not in latent:
        return {**entries, "samples": samples}
    entries.pop("noise_mask", None)  # of the part, not of the whole
    return {**entries, **join(latent[BEFORE], samples)}


def announce(stages: Sequence[Expert], positive, shape: Sequence[int], steps: int) -> None:
    """Log the estimate of the run, if all its models are this pack's."""
    parts = [estimate.part_of_model(stage.model) for stage in stages]
    if None not in parts:
        contexts = max(len(options.get("vace_frames", ())) for _, options in positive)
        guided = any(stage.reads_negative for stage in stages)
        shapes = estimate.vace_shapes(parts[0].config, contexts)
        found = estimate.estimate(parts, shape, steps, guided, estimate.here(*shared_by(stages[0].model)), shapes)
        logging.info("%s", estimate.sentence(found))
