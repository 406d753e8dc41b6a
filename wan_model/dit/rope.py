"""Rotary position embedding over frame, row and column (`rope_params`, `rope_apply` of `wan/modules/model.py`)."""

import torch
from torch import Tensor

THETA = 10000.0


Axes = tuple[float, float, float]  # a number for frames, rows and columns


def rope_table(
    grid: tuple[int, int, int],
    head_dim: int,
    device: torch.device | None = None,
    *,
    scale: Axes = (1.0, 1.0, 1.0),
    shift: Axes = (0.0, 0.0, 0.0),
) -> Tensor:
    """Cosine and sine for every token of a (F, H, W) grid: float32 (F * H * W, head_dim / 2, 2).

    Rows and columns get a third of the pairs each, rounded down, and frames the rest. A token at index k of an axis has
    the position scale * k + shift. Angles are float64: at a large position their float32 rounding would be visible in
    the rotation.
    """
    third = 2 * (head_dim // 6)
    axes = []
    for axis, (length, channels) in enumerate(zip(grid, (head_dim - 2 * third, third, third), strict=True)):
        exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        position = scale[axis] * torch.arange(length, dtype=torch.float64) + shift[axis]
        angle = torch.outer(position, THETA**-exponent)  # (length, channels / 2)
        rotation = torch.stack((angle.cos(), angle.sin()), dim=-1).to(device, torch.float32)
        shape = [1, 1, 1, -1, 2]
        shape[axis] = length
        axes.append(rotation.view(shape).expand(*grid, -1, -1))  # (F, H, W, channels / 2, 2)
    return torch.cat(axes, dim=-2).flatten(0, 2)  # (F * H * W, head_dim / 2, 2)


def rotate_(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs of `x` (B, L, heads * head_dim) by `table` (L, head_dim / 2, 2).

    A float32 `x` is overwritten: one pass in place. Other dtypes are rotated in float32 and rounded once.
    """
    heads = x.shape[-1] // (2 * table.shape[-2])
    pairs = x.float().unflatten(-1, (heads, -1, 2))  # (B, L, heads, head_dim / 2, 2)
    table = table.unsqueeze(1)  # (L, 1, head_dim / 2, 2)
    if torch.compiler.is_compiling():  # which knows no complex numbers, but joins these to one pass
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs).mul_(torch.view_as_complex(table)))
    return rotated.flatten(2).to(x.dtype)  # (B, L, heads * head_dim)
