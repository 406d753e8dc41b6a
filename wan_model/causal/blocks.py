"""Block by block from noise: causal models distilled to few steps, and those that are not distilled."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..dit.runtime import Runtime
from ..solvers import SAMPLERS, sample_lcm, timestep
from ..variants.rollout import check_window
from .cache import Cache
from .history import Frames, History, Model, in_range, spans

Blocks = int | Sequence[int]


def rollout(
    model: Model,
    noise: Frames,
    context: Tensor,
    *,
    sigmas: Sequence[float],
    renoise: Frames | None,
    blocks: Blocks,
    window: int | None = None,
    sink: int = 0,
    initial: Tensor | None = None,
    first_sigmas: Sequence[float] | None = None,
    near_sink: bool = False,
    context_time: float = 0.0,
    context_noise: Frames | None = None,
    device: torch.device | str | None = None,
    runtime: Runtime | None = None,
) -> Iterator[Tensor]:
    """Yield the latents (B, C, n, H, W) of a clip, a block of frames at a time, each from noise in a few steps.

    The loop of Self-Forcing (https://arxiv.org/abs/2506.08009, `pipeline/causal_inference.py`) and of Causal-Forcing
    and LongLive. A block attends to itself and to what is left of the frames before it, in a cache of fixed size.
    A yielded latent is the context of the next block: do not change it in place.

    model: a `WanDiT`, or what is called as one. noise: of the frames to make (B, C, F, H, W), in the dtype that the
    model computes in, or a function of (start, stop) that returns that of frames start to stop - 1. context: text
    embeddings (B, L, text_dim). sigmas: noise levels of a block's steps, falling, without the 0 at the end. renoise:
    what is added after each step but the last (steps - 1, B, C, F, H, W), or a function like `noise`; None where there
    is one step. blocks: frames of each block, or one number for all: with functions, one number never ends. window:
    frames attended at most, with those of the block; None for all. sink: first frames that are never dropped. initial:
    given frames before the first block (B, C, n, H, W). first_sigmas: `sigmas` of the first block (Causal-Forcing++).
    near_sink: attend to the sink as if it lay directly before the other frames (the relative positions of LongLive 2).
    context_time: the timestep that the network is told for finished frames. context_noise: as in `History`. device:
    where the cache lies; None for that of `noise`. runtime: as in `WanDiT`.
    Raise ValueError where these disagree.
    """
    steps = (sigmas, sigmas if first_sigmas is None else first_sigmas)
    check_renoise(noise, renoise, max(map(len, steps)))
    capacity = _capacity(noise, blocks, window, sink, initial)
    kept = partial(History, near_sink=near_sink, context_time=context_time, context_noise=context_noise)
    history = kept(model, context, Cache(capacity, sink, device), runtime or Runtime())

    def make(x: Tensor, start: int, stop: int) -> Tensor:
        draws = iter(() if renoise is None else in_range(renoise, start, stop))
        levels = [*steps[start == 0], 0.0]

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return x - sigma * history.velocity(x.to(dtype), timestep(sigma, "lcm")).float()

        dtype = x.dtype
        return sample_lcm(denoise, x, levels, noise=lambda _: next(draws).float())

    return _roll([history], noise, blocks, initial, make)


def guided(
    model: Model,
    noise: Frames,
    context: Tensor,
    context_null: Tensor,
    *,
    sigmas: Sequence[float],
    guidance: float,
    blocks: Blocks,
    window: int | None = None,
    sink: int = 0,
    initial: Tensor | None = None,
    solver: str = "unipc",
    near_sink: bool = False,
    context_time: float = 0.0,
    context_noise: Frames | None = None,
    device: torch.device | str | None = None,
    runtime: Runtime | None = None,
) -> Iterator[Tensor]:
    """As `rollout`, for a causal model that is not distilled: with a solver of the ODE and classifier-free guidance.

    `pipeline/causal_diffusion_inference.py` of Self-Forcing. context_null: of the negative prompt, which has a cache of
    its own. sigmas: as `solvers.flow_sigmas` gives them, the last 0. guidance: its scale. solver: a key of
    `solvers.SAMPLERS`.
    """
    capacity = _capacity(noise, blocks, window, sink, initial)
    kept = partial(History, near_sink=near_sink, context_time=context_time, context_noise=context_noise)
    histories = [
        kept(model, text, Cache(capacity, sink, device), runtime or Runtime()) for text in (context, context_null)
    ]

    def make(x: Tensor, start: int, stop: int) -> Tensor:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            v, null = (history.velocity(x.to(dtype), timestep(sigma, solver)).float() for history in histories)
            return x - sigma * (null + guidance * (v - null))

        dtype = x.dtype
        return SAMPLERS[solver](denoise, x, sigmas)

    return _roll(histories, noise, blocks, initial, make)


def _roll(
    histories: Sequence[History],
    noise: Frames,
    blocks: Blocks,
    initial: Tensor | None,
    make: Callable[[Tensor, int, int], Tensor],
) -> Iterator[Tensor]:
    given = [] if initial is None else initial.split(given_blocks(blocks, initial.shape[2]), dim=2)
    for history, x in itertools.product(histories, given):
        history.keep(x)
    x = None
    for start, stop in spans(blocks, frames_of(noise)):
        for history in histories if x is not None else ():  # not before the block is asked for, nor after the last one
            history.keep(x)
        x = make(in_range(noise, start, stop), start, stop)
        yield x


def frames_of(noise: Frames) -> int | None:
    """Return the number of frames, None where nothing bounds it."""
    return noise.shape[2] if isinstance(noise, Tensor) else None


def given_blocks(blocks: Blocks, frames: int) -> list[int]:
    """Return the frames of each block of a given clip: a first block that is smaller where they do not divide it."""
    size = min(blocks if isinstance(blocks, int) else max(blocks), frames)
    return [*([frames % size] if frames % size else []), *([size] * (frames // size))]


def _capacity(noise: Frames, blocks: Blocks, window: int | None, sink: int, initial: Tensor | None) -> int:
    """Return the frames that a cache needs; raise ValueError for what does not go together."""
    total, sizes = frames_of(noise), [blocks] if isinstance(blocks, int) else list(blocks)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"Each block must have at least 1 latent frame, not {sizes}: choose 1 or 3.")
    if total is not None and (total % blocks if isinstance(blocks, int) else sum(sizes) != total):
        raise ValueError(f"{total} latent frames of noise do not make blocks of {blocks}: change one of them.")
    if initial is not None and isinstance(noise, Tensor) and _without_frames(initial) != _without_frames(noise):
        raise ValueError(
            f"The given frames have shape {tuple(initial.shape)} and the noise {tuple(noise.shape)}: all but the third "
            "number must be the same."
        )
    if window is not None:
        check_window(window, sink, max(sizes))
    if total is None and isinstance(blocks, int):
        if window is None:
            raise ValueError("A run without end needs a bounded memory: give a window, such as 21 latent frames.")
        return window
    whole = (0 if initial is None else initial.shape[2]) + sum(sizes if total is None else [total])
    return whole if window is None else min(window, whole)


def _without_frames(x: Tensor) -> tuple[int, ...]:
    return *x.shape[:2], *x.shape[3:]


def check_renoise(noise: Frames, renoise: Frames | None, steps: int) -> None:
    """Raise ValueError where `renoise` is not what so many steps on `noise` add; a function is not asked."""
    given = (0, *noise.shape) if renoise is None and isinstance(noise, Tensor) else getattr(renoise, "shape", None)
    if given is None or not isinstance(noise, Tensor):
        return
    if given[0] < steps - 1 or tuple(given[1:]) != tuple(noise.shape):
        raise ValueError(
            f"renoise has shape {tuple(given)}, {steps} steps on noise of shape {tuple(noise.shape)} need "
            f"{(steps - 1, *noise.shape)}."
        )
