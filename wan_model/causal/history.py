"""A causal model, a prompt, and what it has made so far."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dit.runtime import Runtime
from .cache import Attend, Cache

Model = Callable[..., Tensor]
"""A `WanDiT`, or what is called as one: (x, t, context, runtime=...) -> v."""

Frames = Tensor | Callable[[int, int], Tensor]
"""Frames (..., F, H, W), or a function that returns those of a range [start, stop)."""


@dataclass
class History:
    """One prompt's view of the frames that are finished. It goes on by `keep`.

    context: text embeddings (B, L, text_dim). near_sink: as in `Cache.attend_held`. context_time: the timestep that the
    network is told for finished frames. length: frames that are finished. context_noise: what finished frames are mixed
    with, up to the noise level of that timestep, as in the training of Self-Forcing; by their number in the clip. None
    for frames without noise.
    """

    model: Model
    context: Tensor
    cache: Cache
    runtime: Runtime
    near_sink: bool = False
    context_time: float = 0.0
    length: int = 0
    context_noise: Frames | None = None

    def velocity(self, x: Tensor, time: float) -> Tensor:
        """Return the velocity of the frames x (B, C, n, H, W) that come next, at the timestep `time` in 0..1000."""
        frames = range(self.length, self.length + x.shape[2])
        self.cache.make_room(frames)
        attend = self.cache.attend_held(frames, near_sink=self.near_sink)
        return self.call(x, torch.full((1,), time, device=x.device), attend)

    def keep(self, x: Tensor) -> None:
        """Take x (B, C, n, H, W) for the frames that come next: their keys and values overwrite all earlier ones."""
        if self.context_noise is not None:
            noise = in_range(self.context_noise, self.length, self.length + x.shape[2])
            x = torch.lerp(x, noise.to(x), self.context_time / 1000)
        self.velocity(x, self.context_time)
        self.length += x.shape[2]

    def switch(self, context: Tensor, recent: Tensor) -> None:
        """Go on under another prompt: the finished frames that are not bound to the sink are kept anew under it.

        As LongLive's `_recache_after_switch` (`pipeline/interactive_causal_inference.py`, v1.0) does with a global
        sink: in one call, in which all these frames see each other. recent: the last finished frames (B, C, n, H, W),
        `cache.refreshed(length)` of them or more.
        """
        self.context = context
        self.cache.text.clear()
        if count := self.cache.refreshed(self.length):
            self.length -= count
            self.keep(recent[:, :, -count:])

    def call(self, x: Tensor, t: Tensor, attend: Attend) -> Tensor:
        """Run the network on x with timesteps t (1,) or (1, n) and self-attention made by `attend`."""
        return self.model(x, t, self.context, runtime=self.cache.runtime(self.runtime, self.length, attend))


def in_range(frames: Frames, start: int, stop: int) -> Tensor:
    """Return the frames [start, stop) (..., stop - start, H, W)."""
    return frames[..., start:stop, :, :] if isinstance(frames, Tensor) else frames(start, stop)


def spans(blocks: int | Sequence[int], frames: int | None) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each block of frames: of `frames` frames in all, or without end where it is None."""
    start = 0
    sizes = iter(blocks) if isinstance(blocks, Sequence) else iter(lambda: blocks, None)
    while frames is None or start < frames:
        size = next(sizes, None)
        if size is None:
            return
        yield start, start + size
        start += size
