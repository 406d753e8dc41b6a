"""Rotary position embedding over frame, row and column (`rope_params`, `rope_apply` of `wan/modules/model.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transfer import send

THETA = 10000.0

Axes = tuple[float, float, float]  # one number each for frames, rows and columns


@dataclass(frozen=True)
class Positions:
    """Rotary positions of a grid of tokens: one number for each of its frames, rows and columns.

    source: further positions by which all channel pairs are rotated, to distinguish streams at the same place.
    """

    frames: tuple[float, ...]
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    source: int = 0

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of frames, rows and columns."""
        return len(self.frames), len(self.rows), len(self.columns)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        frames, rows, columns = self.grid
        return frames * rows * columns


def grid_positions(
    grid: tuple[int, int, int], *, scale: Axes = (1.0, 1.0, 1.0), shift: Axes = (0.0, 0.0, 0.0), source: int = 0
) -> Positions:
    """Return the positions scale * k + shift of the tokens k = 0, 1, ... along each axis of `grid`."""
    axes = (tuple(a * k + b for k in range(n)) for n, a, b in zip(grid, scale, shift, strict=True))
    frames, rows, columns = axes
    return Positions(frames, rows, columns, source)


def rope_table(positions: Sequence[Positions], head_dim: int, device: torch.device | None = None) -> Tensor:
    """Return cosine and sine for every token of these grids, one after the other: float32 (tokens, head_dim / 2, 2).

    Rows and columns get a third of the pairs each, rounded down, and frames the rest. Angles are float64: at
    large positions, rounding to float32 would change the rotation visibly.
    """
    tables = [_grid_table(grid, head_dim, device) for grid in positions]
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def _grid_table(positions: Positions, head_dim: int, device: torch.device | None) -> Tensor:
    third = 2 * (head_dim // 6)
    turn = positions.source * _frequencies(head_dim)  # (head_dim / 2,)
    axes, done = [], 0
    for axis, channels in enumerate((head_dim - 2 * third, third, third)):
        place = torch.tensor((positions.frames, positions.rows, positions.columns)[axis], dtype=torch.float64)
        angle = torch.outer(place, _frequencies(channels)) + turn[done : done + channels // 2]
        done += channels // 2
        rotation = send(torch.stack((angle.cos(), angle.sin()), dim=-1).float(), device)
        shape = [1, 1, 1, -1, 2]
        shape[axis] = len(place)
        axes.append(rotation.view(shape).expand(*positions.grid, -1, -1))  # (F, H, W, channels / 2, 2)
    return torch.cat(axes, dim=-2).flatten(0, 2)  # (F * H * W, head_dim / 2, 2)


def rotary(places: Sequence[float], head_dim: int, device: torch.device | None = None) -> Tensor:
    """Return cosine and sine of tokens along one axis: float32 (tokens, head_dim / 2, 2)."""
    angle = torch.outer(torch.tensor(places, dtype=torch.float64), _frequencies(head_dim))
    return send(torch.stack((angle.cos(), angle.sin()), dim=-1).float(), device)


def _frequencies(channels: int) -> Tensor:
    return THETA ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)


def rotate_(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs of `x` (B, L, heads * head_dim) by `table` (L, head_dim / 2, 2).

    A float32 `x` is overwritten: one pass in place. Other dtypes are rotated in float32 and rounded once.
    """
    heads = x.shape[-1] // (2 * table.shape[-2])
    pairs = x.float().unflatten(-1, (heads, -1, 2))  # (B, L, heads, head_dim / 2, 2)
    table = table.unsqueeze(1)  # (L, 1, head_dim / 2, 2)
    if torch.compiler.is_compiling():  # it does not support complex numbers, but fuses these operations
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs).mul_(torch.view_as_complex(table)))
    return rotated.flatten(2).to(x.dtype)  # (B, L, heads * head_dim)
