"""WanSampler on a causal model: the clip is made block by block, each from noise against the frames before it."""

from collections.abc import Sequence

import comfy.k_diffusion.sampling
import comfy.samplers
import torch

from ...wan_model import solvers
from ...wan_model.causal import Cache, spans
from ...wan_model.variants.rollout import Rollout, rollout_of
from ..model import causal
from .experts import Expert
from .schedule import Schedule
from .unfinished import Unfinished

SETTINGS = "wan_rollout"  # entry of transformer_options: a `Rollout` in place of the one that the file's name tells
GIVEN = "ar_config"  # entry of transformer_options in which the host's ARVideoI2V puts the start image


class BlockSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers`, which takes a block of frames through all steps before it goes on to the next.

    It stands in for a `FlowSampler` that never pauses, so there is no `run` to go on with.
    """

    run = None
    draws = 0

    def __init__(self, schedule: Schedule, rollout: Rollout, given: torch.Tensor | None):
        self.schedule, self.rollout, self.given = schedule, rollout, given
        self.expert: Expert | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Run all steps of all blocks and return the latent; the host calls this with a model loaded."""
        inner, x = model_wrap.inner_model, noise
        if not self.schedule.from_noise:
            x = inner.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
        out, first = x.clone(), 0
        clip = Clip(model_wrap, sigmas, extra_args, self.rollout, (noise, latent_image, denoise_mask))
        if self.given is not None:
            first = self.given.shape[2]
            out[:, :, :first] = inner.process_latent_in(self.given.to(out))
            clip.predict(out[:, :, :first], 0, first, 0.0)
        blocks = [(first + start, first + stop) for start, stop in spans(self.rollout.block, x.shape[2] - first)]
        draw = comfy.k_diffusion.sampling.default_noise_sampler(x[:, :, slice(*blocks[0])], extra_args.get("seed"))
        steps = len(sigmas) - 1
        for number, (start, stop) in enumerate(blocks):
            run = solvers.Run(self.schedule.solver, x[:, :, start:stop], sigmas.tolist(), lambda like: draw(None, None))
            while not run.done:
                out[:, :, start:stop] = clip.predict(run.x, start, stop, run.sigma)
                callback(number * steps + run.index, out[:, :, :stop], run.x, len(blocks) * steps)
                run.step(out[:, :, start:stop].clone())
            out[:, :, start:stop] = run.x
            if stop < out.shape[2]:
                clip.predict(run.x, start, stop, 0.0)
        return out


class Clip:
    """The host's denoiser for blocks of one clip. clips: noise, given latent and mask of the whole clip, or None."""

    def __init__(self, model_wrap, sigmas, extra_args: dict, rollout: Rollout, clips: Sequence[torch.Tensor | None]):
        self.model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        self.extra_args, self.clips = extra_args, clips
        self.options = extra_args["model_options"].setdefault("transformer_options", {})
        self.cache = Cache(rollout.window, rollout.sink)

    def predict(self, x: torch.Tensor, start: int, stop: int, sigma: float) -> torch.Tensor:
        """Return the x0 of the frames x (B, C, stop - start, H, W) at noise level `sigma`; at 0 they are kept."""
        self.options[causal.STATE] = causal.state(start, self.cache)
        parts = [None if clip is None else clip[:, :, start:stop] for clip in self.clips]
        self.model.noise, self.model.latent_image, mask = parts
        return self.model(x, x.new_full((x.shape[0],), sigma), **{**self.extra_args, "denoise_mask": mask})


def sampler_of(stages: Sequence[Expert], schedule: Schedule, before: Unfinished | None, frames: int):
    """Return the `BlockSampler` of a run over so many latent frames; None where its model is not causal.

    Raise ValueError for a run that such a model cannot make.
    """
    if not isinstance(stages[0].model.model.diffusion_model, causal.CausalDiT):
        return None
    if len(stages) > 1 or stages[0].reads_negative:
        raise ValueError(
            f"{stages[0].name} is a causal model, which runs alone and without guidance: choose the preset "
            "self-forcing or set guidance to 1, and connect no low_noise_model."
        )
    if before is not None or float(schedule.sigmas[-1]) > 0:
        raise ValueError(
            f"{stages[0].name} is a causal model: it finishes each block of frames before the next, so its run cannot "
            "be split. Set start_step to 0 and end_step to the last."
        )
    options = stages[0].model.model_options.get("transformer_options", {})
    given = options.get(GIVEN, {}).get("initial_latent")
    rollout, first = options.get(SETTINGS) or rollout_of(stages[0].name), 0 if given is None else given.shape[2]
    if frames <= first or (frames - first) % rollout.block:
        after = f" after the {first} given" if first else ""
        raise ValueError(
            f"The clip has {frames} latent frames, and {stages[0].name} makes blocks of {rollout.block}{after}: "
            f"choose a length of {4 * (first + rollout.block) - 3} video frames, or that and a multiple of "
            f"{4 * rollout.block}."
        )
    return BlockSampler(schedule, rollout, given)
