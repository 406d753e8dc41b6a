"""Talking people: one or two, each moved by a voice (MultiTalk and InfiniteTalk, `wan/modules/multitalk_model.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...transfer import send
from ...variants import PATCH, TIME_STRIDE
from ..attention import Attention
from ..layers import Block, BlockInputs, Piece, by_pieces
from ..rope import THETA
from ..runtime import Runtime
from ..sequence import BeforeBlock, Draft
from .base import Part
from .sound import check_heard, frame_attention, sound_attention

WINDOW = 5  # frames of sound around a video frame
MIDDLE = WINDOW // 2
PEOPLE = 2  # at most
PLACES = ((0.0, 4.0), (20.0, 24.0))  # between which a person's tokens lie on the rotary axis that tells voices apart
BACKGROUND = 12.0  # where the others lie
ADVICE = "in ComfyUI, load the i2v model with WanModelLoader and its InfiniteTalk patch with ModelPatchLoader instead"
QUERIES = 1024  # at once, of the map of who is where


class VoiceProjection(nn.Module):
    """Windows of sound to tokens of a latent frame (`AudioProjModel`). first, later: channels of a window."""

    def __init__(self, part, ops, **factory):
        super().__init__()
        self.tokens = part.tokens
        self.proj1 = ops.Linear(part.first, part.hidden, **factory)
        self.proj1_vf = ops.Linear(part.later, part.hidden, **factory)
        self.proj2 = ops.Linear(part.hidden, part.hidden, **factory)
        self.proj3 = ops.Linear(part.hidden, part.tokens * part.dim, **factory)
        self.norm = ops.LayerNorm(part.dim, **factory)

    def forward(self, audio: Tensor) -> Tensor:
        """audio (N, 4 * (F - 1) + 1, 5, layers, channels) -> (N, F, tokens, dim).

        A video frame hears its middle; the first of a latent frame hears what was before, too, the last what follows.
        """
        first, later = audio[:, :1], audio[:, 1:].unflatten(1, (-1, TIME_STRIDE))  # later (N, F - 1, 4, 5, ...)
        heard = (later[:, :, 0, : MIDDLE + 1], later[:, :, 1:-1, MIDDLE], later[:, :, -1, MIDDLE:])
        later = torch.cat(heard, dim=2).flatten(2)  # (N, F - 1, 8 * layers * channels)
        hidden = torch.cat((self.proj1(first.flatten(2)), self.proj1_vf(later)), dim=1).relu()
        return self.norm(self.proj3(self.proj2(hidden).relu()).unflatten(-1, (self.tokens, -1)))


class VoiceAttention(nn.Module):
    """Attention to the voices (`SingleStreamMutiAttention`)."""

    def __init__(self, dim, voice_dim, heads, ops, **factory):
        super().__init__()
        self.heads = heads
        self.q_linear = ops.Linear(dim, dim, **factory)
        self.kv_linear = ops.Linear(voice_dim, 2 * dim, **factory)
        self.proj = ops.Linear(dim, dim, **factory)


def hear(block: Block, x: Tensor, voices: Tensor, places: Tensor | None, runtime: Runtime) -> Tensor:
    """Return x (B, F * n, dim) plus attention of each frame's tokens to its voices (B, F, m, voice_dim).

    places: (B, F * n) of the tokens among the voices of two people, who have half of the m each; None for one.
    """
    layer, attention = block.audio_cross_attn, sound_attention(runtime)
    k, v = layer.kv_linear(voices).chunk(2, dim=-1)
    if places is not None:
        halves = send(torch.tensor([sum(place) / 2 for place in PLACES]), x.device)
        of_keys = halves.repeat_interleave(k.shape[2] // PEOPLE).expand(k.shape[:3])  # (B, F, m)
        k = turn(k, of_keys, layer.heads)

    def add(tokens: Piece, frames: Piece) -> tuple[Tensor, ...]:
        q = layer.q_linear(block.norm_x(x[tokens]))
        if places is not None:
            q = turn(q, places[tokens], layer.heads)
        return (x[tokens] + layer.proj(frame_attention(q, k[frames], v[frames], attention, layer.heads)),)

    return by_pieces(add, x, k, runtime.chunk)[0]


def turn(x: Tensor, places: Tensor, heads: int) -> Tensor:
    """Rotate the channel pairs of each head of x (..., heads * head_dim) by one position for each token, (...)."""
    pairs = x.float().unflatten(-1, (heads, -1, 2))  # (..., heads, head_dim / 2, 2)
    count = pairs.shape[-2]
    frequencies = THETA ** -(torch.arange(count, device=x.device, dtype=torch.float32) / count)
    angles = places.float()[..., None, None] * frequencies  # (..., 1, head_dim / 2)
    (a, b), cos, sin = pairs.unbind(-1), angles.cos(), angles.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-3).to(x)


def look(q: Tensor, k: Tensor, masks: Tensor, heads: int) -> Tensor:
    """Return how much each query looks at each of the regions of the first frame, (B, regions, L).

    q, k: (B, L, dim) of self-attention, of which the first keys are the first frame's. masks: (B, regions, n) of its
    n tokens, zeros and ones. The mean over heads and the tokens of a region of the softmax over that frame.
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k[:, : masks.shape[2]]))
    regions = masks.float() / masks.float().sum(-1, keepdim=True)
    seen = []
    for part in q.split(QUERIES, dim=2):
        scores = (part * part.shape[-1] ** -0.5 @ k.transpose(-2, -1)).float().softmax(-1)  # (B, heads, queries, n)
        seen.append(regions @ scores.mean(1).transpose(-2, -1))
    return torch.cat(seen, dim=-1)


