"""The interface of the host's causal network on ours: `comfy.ldm.wan.ar_model`, which its sampler for it calls."""

import math

import torch

from ...wan_model.causal import Cache, from_frame
from ..sampling import step_cache
from . import inner
from .dit import HostDiT

STATE = "ar_state"  # entry of transformer_options: where the host's sampler is, and its caches
CACHE, TEXT = "cache", "text"  # entries of the host's caches that hold ours


def state(start_frame: int, cache: Cache) -> dict:
    """Return what the host's sampler says of a block that begins at `start_frame`. cache: of the run."""
    return {"start_frame": start_frame, "kv_caches": [{CACHE: cache}], "crossattn_caches": [{TEXT: cache.text}]}


class CausalDiT(HostDiT):
    """`HostDiT` for the host's sampler of causal models.

    The host counts its caches by their `end`, in tokens; ours knows its frames by number, so that a block that is run
    again finds its own place.
    """

    def init_kv_caches(self, batch_size: int, max_seq_len: int, device, dtype) -> list[dict]:
        """Return the host's caches for so many tokens of a sample. The memory is taken when they are written."""
        return [{"end": 0, "tokens": max_seq_len, CACHE: None}]

    def init_crossattn_caches(self, batch_size: int, device, dtype) -> list[dict]:
        """Return the host's caches of keys and values of the text: of all blocks in one."""
        return [{"is_init": False, TEXT: {}}]

    def reset_kv_caches(self, kv_caches: list[dict]) -> None:
        """Forget all frames."""
        for cache in kv_caches:
            cache.update({"end": 0, CACHE: None})

    def reset_crossattn_caches(self, crossattn_caches: list[dict]) -> None:
        """Forget the text."""
        for cache in crossattn_caches:
            cache[TEXT] = {}

    def forward_block(self, x, timestep, context, start_frame, kv_caches, crossattn_caches, clip_fea=None):
        """The host's call of one block of frames x (B, C, n, H, W)."""
        state = {"start_frame": start_frame, "kv_caches": kv_caches, "crossattn_caches": crossattn_caches}
        return self(x, timestep, context, clip_fea, transformer_options={STATE: state})

    def runtime(self, x, transformer_options, given, freqs=None):
        """As in `HostDiT`, from the first frame of a block on."""
        runtime, state = super().runtime(x, transformer_options, given, freqs), transformer_options.get(STATE)
        return runtime if state is None else from_frame(runtime, state["start_frame"])

    def run_blocks(self, draft):
        """All blocks, against what the host's caches hold of the frames before."""
        options = draft.runtime.options
        if STATE in options:
            draft.before_block.append(self.against_cache(options, draft.grid))
        return super().run_blocks(draft)

    def against_cache(self, options: dict, grid: tuple[int, int, int]):
        """Return `before_block` of a `Draft` for the block of frames that the host is at.

        grid: frames, rows and columns of its tokens. Raise ValueError for guidance, as there is one cache for
        both prompts, and for what knows nothing of the cache: blocks that another pack altered, and step caches.
        """
        state, frame = options[STATE], math.prod(grid[1:])
        if any(options.get("cond_or_uncond", ())):
            raise ValueError("A causal run keeps one cache, for one prompt, without guidance: set cfg to 1.")
        if step_cache.KEY in options:
            raise ValueError("A step cache would reuse what belongs to another block of frames: take it off.")
        if any(map(inner.is_altered, self.blocks)):
            raise ValueError(
                "Another node replaces parts of the network's blocks, which a causal run does not serve: take that "
                "node off."
            )
        holder = state["kv_caches"][0]
        if holder[CACHE] is None:
            holder[CACHE] = Cache(holder["tokens"] // frame)
        cache = holder[CACHE]
        cache.text = state["crossattn_caches"][0][TEXT]
        frames = range(state["start_frame"], state["start_frame"] + grid[0])
        cache.make_room(frames)
        holder["end"] = frames.stop * frame
        attend = cache.attend_held(frames)
        if hasattr(self.blocks[0], "_orig_mod"):  # a compiled block must not trace what writes to the cache
            return cache.prepare(lambda index, attention: torch.compiler.disable(attend(index, attention)))
        return cache.prepare(attend)
