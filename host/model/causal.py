"""The interface of the host's causal network on ours: `comfy.ldm.wan.ar_model`, which its sampler for it calls."""

import dataclasses
import math
from collections.abc import Sequence

import torch

from ...wan_model.causal import Cache, from_frame
from ...wan_model.causal.cache import Attend
from ...wan_model.dit.attention import Attention
from ...wan_model.dit.layers import Block, BlockInputs
from ...wan_model.dit.sequence import BeforeBlock
from ..sampling import step_cache
from . import inner
from .dit import HostDiT

STATE = "ar_state"  # entry of transformer_options: where the host's sampler is, and its caches
NEAR_SINK, KEEPS = "near_sink", "keeps"  # entries that the host's sampler does not have
CACHE, TEXT, PROMPT = "cache", "text", "prompt"  # entries of the host's caches: ours, and whose they are


def state(caches: Sequence[Cache], near_sink: bool = False) -> dict:
    """Return what the host's sampler says of a run, at its first frame.

    caches: that of the positive prompt and, with guidance, that of the negative one. near_sink: as in
    `Cache.attend_held`.
    """
    return {
        "start_frame": 0,
        NEAR_SINK: near_sink,
        "kv_caches": [{CACHE: cache} for cache in caches],
        "crossattn_caches": [{TEXT: cache.text} for cache in caches],
    }


def keeps(options: dict) -> bool:
    """Return whether the forward of these transformer_options is for the keys and values of finished frames alone."""
    return options.get(STATE, {}).get(KEEPS, False)


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
            cache.pop(PROMPT, None)

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

        grid: frames, rows and columns of its tokens. Raise ValueError for more prompts than there are caches, and for
        what knows nothing of the cache: blocks that another pack altered, and step caches.
        """
        state, frame = options[STATE], math.prod(grid[1:])
        if step_cache.KEY in options:
            raise ValueError("A step cache would reuse what belongs to another block of frames: take it off.")
        if any(map(inner.is_altered, self.blocks)):
            raise ValueError(
                "Another node replaces parts of the network's blocks, which a causal run does not serve: take that "
                "node off."
            )
        frames = range(state["start_frame"], state["start_frame"] + grid[0])
        caches = [_cache(state, prompt, uuid, frame) for prompt, uuid in _prompts(options)]
        for cache in caches:
            cache.make_room(frames)
        for holder in state["kv_caches"]:
            holder["end"] = frames.stop * frame
        near_sink = state.get(NEAR_SINK, False)
        attend = attend_each([cache.attend_held(frames, near_sink=near_sink) for cache in caches])
        if hasattr(self.blocks[0], "_orig_mod"):  # a compiled block must not trace what writes to the cache
            return prepare(caches, lambda index, attention: torch.compiler.disable(attend(index, attention)))
        return prepare(caches, attend)


def _prompts(options: dict) -> list[tuple[int, object]]:
    """Return the prompts of a forward, one after the other in its batch: 0 or 1, positive or negative, and its id."""
    prompts = options.get("cond_or_uncond") or [0]
    return list(zip(prompts, options.get("uuids") or [None] * len(prompts), strict=True))


def _cache(state: dict, prompt: int, uuid: object, frame: int) -> Cache:
    """Return the cache of a prompt, with its keys and values of the text. frame: tokens of a frame.

    Raise ValueError where there is none, or it is another prompt's.
    """
    if prompt >= len(state["kv_caches"]):
        raise ValueError(
            "ComfyUI's sampler of causal models keeps one cache, for one prompt, without guidance: set cfg to 1, or "
            "use WanSampler."
        )
    holder = state["kv_caches"][prompt]
    if holder.setdefault(PROMPT, uuid) != uuid:
        raise ValueError(
            f"A causal run keeps the keys and values of one {('positive', 'negative')[prompt]} prompt, and the "
            "conditioning has several, by area, mask or time: connect a single prompt."
        )
    if holder.get(CACHE) is None:
        holder[CACHE] = Cache(holder["tokens"] // frame)
    holder[CACHE].text = state["crossattn_caches"][prompt][TEXT]
    return holder[CACHE]


def attend_each(attends: Sequence[Attend]) -> Attend:
    """Return self-attention of a batch of as many equal parts as `attends`, each made by its own."""

    def attend(index: int, inner: Attention) -> Attention:
        attentions = [each(index, inner) for each in attends]

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
            parts = zip(attentions, *(x.chunk(len(attentions)) for x in (q, k, v)), strict=True)
            return torch.cat([run(*part, heads) for run, *part in parts])

        return attention

    return attend if len(attends) > 1 else attends[0]


def prepare(caches: Sequence[Cache], attend: Attend) -> BeforeBlock:
    """Return `Cache.prepare` for a batch of as many equal parts as `caches`, each with its own text."""
    if len(caches) == 1:
        return caches[0].prepare(attend)

    def before_block(index: int, block: Block, inputs: BlockInputs) -> BlockInputs:
        if any(index not in cache.text for cache in caches):
            made = [[part.chunk(len(caches)) for part in pair] for pair in block.cross_attn.keys_values(inputs)]
            for number, cache in enumerate(caches):
                cache.text[index] = [(keys[number], values[number]) for keys, values in made]
        pairs = zip(*(cache.text[index] for cache in caches), strict=True)
        kept = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in pairs]
        attention = attend(index, inputs.attention)
        return dataclasses.replace(inputs, attention=attention, keys_values=kept)

    return before_block
