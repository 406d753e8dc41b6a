"""The noise schedule of a run, or the part that it takes of one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...wan_model import solvers

TO_THE_END = 10000  # an end_step that no run reaches, as in the host's KSamplerAdvanced


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a run.

    solver: a key of `solvers.SAMPLERS`. sigmas: (n + 1,) float32 noise levels, decreasing, of n steps. from_noise:
    whether the run starts from pure noise, as official loops do up to one training step below noise level 1; else it
    starts from the given latent, noised to the first level.
    """

    solver: str
    sigmas: torch.Tensor
    from_noise: bool

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def part(self, start_step: int, end_step: int) -> "Schedule":
        """Return steps `start_step` to `end_step` alone; raise ValueError if there are none."""
        end = min(end_step, self.steps)
        if not start_step < end:
            raise ValueError(
                f"The run would start at step {start_step} and end at step {end} of {self.steps}: "
                "choose a start_step below both."
            )
        sigmas = self.sigmas[start_step : end + 1]
        return replace(self, sigmas=sigmas, from_noise=self.from_noise and start_step == 0)


def planned(steps: int, shift: float, solver: str, denoise: float = 1.0) -> Schedule:
    """Return the last `steps` steps of the solver's schedule of steps / denoise, as the host counts them.

    denoise: in (0, 1]. Raise ValueError as `solvers.flow_sigmas`.
    """
    total = int(steps / denoise)
    return Schedule(solver, solvers.flow_sigmas(total, shift, solver)[-(steps + 1) :], from_noise=denoise == 1)


def given(sigmas: Sequence[float] | torch.Tensor, solver: str, denoise: float = 1.0) -> Schedule:
    """Return the schedule of explicit `sigmas`; denoise below 1 takes that fraction at its end.

    Raise ValueError if there is no step in them, if they do not decrease, or if they are not within [0, 1].
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float32).flatten()
    if len(levels) < 2:
        raise ValueError(
            f"The connected SIGMAS hold {len(levels)} noise levels, a run needs 2 or more (one step): give the "
            "scheduler node more steps, or a denoise above 0."
        )
    solvers.check_sigmas(levels.tolist())
    kept = max(1, round(denoise * (len(levels) - 1)))
    levels = levels[-(kept + 1) :].clone()
    return Schedule(solver, levels, from_noise=float(levels[0]) >= solvers.SIGMA_MAX["unipc"])
