"""Solvers of the flow ODE, each a function of a denoiser, a start and a list of sigmas.

A flow model puts x = (1 - sigma) x0 + sigma noise. Between two sigmas the ODE then has the exact solution

    x(t) = r x(s) + (1 - r) m,    r = sigma_t / sigma_s,

where m is a weighted mean of the predicted x0 over the step: the solvers differ only in how they estimate it. They
follow `wan/utils/fm_solvers_unipc.py` and `wan/utils/fm_solvers.py` of Wan 2.1. `sample_lcm` is no solver of the ODE:
it draws new noise in every step, as models distilled to few steps (self-forcing, DMD, rCM) are trained to be used.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .loops import LOOPS, Noise
from .schedule import SIGMA_MAX, check_sigmas, flow_sigmas, timestep

__all__ = [
    "SAMPLERS",
    "SIGMA_MAX",
    "SOLVERS",
    "Noise",
    "Run",
    "check_sigmas",
    "flow_sigmas",
    "sample_dpmpp",
    "sample_euler",
    "sample_lcm",
    "sample_res_multistep",
    "sample_unipc",
    "timestep",
]

Denoiser = Callable[[Tensor, float], Tensor]
Callback = Callable[[dict], None]


def sample_euler(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """Euler's method: m is the x0 predicted at the start of the step. First order.

    Arguments, result and errors as in `sample_unipc`.
    """
    return _sample(Run("euler", x, sigmas), denoise, callback).to(x.dtype)


def sample_dpmpp(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M), midpoint (https://arxiv.org/abs/2211.01095). Second order.

    Arguments, result and errors as in `sample_unipc`.
    """
    return _sample(Run("dpmpp", x, sigmas), denoise, callback).to(x.dtype)


def sample_unipc(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None) -> Tensor:
    """UniPC of order 2 with B(h) = e^h - 1 ("bh2") on x0 predictions (https://arxiv.org/abs/2302.04867).

    The predictor is DPM-Solver++(2M). The corrector repeats each step once the x0 at its end is known, at no further
    call of the model.

    denoise(x, sigma) -> x0: the model's prediction of the clean latent; x is float32, sigma a float. One callable for
    a whole run, so a switch of experts inside it keeps the solver's history.
    x: the latent at sigmas[0], any shape and dtype; the mathematics runs in float32 and the result has x's dtype.
    sigmas: strictly decreasing within [0, 1]; a run may start below 1 (video-to-video) and stop above 0.
    callback: called with each prediction, {"i", "sigma", "x", "denoised"}: the step's index and the model's input and
    x0.
    Return the latent at sigmas[-1]. Raise ValueError for sigmas outside that range or order.
    """
    return _sample(Run("unipc", x, sigmas), denoise, callback).to(x.dtype)


def sample_res_multistep(
    denoise: Denoiser, x: Tensor, sigmas: Sequence[float], *, callback: Callback | None = None
) -> Tensor:
    """The two-step method of refined exponential solvers (https://arxiv.org/abs/2308.02157). Second order.

    Arguments, result and errors as in `sample_unipc`.
    """
    return _sample(Run("res_multistep", x, sigmas), denoise, callback).to(x.dtype)


def sample_lcm(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise | torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Predict x0 and add new noise to it, step by step (https://arxiv.org/abs/2303.01469, algorithm 1).

    This is the loop of self-forcing (`pipeline/causal_inference.py`), of DMD models and of rCM's SDE.

    noise: a function of a latent that returns standard normal noise of its shape, or a generator to draw from; None is
    a generator with seed 0. It is asked once a step, not for a step that ends at sigma 0.
    The other arguments, result and errors as in `sample_unipc`.
    """
    return _sample(Run("lcm", x, sigmas, noise), denoise, callback).to(x.dtype)


SOLVERS = {
    "unipc": sample_unipc,
    "dpmpp": sample_dpmpp,
    "euler": sample_euler,
    "res_multistep": sample_res_multistep,
}
SAMPLERS = {**SOLVERS, "lcm": sample_lcm}  # including the one that is no solver of the ODE


class Run:
    """A run of a solver for a caller that asks the model itself, so that it can stop between predictions and go on.

    index: steps done. x: the latent to predict from, float32; sigma: its noise level. Until `done`, the caller predicts
    x0 from these and gives it to `step`. Arguments and errors as in `sample_unipc` and `sample_lcm`.
    """

    def __init__(self, solver: str, x: Tensor, sigmas: Sequence[float], noise: Noise | torch.Generator | None = None):
        self._sigmas = check_sigmas(sigmas)
        self._loop = LOOPS[solver](x.float(), self._sigmas, _noise_source(noise))
        self.done = False
        self.index, self.x, self.sigma = next(self._loop)

    def step(self, x0: Tensor) -> None:
        """Go on to the next prediction with `x0`, the one of `x` at `sigma`."""
        try:
            self.index, self.x, self.sigma = self._loop.send(x0.float())
        except StopIteration as end:
            self.index, self.x, self.sigma, self.done = len(self._sigmas) - 1, end.value, self._sigmas[-1], True


def _sample(run: Run, denoise: Denoiser, callback: Callback | None) -> Tensor:
    while not run.done:
        x0 = denoise(run.x, run.sigma)
        if callback is not None:
            callback({"i": run.index, "sigma": run.sigma, "x": run.x, "denoised": x0})
        run.step(x0)
    return run.x


def _noise_source(noise: Noise | torch.Generator | None) -> Noise:
    if callable(noise):
        return noise
    generator = torch.Generator().manual_seed(0) if noise is None else noise
    return lambda x: torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
