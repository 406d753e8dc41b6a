"""Which tokens and which heads each of several devices has, in integers alone."""

from __future__ import annotations

import functools
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..dit.sequence import Sequence


def part(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return start and end of what device `rank` of `size` has of `count` things: equal shares, but for one."""
    return count * rank // size, count * (rank + 1) // size


def held(groups: tuple[int, ...], rank: int, size: int) -> tuple[int, ...]:
    """Return how many tokens of each of the `groups` (`Sequence.groups`) device `rank` holds.

    Every group is shared by all, so that each device has a part of every frame: what works frame by frame, as timesteps
    and sound do, works on a part as on the whole.
    """
    return tuple(stop - start for start, stop in (part(count, rank, size) for count in groups))


@functools.lru_cache(maxsize=256)
def places(groups: tuple[int, ...], rank: int, size: int, device: torch.device) -> Tensor:
    """Return the places in the whole sequence of the tokens that device `rank` holds: int64 (L of this device,)."""
    starts = accumulate(groups, initial=0)
    spans = [
        tuple(start + end for end in part(count, rank, size)) for start, count in zip(starts, groups, strict=False)
    ]
    with torch.inference_mode(False):  # it is kept, and may be used where gradients are wanted
        return torch.cat([torch.arange(*span, device=device) for span in spans])


def sequence_of(whole: Sequence, rank: int, size: int) -> Sequence:
    """Return the sequence of the tokens that device `rank` holds of `whole`."""
    groups, own = whole.groups, held(whole.groups, rank, size)
    starts, own_starts = (list(accumulate(counts, initial=0)) for counts in (groups, own))
    at = dict(zip(starts, own_starts, strict=True))  # place of a group's start in the whole, and here
    rows = whole.times.shape[1]
    counts = whole.counts or (starts[-1] // rows,) * rows
    edges = [at[edge] for edge in accumulate(counts, initial=0)]
    own_counts = tuple(stop - start for start, stop in pairwise(edges))
    return Sequence(
        rope=whole.rope.index_select(0, places(groups, rank, size, whole.rope.device)),
        times=whole.times,
        counts=None if len(set(own_counts)) == 1 else own_counts,
        clip=slice(at[whole.clip.start], at[whole.clip.stop]),
        clip_rows=whole.clip_rows,
        groups=own,
    )


def heads_of(heads: int, rank: int, size: int) -> tuple[int, int, bool]:
    """Return first head and end of those that device `rank` attends with, and whether its result counts.

    Where there are more devices than heads, the last ones repeat the work of others.
    """
    if size <= heads:
        return (*part(heads, rank, size), True)
    return rank % heads, rank % heads + 1, rank < heads