def place(seen: Tensor) -> Tensor:
    """Return the places (B, L) of tokens on the axis of the voices, from what each looks at most, (B, 3, L)."""
    least, most = seen.amin(-1, keepdim=True), seen.amax(-1, keepdim=True)
    share = (seen - least) / (most - least + 1e-8)
    of_people = [share[:, i] * (stop - start) + start for i, (start, stop) in enumerate(PLACES)]
    places = torch.stack((*of_people, torch.full_like(of_people[0], BACKGROUND)), dim=1)  # (B, 3, L)
    return places.gather(1, seen.argmax(1, keepdim=True)).squeeze(1)


@dataclass(frozen=True)
class Voices(Part):
    """The voices of one or two people in each block.

    first, later: channels of the sound of the first video frame, and of the four of another latent frame. hidden,
    tokens, dim: of their projection.
    """

    name = "voices"
    mark = "blocks.0.audio_cross_attn.q_linear.weight"
    conditions = ("audio", "masks")

    first: int = 5 * 12 * 768
    later: int = 8 * 12 * 768
    hidden: int = 512
    tokens: int = 32
    dim: int = 768

    @classmethod
    def read(cls, sizes, layers):
        dim = sizes.size("audio_proj.norm.bias", 0)
        return cls(
            first=sizes.size("audio_proj.proj1.weight", 1),
            later=sizes.size("audio_proj.proj1_vf.weight", 1),
            hidden=sizes.size("audio_proj.proj1.bias", 0),
            tokens=sizes.size("audio_proj.proj3.bias", 0) // dim,
            dim=dim,
        )

    def build(self, network, config, ops, **factory):
        network.audio_proj = VoiceProjection(self, ops, **factory)
        for block in network.blocks:
            block.audio_cross_attn = VoiceAttention(config.dim, self.dim, config.heads, ops, **factory)
            block.norm_x = ops.LayerNorm(config.dim, eps=config.eps, **factory)

    def check(self, config, given, x):
        audio, masks = given.get("audio"), given.get("masks")
        check_heard(config.variant, audio, ADVICE)
        self._check_length(audio, x)
        people, regions = audio.shape[1], 0 if masks is None else masks.shape[1]
        if people > PEOPLE:
            raise ValueError(f"The sound has the voices of {people} people, this model knows {PEOPLE}: leave some out.")
        if people == PEOPLE and regions != PEOPLE + 1:
            raise ValueError(
                f"There are the voices of {people} people and {regions} masks, the model needs {PEOPLE + 1}: one of "
                "each person and one of the background."
            )

    def _check_length(self, audio: Tensor, x: Tensor) -> None:
        wanted = (x.shape[0], TIME_STRIDE * (x.shape[2] - 1) + 1, WINDOW)
        fits = audio.ndim == 6 and (audio.shape[0], *audio.shape[2:4]) == wanted
        if not fits or math.prod(audio.shape[3:]) != self.first:
            raise ValueError(
                f"The sound is {tuple(audio.shape)} (batch, people, video frames, window, layers, channels), this "
                f"latent of {x.shape[2]} frames needs {wanted} without the people, and {self.first} values of each "
                "video frame: make sound and latent with the same length."
            )

    def prepare(self, network, draft):
        """Have each block hear `audio` (B, people, 4 * (F - 1) + 1, 5, layers, channels).

        masks: (B, 3, height, width) in pixels of the first frame, of person 1, person 2 and the background; read where
        there are two people.
        """
        audio, runtime = draft.given["audio"].to(draft.x), draft.runtime
        voices = network.audio_proj(audio.flatten(0, 1)).unflatten(0, audio.shape[:2])  # (B, people, F, tokens, dim)
        voices = voices.transpose(1, 2).flatten(2, 3)  # (B, F, people * tokens, dim)
        places: list[Tensor | None] = [None]  # of the tokens, in the block that runs
        if audio.shape[1] == PEOPLE:
            masks = _regions(draft.given["masks"].to(draft.x.device), draft.grid)
            draft.before_block.append(_watch(masks, places, draft, network.config.heads))

        def after_text(block: Block, x: Tensor) -> Tensor:
            return hear(block, x, voices, places[0], runtime)

        draft.after_text.append(after_text)

    def extra_bytes(self, config, shape, itemsize, shapes):
        people = shapes["audio"][1] if "audio" in shapes else PEOPLE
        voices = shape[0] * shape[2] * people * self.tokens * (self.dim + 4 * config.dim) * itemsize
        tokens = math.ceil(shape[3] / PATCH[1]) * math.ceil(shape[4] / PATCH[2])
        return voices + (2 * QUERIES * shape[0] * config.heads * tokens * 4 if people == PEOPLE else 0)


