"""The loop of each solver: how a latent goes from one sigma to the next.

A loop is a generator. It yields (step, latent, its sigma) for each prediction that it needs, is sent the predicted x0,
and returns the latent at the last sigma. It may ask more than once a step, at any sigma in between.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

Loop = Generator[tuple[int, Tensor, float], Tensor, Tensor]
Noise = Callable[[Tensor], Tensor]


def euler(x: Tensor, s: list[float], noise: Noise) -> Loop:
    """Mean x0 of a step: the one predicted at its start."""
    for i in range(len(s) - 1):
        x0 = yield i, x, s[i]
        x = _advance(x, x0, s[i], s[i + 1])
    return x


def lcm(x: Tensor, s: list[float], noise: Noise) -> Loop:
    """New noise is added to each predicted x0."""
    for i in range(len(s) - 1):
        x0 = yield i, x, s[i]
        x = torch.lerp(x0, noise(x0), s[i + 1]) if s[i + 1] > 0 else x0
    return x


def dpmpp(x: Tensor, s: list[float], noise: Noise) -> Loop:
    """Mean x0 of a step: on the line through the last two predictions."""
    log_snr = [_log_snr(sigma) for sigma in s]
    history: deque[Tensor] = deque(maxlen=2)
    for i in range(len(s) - 1):
        history.append((yield i, x, s[i]))
        x = _advance(x, _predicted_mean(history, log_snr, i), s[i], s[i + 1])
    return x


def res_multistep(x: Tensor, s: list[float], noise: Noise) -> Loop:
    """Mean x0 of a step: on the line through the last two predictions, in log sigma."""
    past = None
    for i in range(len(s) - 1):
        x0 = yield i, x, s[i]
        mean = x0 if past is None or s[i + 1] == 0 else x0 + _res_weight(s, i) * (x0 - past)
        x, past = _advance(x, mean, s[i], s[i + 1]), x0
    return x


def unipc(x: Tensor, s: list[float], noise: Noise) -> Loop:
    """As `dpmpp`, and each step is corrected once the x0 at its end is known."""
    log_snr = [_log_snr(sigma) for sigma in s]
    history: deque[Tensor] = deque(maxlen=3)
    start = x
    for i in range(len(s) - 1):
        history.append((yield i, x, s[i]))
        if i > 0:
            x = _advance(start, _corrected_mean(history, log_snr, i), s[i - 1], s[i])
        start = x
        x = _advance(start, _predicted_mean(history, log_snr, i), s[i], s[i + 1])
    return x


def _advance(x: Tensor, mean: Tensor, sigma: float, target: float) -> Tensor:
    return torch.lerp(mean, x, target / sigma)


def _log_snr(sigma: float) -> float:
    """log(alpha / sigma), infinite at both ends: there the ratios of step lengths below tend to 0."""
    if sigma in (0.0, 1.0):
        return math.inf if sigma == 0 else -math.inf
    return math.log((1 - sigma) / sigma)


def _res_weight(s: list[float], i: int) -> float:
    """Return how far the mean x0 of step i lies beyond the newest x0, in units of its change since the one before.

    phi_2(-h) / (c phi_1(-h)) in the paper's terms, where h is the step and c the last step in log sigma, over h.
    """
    h, last = math.log(s[i] / s[i + 1]), math.log(s[i - 1] / s[i])
    phi1 = -math.expm1(-h) / h
    phi2 = (1 - phi1) / h
    return phi2 * h / (last * phi1)


def _predicted_mean(x0: Sequence[Tensor], log_snr: list[float], i: int) -> Tensor:
    """Mean x0 over step i, extrapolated along the line through the last two predictions.

    First order in the first step, which has no history, and in the last, as the official schedule does ("lower order
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


LOOPS = {"unipc": unipc, "dpmpp": dpmpp, "euler": euler, "lcm": lcm, "res_multistep": res_multistep}
