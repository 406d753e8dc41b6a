"""Clips that grow part by part: each longer one is written behind the last, in the same memory.

A graph keeps every LATENT that it has made. Were each a copy, a clip of n parts would take the memory of n * n / 2.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

ROOM = 2  # capacity of new memory, as a multiple of what is in it


@dataclass
class Memory:
    """frames: (B, C, capacity, h, w). filled: how many of them are written; they are never written again."""

    frames: torch.Tensor = field(repr=False)
    filled: int


@dataclass(frozen=True)
class Joined:
    """Entry of a LATENT whose samples begin a `Memory`. samples: those that the record describes."""

    ENTRY: ClassVar[str] = "wan_joined"

    memory: Memory
    samples: torch.Tensor = field(repr=False, compare=False)


def join(before: dict, part: torch.Tensor) -> dict:
    """Return the LATENT entries of the clip `before` with the latent `part` (B, C, n, h, w) behind it."""
    samples, record = before["samples"], before.get(Joined.ENTRY)
    start, stop = samples.shape[2], samples.shape[2] + part.shape[2]
    memory = record.memory if record is not None and record.samples is samples else None
    if memory is None or memory.filled != start or memory.frames.shape[2] < stop or memory.frames.dtype != part.dtype:
        frames = part.new_empty(*samples.shape[:2], ROOM * stop, *samples.shape[3:])
        frames[:, :, :start] = samples
        memory = Memory(frames, start)
    memory.frames[:, :, start:stop] = part
    memory.filled = stop
    joined = memory.frames[:, :, :stop]
    return {"samples": joined, Joined.ENTRY: Joined(memory, joined)}