def _regions(masks: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return which tokens of a frame of `grid` the `masks` (B, n, height, width) mark: (B, n, tokens).

    Raise ValueError for a mask that marks none.
    """
    regions = (interpolate(masks.float(), grid[1:], mode="nearest") > 0).flatten(2)
    empty = (~regions.any(-1)).nonzero()
    if len(empty):
        raise ValueError(
            f"Mask {int(empty[0, 1]) + 1} of {masks.shape[1]} marks no token of the {grid[1]} x {grid[2]} in a frame: "
            "mark a larger region, or give one voice and no masks."
        )
    return regions


def _watch(masks: Tensor, places: list, draft: Draft, heads: int) -> BeforeBlock:
    """Return a function to run before a block, which has `places` hold where its self-attention sees each token.

    heads: of the network.
    """
    share = draft.runtime.share

    def before(index: int, block: Block, inputs: BlockInputs) -> BlockInputs:
        attend: Attention = inputs.attention

        def attention(q: Tensor, k: Tensor, v: Tensor, own_heads: int) -> Tensor:
            seen = place(share.mean_over_heads(look(q, k, masks, own_heads), heads))
            places[0] = share.shard(seen.unsqueeze(-1), draft.whole).squeeze(-1)
            return attend(q, k, v, own_heads)

        return replace(inputs, attention=attention)

    return before
