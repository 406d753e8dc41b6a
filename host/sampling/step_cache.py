"""Steps that reuse the network's last answer while it changes little, on any MODEL that the host samples.

What is reused is the velocity v = (x - x0) / sigma, which a flow model keeps nearly constant along its way. How far it
has moved on is estimated from what a computed step last measured: change of v per unit of a clock, times the clock's
advance since. The criteria differ in the clock and in what they call a change; the budget bounds the estimate. It is a
relative error of v, but for magcache, which looks at magnitudes alone and hence also skips a few steps at most.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

KEY = "wan_step_cache"  # of the wrappers and, during a run, of its state in the host's transformer_options


def relative_change(v: Tensor, before: Tensor) -> float:
    """Norm of v - before, relative to that of v."""
    return float((v - before).norm() / v.norm())


def magnitude_change(v: Tensor, before: Tensor) -> float:
    """How far the ratio of the two norms is from 1."""
    return abs(1 - float(v.norm() / before.norm()))


def input_distance(model, now: "Moment", before: "Moment") -> float:
    """How far the noisy latent has moved."""
    return float((now.x - before.x).norm())


def embedding_distance(model, now: "Moment", before: "Moment") -> float:
    """Relative change of the time modulation that all blocks read."""
    timesteps = model.model_sampling.timestep(torch.tensor([now.sigma, before.sigma], device=now.x.device)).float()
    modulation = model.diffusion_model.time_modulation(timesteps)
    return relative_change(modulation[0], modulation[1])


def sigma_distance(model, now: "Moment", before: "Moment") -> float:
    """Difference of the noise levels."""
    return abs(now.sigma - before.sigma)


@dataclass(frozen=True)
class Criterion:
    """distance(model, now, before): advance of the clock. change(v, before): what the advance is held against.

    most: steps in a row that may be skipped.
    """

    distance: Callable
    change: Callable[[Tensor, Tensor], float]
    most: float = math.inf


CRITERIA = {
    "easycache": Criterion(input_distance, relative_change),  # https://arxiv.org/abs/2507.02860
    "teacache": Criterion(embedding_distance, relative_change),  # https://arxiv.org/abs/2411.19108
    "magcache": Criterion(sigma_distance, magnitude_change, most=4),  # https://arxiv.org/abs/2506.09045
}


@dataclass(frozen=True)
class Settings:
    """What a step cache may do.

    criterion: a key of `CRITERIA`. budget: the largest estimated change of a reused velocity, as a part of it. start,
    end: part of the run's steps, 0 to 1, in which steps may be skipped.
    """

    criterion: str
    budget: float
    start: float
    end: float


@dataclass(frozen=True)
class Moment:
    """Where a run is: the noisy latent `x` and its noise level `sigma`."""

    x: Tensor
    sigma: float


@dataclass
class Stream:
    """The last computed velocity of one conditioning, the clock then, and its change per unit of the clock."""

    v: Tensor
    clock: float
    rate: float = math.inf


@dataclass
class Window:
    """The streams of one window of time, normally the whole clip. clock: at `last`. skipped: how many in a row."""

    last: Moment | None = None
    clock: float = 0.0
    skipped: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)


class Run:
    """State of one sampling run. calls, skipped: evaluations of the network, one for each conditioning and step."""

    def __init__(self, settings: Settings, sigmas: list[float]):
        steps = len(sigmas) - 1
        self.criterion, self.budget = CRITERIA[settings.criterion], settings.budget
        self.first, self.end = sigmas[round(settings.start * steps)], sigmas[round(settings.end * steps)]
        self.windows: dict[object, Window] = {}
        self.calls = self.skipped = 0

    def predict(self, compute: Callable[[], list[Tensor]], model, present: list[int], window_key, now: Moment):
        """x0 of the conditionings `present`: as `compute` gives them, or from the last velocities.

        They are skipped together: guidance would amplify the difference between an old prediction and a new one.
        """
        window = self.windows.setdefault(window_key, Window())
        if window.last is not None:
            window.clock += self.criterion.distance(model, now, window.last)
        window.last = now
        self.calls += len(present)
        allowed = self.end < now.sigma <= self.first and window.skipped < self.criterion.most
        if allowed and all(self._is_fresh(window, index) for index in present):
            self.skipped += len(present)
            window.skipped += 1
            return [now.x - now.sigma * window.streams[index].v for index in present]
        results, window.skipped = compute(), 0
        for index, x0 in zip(present, results, strict=True):
            self._remember(window, index, (now.x - x0) / now.sigma)
        return results

    def _is_fresh(self, window: Window, index: int) -> bool:
        stream = window.streams.get(index)
        return stream is not None and stream.rate * (window.clock - stream.clock) < self.budget

    def _remember(self, window: Window, index: int, v: Tensor) -> None:
        before = window.streams.get(index)
        stream = window.streams[index] = Stream(v, window.clock)
        if before is not None and window.clock > before.clock:
            stream.rate = self.criterion.change(v, before.v) / (window.clock - before.clock)


def apply(model, settings: Settings):
    """A clone of the MODEL `model` whose runs skip steps; with a budget of 0 it is `model` itself.

    Raises ValueError for TeaCache's criterion on a model that was not loaded by this pack, whose time embedding it
    cannot read, and for an end that is not after the start.
    """
    if settings.end <= settings.start:
        raise ValueError(
            f"The step cache would end at {settings.end:g} of the steps and start at {settings.start:g}: choose an end "
            "after the start."
        )
    if settings.criterion == "teacache" and not hasattr(model.model.diffusion_model, "time_modulation"):
        raise ValueError(
            f"teacache reads the time embedding of this pack's models, and this {type(model.model).__name__} is "
            "another's: load it with WanModelLoader, or choose easycache."
        )
    if settings.budget == 0:
        return model

    def outer_sample(executor, noise, latent_image, sampler, sigmas, *arguments, **options):
        run = Run(settings, sigmas.tolist())
        executor.class_obj.model_options["transformer_options"][KEY] = run  # the guider's own copy for this run
        result = executor(noise, latent_image, sampler, sigmas, *arguments, **options)
        logging.info(
            "Step cache (%s, budget %g): %d of %d network calls skipped, %.2f times fewer.",
            *(settings.criterion, settings.budget, run.skipped, run.calls, run.calls / max(1, run.calls - run.skipped)),
        )
        return result

    clone = model.clone()
    for place, wrapper in ((WrappersMP.OUTER_SAMPLE, outer_sample), (WrappersMP.CALC_COND_BATCH, calc_cond_batch)):
        clone.remove_wrappers_with_key(place, KEY)  # of two step caches in a row the last one counts
        clone.add_wrapper_with_key(place, KEY, wrapper)
    return clone


def calc_cond_batch(executor, model, conds, x, sigma, model_options):
    """The host's prediction of x0 for each of `conds`, where None asks for none."""
    run = model_options["transformer_options"].get(KEY)
    level = float(sigma[0])
    if run is None or level == 0:
        return executor(model, conds, x, sigma, model_options)
    present = [index for index, cond in enumerate(conds) if cond is not None]
    context = model_options["transformer_options"].get("context_window")
    window = (len(conds), None if context is None else tuple(context.index_list))  # extra passes have other lengths

    def compute():
        results = executor(model, conds, x, sigma, model_options)
        return [results[index] for index in present]

    results = [torch.zeros_like(x) for _ in conds]
    for index, x0 in zip(present, run.predict(compute, model, present, window, Moment(x, level)), strict=True):
        results[index] = x0
    return results
