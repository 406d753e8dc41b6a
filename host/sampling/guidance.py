"""Classifier-free guidance of a MODEL: its noise levels, and how it combines the two predictions."""

import math
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ...wan_model.solvers import SIGMA_MAX
from ..model import causal
from . import levels

KEY = "wan_guidance"  # of the wrapper in the host's options


@dataclass(frozen=True)
class Settings:
    """Settings of guidance.

    sigma_start, sigma_end: noise levels, 1 to 0, between which guidance is on; outside, only the positive prompt is
    evaluated, at half the work (https://arxiv.org/abs/2404.07724). cfg_zero: whether to scale the unconditional
    prediction as CFG-Zero* does; zero_steps: first steps with zero velocity, in runs that start from pure noise
    (https://arxiv.org/abs/2503.18886).
    """

    sigma_start: float
    sigma_end: float
    cfg_zero: bool
    zero_steps: int


def apply(model, settings: Settings):
    """Return a clone of the MODEL `model` with these settings; raise ValueError if sigma_end is above sigma_start."""
    if settings.sigma_end > settings.sigma_start:
        raise ValueError(
            f"Guidance would end at noise level {settings.sigma_end:g} and start at {settings.sigma_start:g}: noise "
            "falls from 1 to 0, so choose a sigma_end that is not above sigma_start."
        )

    def predict_noise(executor, x, sigma, model_options, seed):
        options, guider = model_options["transformer_options"], executor.class_obj
        if causal.keeps(options):
            return executor(x, sigma, model_options, seed)
        level, sigmas = levels.of_step(options, sigma)
        is_from_noise = sigmas[0] >= SIGMA_MAX["unipc"]  # not the second of two samplers, nor video to video
        if is_from_noise and level > sigmas[min(settings.zero_steps, len(sigmas) - 1)]:
            return x.clone()  # x0 = x is a velocity of 0
        if settings.sigma_end <= level <= settings.sigma_start:
            return executor(x, sigma, model_options, seed)
        asked, guider.cfg = guider.cfg, 1.0  # the host then leaves out the unconditional pass
        try:
            return executor(x, sigma, model_options, seed)
        finally:
            guider.cfg = asked

    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)  # of two nodes in a row the last one counts
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    if isinstance(clone.model_options.get("sampler_cfg_function"), CfgZero):
        del clone.model_options["sampler_cfg_function"]
    if settings.cfg_zero:
        clone.set_model_sampler_cfg_function(CfgZero())
    return clone


class CfgZero:
    """The host's `sampler_cfg_function` for CFG-Zero*: guidance with the unconditional prediction scaled.

    A class, so that a later node can recognise and remove it.
    """

    def __call__(self, arguments: dict) -> torch.Tensor:
        """Return the guided prediction x - x0 (B, C, F, H, W).

        The unconditional prediction is projected onto the conditional one: scaled by the factor that brings it nearest.
        """
        cond, uncond, scale = arguments["cond"], arguments["uncond"], arguments["cond_scale"]
        if math.isclose(scale, 1.0):  # the host has skipped the unconditional pass
            return cond
        axes = tuple(range(1, cond.ndim))
        uncond = uncond * ((cond * uncond).sum(axes, keepdim=True) / uncond.square().sum(axes, keepdim=True))
        return uncond + scale * (cond - uncond)
