"""The note on a latent that still holds noise, for the run that goes on with it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from .schedule import Schedule


@dataclass(frozen=True)
class Unfinished:
    """Entry of a LATENT that still holds noise.

    sigma: its noise level. draws: how often noise was drawn, so that the next run draws on with the same seed.
    samples: the tensor that is meant; nodes that put another in its place copy this entry with the rest.
    """

    ENTRY: ClassVar[str] = "wan_unfinished"

    sigma: float
    draws: int
    samples: torch.Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, latent: dict) -> "Unfinished | None":
        """Return what the LATENT `latent` says of its noise, None where it says nothing."""
        entry = latent.get(cls.ENTRY)
        return entry if entry is not None and entry.samples is latent["samples"] else None

    def check_start(self, schedule: Schedule) -> None:
        """Raise ValueError where `schedule`, which is to go on from here, starts at another noise level."""
        start = float(schedule.sigmas[0])
        if abs(start - self.sigma) > 1e-4:
            raise ValueError(
                f"The latent was left at noise level {self.sigma:.4f} and this run starts at {start:.4f}: give both "
                "samplers the same steps, shift and solver, and this one the start_step at which the other ended."
            )
