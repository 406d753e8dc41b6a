"""Rolling Forcing (https://arxiv.org/abs/2509.25161): a window of blocks at rising noise moves over the clip."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dit.attention import Attention
from ..dit.runtime import Runtime
from ..transfer import send
from .blocks import check_renoise, frames_of
from .cache import Attend, Cache
from .history import Frames, History, Model, in_range


@dataclass
class Pending:
    """A block in the window: x (B, C, n, H, W) after `done` steps."""

    x: Tensor
    start: int
    done: int = 0


def rolling(
    model: Model,
    noise: Frames,
    context: Tensor,
    *,
    sigmas: Sequence[float],
    renoise: Frames,
    block: int,
    window: int = 21,
    device: torch.device | str | None = None,
    runtime: Runtime | None = None,
) -> Iterator[Tensor]:
    """Yield the latents (B, C, block, H, W) of a clip, of which as many blocks are made at once as there are `sigmas`.

    Each forward takes every block in the window one step on, finishes the first and lets in a new one
    (`pipeline/rolling_forcing_inference.py`). The first block of all is the anchor: all attend to it as if it lay
    directly before the window.

    block: frames of a block. window: frames attended at most, a multiple of it. noise, renoise: with functions, as in
    `rollout`, it never ends. The other arguments as in `rollout`. Raise ValueError where these disagree.
    """
    steps, total = len(sigmas), frames_of(noise)
    if total is not None and total % block:
        raise ValueError(f"{total} latent frames of noise do not make blocks of {block}: change one of them.")
    if window % block or window < (steps + 1) * block:
        raise ValueError(
            f"A window of {window} latent frames does not fit: it must be a multiple of the block of {block} and hold "
            f"{steps + 1} of them, one for each step and the first of the clip."
        )
    check_renoise(noise, renoise, steps)
    history = History(model, context, Cache(window + block, block, device), runtime or Runtime())
    return _roll(history, noise, [float(sigma) for sigma in sigmas], renoise, block, window)


def _roll(history: History, noise: Frames, sigmas: list[float], renoise: Frames, block: int, window: int):
    total, pending, start = frames_of(noise), [], 0
    while True:
        if total is None or start < total:
            pending.append(Pending(in_range(noise, start, start + block), start))
            start += block
        if not pending:
            return
        _step(history, pending, sigmas, renoise, window)
        if pending[0].done == len(sigmas):
            x = pending.pop(0).x
            yield x
            _keep(history, x, window)


def _step(history: History, pending: list[Pending], sigmas: list[float], renoise: Frames, window: int) -> None:
    """Take all blocks one step on, the last step of a block to its x0."""
    x = torch.cat([item.x for item in pending], dim=2)
    frames, size = x.shape[2], x.shape[2] // len(pending)
    levels = send(torch.tensor([sigmas[item.done] for item in pending], dtype=torch.float32), x.device)
    levels = levels.repeat_interleave(size)  # (frames,)
    attend = _attend_window(history.cache, history.length, frames, window)
    v = history.call(x, 1000 * levels[None], attend).float()
    x0 = x.float() - levels.view(-1, 1, 1) * v
    for item, clean in zip(pending, x0.split(size, dim=2), strict=True):
        done, item.done = item.done, item.done + 1
        if item.done < len(sigmas):
            added = in_range(renoise, item.start, item.start + size)[done].float()
            clean = torch.lerp(clean, added, sigmas[item.done])
        item.x = clean.to(x.dtype)


def _keep(history: History, x: Tensor, window: int) -> None:
    """Store the keys and values of the finished block x, which attends to the last `window` frames."""
    cache, stop = history.cache, history.length + x.shape[2]
    frames = range(history.length, stop)
    cache.make_room(frames)
    seen = range(max(0, stop - window), stop)

    def attend(index: int, inner: Attention) -> Attention:
        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            cache.write(index, frames, k, v)
            return inner(q, *cache.read(index, seen, heads, q.device), heads)

        return attention

    history.call(x, torch.zeros(1, device=x.device), attend)
    history.length = stop


def _attend_window(cache: Cache, start: int, count: int, window: int) -> Attend:
    """Attention of `count` frames from `start` on to themselves, to the frames before them and to the anchor."""
    anchor = cache.sink
    recent = min(start - anchor, window - count - anchor)  # frames that fit between the anchor and these
    past = (*range(anchor), *range(start - recent, start))

    def attend(index: int, inner: Attention) -> Attention:
        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            keys, values = cache.read(index, past, heads, q.device, start - recent - anchor)
            return inner(q, torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1), heads)

        return attention

    return attend if start else lambda index, inner: inner
