"""Solvers of the flow ODE, each a function of a denoiser, a start and a list of sigmas.

A flow model puts x = (1 - sigma) x0 + sigma noise. Between two sigmas the ODE then has the exact solution

    x(t) = r x(s) + (1 - r) m,    r = sigma_t / sigma_s,

where m is a weighted mean of the predicted x0 over the step: the solvers differ only in how they estimate it.
They follow `wan/utils/fm_solvers_unipc.py` and `wan/utils/fm_solvers.py` of Wan 2.1.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

SIGMA_MAX = {
    "unipc": float(
        torch.tensor(0.999)
    ),  # the official scheduler starts one training step (in float32) below pure noise
    "dpmpp": 1.0,
    "euler": 1.0,
}

Denoiser = Callable[[Tensor, float], Tensor]
Callback = Callable[[dict], None]


def flow_sigmas(steps: int, shift: float, solver: str) -> Tensor:
    """The official noise levels of a solver: (steps + 1,) float32, strictly decreasing, the last 0.

    "unipc" and "dpmpp" are spaced as their official schedulers do; "euler" takes the spacing that is standard for flow
    matching, which is also that of "dpmpp": 1 to 0 in equal steps, then shifted. shift > 1 spends more steps at high
    noise. Raises ValueError for fewer than one step, a shift that is not positive, or an unknown solver.
    """
    if solver not in SIGMA_MAX:
        raise ValueError(f"There is no solver named {solver!r}: choose one of {', '.join(SIGMA_MAX)}.")
    if steps < 1:
        raise ValueError(f"Sampling needs at least 1 step, not {steps}.")
    if not 0 < shift < math.inf:
        raise ValueError(f"The shift of the noise schedule must be a positive number, not {shift}: Wan uses 3 to 16.")
    sigma = torch.linspace(SIGMA_MAX[solver], 0, steps + 1, dtype=torch.float64)
    return (shift * sigma / (1 + (shift - 1) * sigma)).float()


def sample_euler(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """Euler's method: m is the x0 predicted at the start of the step. First order.

    Arguments, result and errors as in `sample_unipc`.
    """
    return _sample("euler", denoise, x, sigmas, callback)


def sample_dpmpp(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M), midpoint (https://arxiv.org/abs/2211.01095). Second order.

    Arguments, result and errors as in `sample_unipc`.
    """
    return _sample("dpmpp", denoise, x, sigmas, callback)


