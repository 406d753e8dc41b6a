"""Checks of the Triton kernels against torch's operations, at the widths of the real models."""

from itertools import product

import torch
from torch.nn.functional import normalize, silu

from .items import BFLOAT16, FLOAT16, FLOAT32, Here, Skip, Wrong, below, item, relative
from .models import kernels_of
from wan_model.dit import layers, rope

CHANNELS = (96, 160, 192, 256, 320, 384, 512, 640, 1024)  # of the VAEs' layers
WIDTHS = (1536, 3072, 5120)  # of the DiTs
BOUNDS = {FLOAT32: 2e-5, BFLOAT16: 6e-3, FLOAT16: 1e-3}


def innermost(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, C, T, H, W) with its channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last_3d)


@item("kernel activate", "models", over=[(2,), (1,), (None,)])
def activate(here: Here, seen: int | None):
    """Return the errors of norm, SiLU, cache and border in one pass, by channels and dtype. seen: cached frames."""
    own, found = kernels_of(here), {}
    frames, height, width = here.size((4, 60, 104), (2, 5, 6))
    for channels, dtype in product(CHANNELS[: here.size(None, 1)], list(BOUNDS)[: here.size(None, 1)]):

        def made(count, channels=channels, dtype=dtype):
            return innermost(torch.randn(1, channels, count, height, width, device=here.device).to(dtype))

        x, cache, history = made(frames), None if seen is None else made(seen), 0 if seen is None else 2
        gamma, shape = torch.rand(channels, device=here.device).to(dtype), (height + 2, width + 2)
        whole = torch.full((1, channels, history + frames, *shape), float("nan"), device=here.device).to(dtype)
        whole = innermost(whole)
        own.activate(x, cache, gamma, whole, history, 1, 1)
        expected = torch.zeros(whole.shape, device=here.device)
        inside = expected[..., 1:-1, 1:-1]
        if seen:
            inside[:, :, history - seen : history] = cache.float()
        normed = normalize(x.float(), dim=1) * channels**0.5 * gamma.float().view(-1, 1, 1, 1)
        inside[:, :, history:] = silu(normed)
        found[f"{channels} {dtype}"] = below(relative(whole.float(), expected), BOUNDS[dtype])
    return found


@item("kernel activate beyond 2**31 numbers", "models", seconds=10)
def activate_much(here: Here):
    """Return the size, and the error at the end of a tensor whose offsets need more than 32 bits."""
    if here.dry:
        raise Skip("it takes 20 GB")
    own, tile = kernels_of(here), torch.randn(1, 96, 4, 64, 64, device=here.device).to(BFLOAT16)
    big = innermost(tile.repeat(1, 1, 1, 31, 33)[..., :1948, :2048])
    whole = innermost(torch.full((1, 96, 6, 1950, 2050), float("nan"), dtype=BFLOAT16, device=here.device))
    own.activate(big, big[:, :, :2], torch.ones(96, device=here.device, dtype=BFLOAT16), whole, 2, 1, 1)
    if bool(whole[:, :, (0, 5), -1].isnan().any()):
        raise Wrong("some of the result was not written")
    expected = silu(normalize(tile[:, :, 3].float(), dim=1) * 96**0.5)
    error = relative(whole[:, :, 5, 1 + 1856 : 1 + 1920, 1:65].float(), expected)
    return whole.numel() / 2**31, below(error, BOUNDS[BFLOAT16])


@item("kernel rotate", "models", over=[(width,) for width in WIDTHS])
def rotate(here: Here, width: int):
    """Return the error of the rotation by position, by dtype and batch."""
    own, found = kernels_of(here), {}
    table = rope.rope_table([rope.grid_positions(here.size((21, 30, 52), (2, 2, 3)))], 128, here.device)
    for (dtype, bound), batch in product(BOUNDS.items(), (1, 2)):
        x = torch.randn(batch, len(table) + 4, width, device=here.device).to(dtype)[:, 2:-2]  # a part of a tensor
        expected = rope.rotate_(x.float().clone(), table)
        found[f"{dtype}, batch {batch}"] = below(relative(own.rotate_(x, table).float(), expected), bound)
    return found


@item("kernel norm and modulate", "models", over=[(width,) for width in WIDTHS])
def modulate(here: Here, width: int):
    """Return the error of the norm with modulation, by dtype and rows."""
    own, found, frames = kernels_of(here), {}, here.size(21, 3)
    for (dtype, bound), rows in product(BOUNDS.items(), (1, frames)):
        x = (3 + torch.randn(1, frames * here.size(1560, 4), width, device=here.device)).to(dtype)
        shift, scale = torch.randn(1, rows, 2, 1, width, device=here.device).to(dtype).unbind(2)
        expected = layers.norm_modulate(x.float(), shift.float(), scale.float(), 1e-6)
        made = own.norm_modulate(x, shift, scale, 1e-6).float()
        found[f"{dtype}, {rows} rows"] = below(relative(made, expected), 2 * bound)
    return found
