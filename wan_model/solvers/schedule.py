"""Noise levels and timesteps of the solvers."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

SIGMA_MAX = {
    "unipc": float(torch.tensor(0.999)),  # the official schedule starts one training step (float32) below pure noise
    "dpmpp": 1.0,
    "euler": 1.0,
    "lcm": 1.0,
    "res_multistep": 1.0,
}
WHOLE_TIMESTEPS = ("unipc", "dpmpp")  # solvers whose official schedulers cut timesteps to whole numbers


def flow_sigmas(steps: int, shift: float, solver: str) -> Tensor:
    """Return the official noise levels of a solver: (steps + 1,) float32, strictly decreasing, the last 0.

    "unipc" and "dpmpp" are spaced as their official schedulers do; the others take the spacing that is standard for
    flow matching, which is also that of "dpmpp": 1 to 0 in equal steps, then shifted. shift > 1 spends more steps at
    high noise. Raise ValueError for fewer than one step, a shift that is not positive, or an unknown solver.
    """
    if solver not in SIGMA_MAX:
        raise ValueError(f"There is no solver named {solver!r}: choose one of {', '.join(SIGMA_MAX)}.")
    if steps < 1:
        raise ValueError(f"Sampling needs at least 1 step, not {steps}.")
    if not 0 < shift < math.inf:
        raise ValueError(f"The shift of the noise schedule must be a positive number, not {shift}: Wan uses 3 to 16.")
    sigma = torch.linspace(SIGMA_MAX[solver], 0, steps + 1, dtype=torch.float64)
    return (shift * sigma / (1 + (shift - 1) * sigma)).float()


def timestep(sigma, solver: str):
    """Return the timestep, 0 to 1000, that a network reads at noise level `sigma` (a float or tensor).

    trunc(1000 sigma) for the solvers of `WHOLE_TIMESTEPS`, 1000 sigma for the others, as in the few-step references.
    """
    if solver not in WHOLE_TIMESTEPS:
        return sigma * 1000
    return (sigma * 1000 + 1e-3) // 1  # float32 must not lose a whole step to rounding


def check_sigmas(sigmas: Sequence[float]) -> list[float]:
    """Return `sigmas` as floats; raise ValueError unless there are two or more, decreasing, within [0, 1]."""
    s = [float(sigma) for sigma in sigmas]
    if len(s) < 2:
        raise ValueError(f"Sampling needs at least 2 sigmas (one step), not {len(s)}.")
    for now, after in pairwise(s):
        if not after < now:
            raise ValueError(f"Sigmas must fall from step to step, but {after:g} follows {now:g}.")
    if s[0] > 1 or s[-1] < 0:
        raise ValueError(f"Flow sigmas lie between 0 and 1, but these run from {s[0]:g} to {s[-1]:g}.")
    return s
