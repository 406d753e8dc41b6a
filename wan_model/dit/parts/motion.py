"""The last frames of the clip before as tokens, fewer the longer ago (`FramePackMotioner`, `s2v/motioner.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...variants import PATCH
from ..rope import Positions
from ..sequence import Draft, to_tokens

LATENT_FRAMES = 19  # of the clip before
NEAREST = ((1, 1), (2, 2), (4, 16))  # how many times coarser than the clip's tokens, and of how many latent frames
SMALLEST = 8  # sides of a latent that the coarsest tokens need


class FramePacker(nn.Module):
    """A convolution for each distance in time: the nearest frame in full, then 2 frames at a half, 16 at a quarter."""

    def __init__(self, channels, dim, ops, **factory):
        super().__init__()
        for name, (times, _) in zip(("proj", "proj_2x", "proj_4x"), NEAREST, strict=True):
            kernel = (times * PATCH[0], times * PATCH[1], times * PATCH[2])
            setattr(self, name, ops.Conv3d(channels, dim, kernel_size=kernel, stride=kernel, **factory))

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Latents (B, C, n, H, W) of the clip before, zeros before its start -> grids (B, dim, F, H, W), last first."""
        missing = max(0, LATENT_FRAMES - latents.shape[2])
        latents = torch.cat((latents.new_zeros(*latents.shape[:2], missing, *latents.shape[3:]), latents), dim=2)
        end, grids = latents.shape[2], []
        for convolution, (_, count) in zip((self.proj, self.proj_2x, self.proj_4x), NEAREST, strict=True):
            grids.append(convolution(latents[:, :, end - count : end]))
            end -= count
        return grids


def motion_tokens(packer: FramePacker, latents: Tensor, draft: Draft) -> tuple[Tensor, tuple[Positions, ...]]:
    """Return the tokens (B, n, dim) of the motion `latents` (B, C, n, H, W), and their positions.

    They lie before the clip's first frame, which is 0, and spread over its rows and columns.
    """
    grids = packer(latents)
    positions, first = [], 0
    for grid, (_, count) in zip(grids, NEAREST, strict=True):
        first -= count
        full = draft.place((count, *draft.grid[1:]), first)
        axes = zip((full.frames, full.rows, full.columns), grid.shape[2:], strict=True)
        frames, rows, columns = (_spread(axis, wanted) for axis, wanted in axes)
        positions.append(Positions(frames, rows, columns))
    return torch.cat([to_tokens(grid) for grid in grids], dim=1), tuple(positions)


def motion_length(height: int, width: int) -> int:
    """Return the number of tokens of the motion latents of `height` and `width`."""
    sides = ((times, count // times) for times, count in NEAREST)
    return sum(frames * (height // (PATCH[1] * times)) * (width // (PATCH[2] * times)) for times, frames in sides)


def _spread(axis: Sequence[float], count: int) -> tuple[float, ...]:
    """Return `count` of the positions `axis`, evenly spread from the first to the last, rounded down."""
    step = (len(axis) - 1) / max(count - 1, 1)
    return tuple(axis[len(axis) - 1 if 0 < i == count - 1 else int(i * step)] for i in range(count))