def sample_unipc(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """UniPC of order 2 with B(h) = e^h - 1 ("bh2") on x0 predictions (https://arxiv.org/abs/2302.04867).

    The predictor is DPM-Solver++(2M). The corrector repeats each step once the x0 at its end is known, at no further
    call of the model.

    denoise(x, sigma) -> x0: the model's prediction of the clean latent; x is float32, sigma a float. One callable for
    a whole run, so a switch of experts inside it keeps the solver's history.
    x: the latent at sigmas[0], any shape and dtype; the mathematics runs in float32 and the result has x's dtype.
    sigmas: strictly decreasing within [0, 1]; a run may start below 1 (video-to-video) and stop above 0.
    callback: called once per step with {"i", "sigma", "x", "denoised"}: the step's index and the model's input and x0.
    Returns the latent at sigmas[-1]. Raises ValueError for sigmas outside that range or order.
    """
    return _sample("unipc", denoise, x, sigmas, callback)


SOLVERS = {"unipc": sample_unipc, "dpmpp": sample_dpmpp, "euler": sample_euler}


class Run:
    """A run of a solver for a caller that asks the model itself, so that it can stop between steps and go on.

    index: steps done. x: the latent there, float32; sigma: its noise level. Until `done`, the caller predicts x0 from
    these and gives it to `step`. Arguments and errors as in `sample_unipc`.
    """

    def __init__(self, solver: str, x: Tensor, sigmas: Sequence[float]):
        self._sigmas = _checked(sigmas)
        self._loop = LOOPS[solver](x.float(), self._sigmas)
        self.index, self.x = 0, next(self._loop)

    @property
    def sigma(self) -> float:
        return self._sigmas[self.index]

    @property
    def done(self) -> bool:
        return self.index == len(self._sigmas) - 1

    def step(self, x0: Tensor) -> None:
        """Goes on to the next sigma with the prediction `x0` at this one."""
        self.x = self._loop.send(x0.float())
        self.index += 1


def _sample(solver: str, denoise: Denoiser, x: Tensor, sigmas, callback: Callback | None) -> Tensor:
    run = Run(solver, x, sigmas)
    while not run.done:
        x0 = denoise(run.x, run.sigma)
        if callback is not None:
            callback({"i": run.index, "sigma": run.sigma, "x": run.x, "denoised": x0})
        run.step(x0)
    return run.x.to(x.dtype)


# The loop of each solver: a generator that yields the latent at every sigma and is sent the x0 predicted there.

Loop = Generator[Tensor, Tensor, None]


def _euler(x: Tensor, s: list[float]) -> Loop:
    for i in range(len(s) - 1):
        x0 = yield x
        x = _advance(x, x0, s[i], s[i + 1])
    yield x


def _dpmpp(x: Tensor, s: list[float]) -> Loop:
    log_snr = [_log_snr(sigma) for sigma in s]
    history = deque(maxlen=2)
    for i in range(len(s) - 1):
        history.append((yield x))
        x = _advance(x, _predicted_mean(history, log_snr, i), s[i], s[i + 1])
    yield x


def _unipc(x: Tensor, s: list[float]) -> Loop:
    log_snr = [_log_snr(sigma) for sigma in s]
    history = deque(maxlen=3)
    start = x
    for i in range(len(s) - 1):
        history.append((yield x))
        if i > 0:
            x = _advance(start, _corrected_mean(history, log_snr, i), s[i - 1], s[i])
        start = x
        x = _advance(start, _predicted_mean(history, log_snr, i), s[i], s[i + 1])
    yield x


LOOPS = {"unipc": _unipc, "dpmpp": _dpmpp, "euler": _euler}


def _checked(sigmas: Sequence[float]) -> list[float]:
    s = [float(sigma) for sigma in sigmas]
    if len(s) < 2:
        raise ValueError(f"Sampling needs at least 2 sigmas (one step), not {len(s)}.")
    for now, after in pairwise(s):
        if not after < now:
            raise ValueError(f"Sigmas must fall from step to step, but {after:g} follows {now:g}.")
    if s[0] > 1 or s[-1] < 0:
        raise ValueError(f"Flow sigmas lie between 0 and 1, but these run from {s[0]:g} to {s[-1]:g}.")
    return s


def _advance(x: Tensor, mean: Tensor, sigma: float, target: float) -> Tensor:
    return torch.lerp(mean, x, target / sigma)


def _log_snr(sigma: float) -> float:
    """log(alpha / sigma), infinite at both ends: there the ratios of step lengths below tend to 0."""
    if sigma in (0.0, 1.0):
        return math.inf if sigma == 0 else -math.inf
    return math.log((1 - sigma) / sigma)


def _predicted_mean(x0: Sequence[Tensor], log_snr: list[float], i: int) -> Tensor:
    """Mean x0 over step i, extrapolated along the line through the last two predictions.

    First order in the first step, which has no past, and in the last, as the official schedule does ("lower order
    final").
    """
    if i == 0 or i == len(log_snr) - 2:
        return x0[-1]
    ratio = (log_snr[i + 1] - log_snr[i]) / (log_snr[i] - log_snr[i - 1])
    return x0[-1] + 0.5 * ratio * (x0[-1] - x0[-2])


def _corrected_mean(x0: Sequence[Tensor], log_snr: list[float], i: int) -> Tensor:
    """Mean x0 over step i - 1, interpolated through the predictions at its end, its start and (from i = 2) before."""
    end, begin = x0[-1], x0[-2]
    if i == 1:
        return 0.5 * (begin + end)
    h = log_snr[i] - log_snr[i - 1]
    back = (log_snr[i - 2] - log_snr[i - 1]) / h  # where the third point lies, in units of this step; negative
    # The two moments of the exponential integrator's kernel that the weights must reproduce (eq. 5 of the paper).
    gain = math.expm1(-h)
    first = (-gain / h - 1) / gain
    second = 2 * ((gain / h + 1) / h - 0.5) / gain
    past = (first - second) / (1 - back)
    return begin + (first - past) * (end - begin) + past / back * (x0[-3] - begin)
