"""The caches of a causal run: each process keeps the keys and values of its heads, as process 0 tells it."""

import itertools
import math
import weakref
from dataclasses import asdict, dataclass

import torch

from ...wan_model.causal import Cache
from ...wan_model.variants import PATCH
from ..model import causal

_numbers = itertools.count()
_known: weakref.WeakKeyDictionary[Cache, tuple[int, str]] = weakref.WeakKeyDictionary()  # numbers, and of which group


@dataclass(frozen=True)
class Described:
    """A cache as other processes are told of it. frames: those that it holds. has_text: whether its text is kept."""

    number: int
    capacity: int
    sink: int
    device: str | None
    frames: list[int]
    has_text: bool


def described(options: dict, x: torch.Tensor, group: str) -> dict | None:
    """Return the state of the host's causal run of the frames x, for `restored`; None for another run.

    group: name of the processes. Raise ValueError for a cache that holds frames which these have not made.
    """
    state = options.get(causal.STATE)
    if state is None:
        return None
    frame = math.prod(-(-side // patch) for side, patch in zip(x.shape[3:], PATCH[1:], strict=True))
    holders = zip(state["kv_caches"], state["crossattn_caches"], strict=True)
    return {
        "caches": [asdict(_described(holder, text[causal.TEXT], frame, group)) for holder, text in holders],
        "prompts": list(options.get("cond_or_uncond") or [0]),
        "start_frame": state["start_frame"],
        causal.NEAR_SINK: state.get(causal.NEAR_SINK, False),
        causal.KEEPS: state.get(causal.KEEPS, False),
    }


def _described(holder: dict, text: dict, frame: int, group: str) -> Described:
    """Return the cache of one prompt, made if it is not yet. frame: tokens of a frame."""
    if holder.get(causal.CACHE) is None:
        holder[causal.CACHE] = Cache(holder["tokens"] // frame)
    cache = holder[causal.CACHE]
    if cache not in _known and not cache.slots:
        _known[cache] = next(_numbers), group
    number, maker = _known.get(cache, (None, None))
    if maker != group:
        raise ValueError(
            "This run goes on from frames whose keys and values the processes of Wan Parallel do not have: begin it "
            "anew, or connect the model without Wan Parallel."
        )
    device = None if cache.device is None else str(cache.device)
    return Described(number, cache.capacity, cache.sink, device, list(cache.slots), bool(text))


class Caches:
    """Those of one process other than process 0."""

    def __init__(self) -> None:
        self.caches: dict[int, Cache] = {}

    def restored(self, told: dict) -> dict:
        """Return the transformer_options of a causal run from what `described` told. Caches of other runs are freed."""
        given = [Described(**cache) for cache in told["caches"]]
        self.caches = {cache.number: self._cache(cache) for cache in given}
        state = causal.state([self.caches[cache.number] for cache in given], told[causal.NEAR_SINK])
        state |= {name: told[name] for name in ("start_frame", causal.KEEPS)}
        return {causal.STATE: state, "cond_or_uncond": told["prompts"]}

    def _cache(self, given: Described) -> Cache:
        cache = self.caches.get(given.number) or Cache(given.capacity, given.sink, given.device)
        if not given.has_text:
            cache.text.clear()
        if list(cache.slots) != given.frames:
            raise RuntimeError(f"Frames {list(cache.slots)} are held, and ComfyUI's process holds {given.frames}.")
        return cache
