"""The record in a latent that still holds noise, for the run that continues it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from .schedule import Schedule


@dataclass(frozen=True)
class Unfinished:
    """Entry of a LATENT that still holds noise.

    sigma: its noise level. draws: draws of noise so far, from which the next run continues with the same seed.
    samples: the latent that the record describes; nodes that replace it copy this entry unchanged.
    """

    ENTRY: ClassVar[str] = "wan_unfinished"

    sigma: float
    draws: int
    samples: torch.Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, latent: dict) -> "Unfinished | None":
        """Return the record of the LATENT `latent`, or None if it has none."""
        entry = latent.get(cls.ENTRY)
        return entry if entry is not None and entry.samples is latent["samples"] else None

    @classmethod
    def refuse(cls, latent: dict | None, name: str) -> None:
        """Raise ValueError if `latent`, the input `name` of a node, still holds noise."""
        if latent is not None and (record := cls.of(latent)) is not None:
            raise ValueError(
                f"{name} still holds noise of level {record.sigma:.4f}: take that of the sampler that ends at 0."
            )

    def check_start(self, schedule: Schedule) -> None:
        """Raise ValueError if the `schedule` that continues this latent starts at another noise level."""
        start = float(schedule.sigmas[0])
        if abs(start - self.sigma) > 1e-4:
            raise ValueError(
                f"The latent was left at noise level {self.sigma:.4f} and this run starts at {start:.4f}: give both "
                "samplers the same steps, shift and solver, and this one the start_step at which the other ended."
            )
