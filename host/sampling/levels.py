"""The noise levels of a run as numbers, which this pack's sampler leaves for what runs inside its steps.

They would otherwise have to be read from the device, which waits for all work queued there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

KEY = "wan_noise_levels"  # entry of the host's transformer_options


class Levels(NamedTuple):
    """now: the noise level of the current prediction. whole: those of the run."""

    now: float
    whole: Sequence[float]


def of_step(options: dict, sigma: torch.Tensor) -> Levels:
    """Return the levels in a step at `sigma` (B,), of any sampler. options: transformer_options."""
    return options.get(KEY) or Levels(float(sigma[0]), options["sample_sigmas"].tolist())
