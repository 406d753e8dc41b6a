"""A step cache for any MODEL: steps reuse the network's last prediction while it changes little.

The velocity v = (x - x0) / sigma is reused, since a flow model keeps it nearly constant. Its change is estimated as the
rate that was measured at the last computed steps (change of v per unit of a clock) times the clock's advance since. The
criteria differ in the clock and in their measure of change. The budget bounds the estimate, which is a relative error
of v; magcache only compares magnitudes, so it also limits how many steps in a row are skipped.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..observe import report
from . import levels

KEY = "wan_step_cache"  # of the wrappers and, during a run, of its state in the host's transformer_options


def relative_change(v: Tensor, before: Tensor) -> float:
    """Return the norm of v - before, relative to that of v."""
    return float((v - before).norm() / v.norm())


def magnitude_change(v: Tensor, before: Tensor) -> float:
    """Return the distance of the ratio of the two norms from 1."""
    return abs(1 - float(v.norm() / before.norm()))


def input_distance(model, now: "Moment", before: "Moment") -> float:
    """Return the distance that the noisy latent has moved."""
    return float((now.x - before.x).norm())


def embedding_distance(model, now: "Moment", before: "Moment") -> float:
    """Return the relative change of the time modulation that all blocks read."""
    timesteps = model.model_sampling.timestep(torch.tensor([now.sigma, before.sigma], device=now.x.device)).float()
    modulation = model.diffusion_model.time_modulation(timesteps)
    return relative_change(modulation[0], modulation[1])


def sigma_distance(model, now: "Moment", before: "Moment") -> float:
    """Return the difference of the noise levels."""
    return abs(now.sigma - before.sigma)


@dataclass(frozen=True)
class Criterion:
    """distance(model, now, before): advance of the clock. change(v, before): measure of change.

    most: steps that may be skipped in a row.
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
    """Settings of a step cache.

    criterion: a key of `CRITERIA`. budget: the largest estimated relative change of a reused velocity. start, end:
    steps may be skipped between these fractions (0 to 1) of the run.
    """

    criterion: str
    budget: float
    start: float
    end: float


@dataclass(frozen=True)
class Moment:
    """A point of a run: the noisy latent `x` and its noise level `sigma`."""

    x: Tensor
    sigma: float


@dataclass
class Stream:
    """The last computed velocity of one conditioning, the clock at that time, and its change per unit of the clock."""

    v: Tensor
    clock: float
    rate: float = math.inf


@dataclass
class Window:
    """The streams of one window of time, normally the whole clip. clock: at `last`. skipped: steps in a row."""

    last: Moment | None = None
    clock: float = 0.0
    skipped: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)


class Run:
    """State of one sampling run. calls, skipped: evaluations of the network, one for each conditioning and step.

    seen, computed: noise levels at which there was an evaluation, and those at which one was computed.
    """

    def __init__(self, settings: Settings, sigmas: list[float]):
        self.sigmas, steps = sigmas, len(sigmas) - 1
        self.seen: set[float] = set()
        self.computed: set[float] = set()
        self.criterion, self.budget = CRITERIA[settings.criterion], settings.budget
        self.first, self.end = sigmas[round(settings.start * steps)], sigmas[round(settings.end * steps)]
        self.windows: dict[object, Window] = {}
        self.calls = self.skipped = 0

    def predict(self, compute: Callable[[], list[Tensor]], model, present: list[int], window_key, now: Moment):
        """Return x0 of the conditionings `present`, computed by `compute` or from the last velocities.

        They are skipped together: guidance would amplify the difference between an old prediction and a new one.
        """
        window = self.windows.setdefault(window_key, Window())
        if window.last is not None:
            window.clock += self.criterion.distance(model, now, window.last)
        window.last = now
        self.calls += len(present)
        self.seen.add(now.sigma)
        allowed = self.end < now.sigma <= self.first and window.skipped < self.criterion.most
        if allowed and all(self._is_fresh(window, index) for index in present):
            self.skipped += len(present)
            window.skipped += 1
            return [now.x - now.sigma * window.streams[index].v for index in present]
        results, window.skipped = compute(), 0
        self.computed.add(now.sigma)
        for index, x0 in zip(present, results, strict=True):
            self._remember(window, index, (now.x - x0) / now.sigma)
        return results

    def steps(self) -> list[str]:
        """Return for each step of the run: "computed", "skipped", or "other", of another expert or in another run."""
        kinds = {level: "computed" if level in self.computed else "skipped" for level in self.seen}
        return [kinds.get(level, "other") for level in self.sigmas[:-1]]

    def _is_fresh(self, window: Window, index: int) -> bool:
        stream = window.streams.get(index)
        return stream is not None and stream.rate * (window.clock - stream.clock) < self.budget

    def _remember(self, window: Window, index: int, v: Tensor) -> None:
        before = window.streams.get(index)
        stream = window.streams[index] = Stream(v, window.clock)
        if before is not None and window.clock > before.clock:
            stream.rate = self.criterion.change(v, before.v) / (window.clock - before.clock)


def apply(model, settings: Settings, shown_at: dict[str, str] | None = None):
    """Return a clone of the MODEL `model` whose runs skip steps, or `model` itself if the budget is 0.

    shown_at: where the editor shows which steps a run skipped, as `preview.where` returns it, or None.
    Raise ValueError for teacache on a model of another loader, whose time embedding it cannot read, and if the end is
    not after the start.
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
        report.send(shown_at, steps=run.steps())
        logging.info(
            "Step cache (%s, budget %g): %d of %d network calls skipped, %.2f times fewer.",
            *(settings.criterion, settings.budget, run.skipped, run.calls, run.calls / max(1, run.calls - run.skipped)),
        )
        return result

    clone = model.clone()
    for place, wrapper in ((WrappersMP.OUTER_SAMPLE, outer_sample), (WrappersMP.CALC_COND_BATCH, calc_cond_batch)):
        clone.remove_wrappers_with_key(place, KEY)  # the last of several step caches counts
        clone.add_wrapper_with_key(place, KEY, wrapper)
    return clone


def calc_cond_batch(executor, model, conds, x, sigma, model_options):
    """Return the prediction of x0 for each of `conds` that is not None; the host's signature."""
    run = model_options["transformer_options"].get(KEY)
    if run is None or (level := levels.of_step(model_options["transformer_options"], sigma).now) == 0:
        return executor(model, conds, x, sigma, model_options)
    present = [index for index, cond in enumerate(conds) if cond is not None]
    context = model_options["transformer_options"].get("context_window")
    window = (len(conds), None if context is None else tuple(context.index_list))  # extra passes differ in length

    def compute():
        results = executor(model, conds, x, sigma, model_options)
        return [results[index] for index in present]

    results = [torch.zeros_like(x) for _ in conds]
    for index, x0 in zip(present, run.predict(compute, model, present, window, Moment(x, level)), strict=True):
        results[index] = x0
    return results
