"""WanDancer: music conditioning, and a second patch embedding for clips of another frame rate.

Follows `WanDancerModel` of ComfyUI, the only public code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from ...variants import PATCH
from ..config import PATCH_AREA
from ..layers import CrossAttention, Head
from ..rope import Positions, rotary, rotate_
from .base import Part
from .clip import ONE_IMAGE, ImageEmbedding

INJECTED = (0, 4, 8, 12, 16, 20, 24, 27)  # blocks followed by attention to the music
HEADS = 4  # of the music encoder
TOKENS = 8  # music tokens per latent frame
FRAME_RATE = 30  # of the clips that the plain embedding is for


class MusicAttention(nn.Module):
    """Self-attention over the frames of the music."""

    def __init__(self, dim, ops, **factory):
        super().__init__()
        self.q_proj = ops.Linear(dim, dim, **factory)
        self.k_proj = ops.Linear(dim, dim, **factory)
        self.v_proj = ops.Linear(dim, dim, **factory)
        self.out_proj = ops.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, rope: Tensor, attention) -> Tensor:
        """x (B, n, dim) -> the same shape; rope: table of the n frames."""
        q, k = rotate_(self.q_proj(x), rope), rotate_(self.k_proj(x), rope)
        return self.out_proj(attention(q, k, self.v_proj(x), HEADS))


class MusicLayer(nn.Module):
    """One pre-norm layer of the music encoder."""

    def __init__(self, dim, hidden, ops, **factory):
        super().__init__()
        self.self_attn = MusicAttention(dim, ops, **factory)
        self.linear1 = ops.Linear(dim, hidden, **factory)
        self.linear2 = ops.Linear(hidden, dim, **factory)
        self.norm1, self.norm2 = ops.LayerNorm(dim, **factory), ops.LayerNorm(dim, **factory)

    def forward(self, x: Tensor, rope: Tensor, attention) -> Tensor:
        """x (B, n, dim) -> the same shape."""
        x = x + self.self_attn(self.norm1(x), rope, attention)
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))


class MusicInjector(nn.Module):
    """Cross-attention to the music after some of the blocks."""

    def __init__(self, config, count, ops, **factory):
        super().__init__()
        self.injector: Any = nn.ModuleList(  # torch types its items as plain modules
            CrossAttention(config.dim, config.heads, config.eps, ops, **factory) for _ in range(count)
        )

    def forward(self, number: int, music: Tensor) -> Tensor:
        """Return what attention to each token of music (B, n, dim) alone gives, whatever the query: (B, n, dim).

        The softmax of a single score is 1, so that only the values count.
        """
        layer = self.injector[number]
        return layer.o(layer.v(music))


@dataclass(frozen=True)
class WanDancer(Part):
    """Sizes of the music encoder, the number of injectors, and the channels of a CLIP token."""

    name = "wandancer"
    mark = "patch_embedding_global.weight"
    conditions = ("audio", "clip_fea_ref", "frame_rate", "audio_scale")

    features: int = 35
    channels: int = 256
    hidden: int = 1024
    layers: int = 2
    injectors: int = len(INJECTED)
    image_channels: int = 1280

    @classmethod
    def read(cls, sizes, layers):
        return cls(
            features=sizes.size("music_projection.weight", 1),
            channels=sizes.size("music_projection.weight", 0),
            hidden=sizes.size("music_encoder.0.linear1.bias", 0),
            layers=sizes.count("music_encoder."),
            injectors=sizes.count("music_injector.injector."),
            image_channels=sizes.size("img_emb_refimage.proj.1.bias", 0),
        )

    def build(self, network, config, ops, **factory):
        dim = config.dim
        network.patch_embedding_global = ops.Conv3d(config.in_dim, dim, kernel_size=PATCH, stride=PATCH, **factory)
        network.head_global = Head(config, PATCH_AREA, ops, **factory)
        network.img_emb_refimage = ImageEmbedding(self.image_channels, dim, ops, **factory)
        network.music_projection = ops.Linear(self.features, self.channels, **factory)
        network.music_encoder = nn.ModuleList(
            MusicLayer(self.channels, self.hidden, ops, **factory) for _ in range(self.layers)
        )
        network.music_injector = MusicInjector(config, self.injectors, ops, **factory)

    def check(self, config, given, x):
        music = given.get("audio")
        if music is not None and (music.ndim != 3 or music.shape[2] != self.features):
            raise ValueError(
                f"The music is {tuple(music.shape)}, this {config.variant} model takes (batch, frames, "
                f"{self.features}): encode the sound with WanDancerEncodeAudio."
            )
        tokens = PATCH_AREA * TOKENS
        if music is not None and x.shape[3] * x.shape[4] % tokens:
            raise ValueError(
                f"The clip has {x.shape[4]}x{x.shape[3]} latent pixels and music needs a multiple of {tokens}: choose "
                "a width and height whose tokens divide by 8, such as 480x832."
            )

    def prepare(self, network, draft):
        """Read audio (B, n, features), clip_fea_ref (B, 257, channels) of a reference picture and frame_rate.

        audio_scale: strength of the music, 1 by default.
        """
        given = draft.given
        if (features := given.get("clip_fea_ref")) is not None:
            image = network.img_emb_refimage(features)
            plain = "clip_fea" in given
            draft.image_context = torch.cat((image, draft.image_context), dim=1) if plain else image
        rate = given.get("frame_rate", FRAME_RATE)
        if round(rate) != FRAME_RATE:
            draft.clip, draft.head = network.patch_embedding_global(draft.x), network.head_global
            draft.clip_positions = _slower(draft.place(draft.grid), FRAME_RATE / rate)
        if (music := given.get("audio")) is not None:
            self.inject(network, draft, self.encode(network, music.to(draft.x), draft), given.get("audio_scale", 1.0))

    def encode(self, network, music: Tensor, draft) -> Tensor:
        """Return music (B, n, features) as 8 tokens for each latent frame: (B, 8 F, dim)."""
        x, attention = network.music_projection(music), draft.runtime.attention
        rope = rotary(range(x.shape[1]), self.channels // HEADS, x.device)
        for layer in network.music_encoder:
            x = layer(x, rope, attention)
        size = (TOKENS * draft.grid[0], network.config.dim)
        return interpolate(x.unsqueeze(1), size=size, mode="bilinear").squeeze(1)

    def inject(self, network, draft, music: Tensor, scale: float) -> None:
        """Let the clip attend to `music` (B, n, dim), each n-th of it to one token, after the blocks of `INJECTED`."""
        injectors = dict(zip(INJECTED, range(self.injectors), strict=False))
        at_token = math.prod(draft.grid) // music.shape[1]

        def after(index, x):
            if index not in injectors:
                return x
            clip, whole = draft.held.clip, draft.whole
            numbers = (torch.arange(sum(whole.groups), device=x.device) - whole.clip.start) // at_token
            heard = draft.runtime.share.shard(numbers.view(1, -1, 1), whole)[0, clip, 0]  # the music of each token
            added = network.music_injector(injectors[index], music)[:, heard]
            return torch.cat((x[:, : clip.start], x[:, clip].add(added, alpha=scale), x[:, clip.stop :]), dim=1)

        draft.after_block.append(after)

    def extra_bytes(self, config, shape, itemsize, shapes):
        given = sum(name in shapes for name in ("clip_fea_ref",))
        return 3 * shape[0] * given * ONE_IMAGE * config.dim * itemsize


def _slower(positions: Positions, units: float) -> Positions:
    """Return `positions` with frames `units` apart; the last is at the end of the clip, in whole units."""
    start, count = positions.frames[0], len(positions.frames)
    frames = [start + units * k for k in range(count)]
    frames[-1] = start + int(units * count + 0.5) - 1
    return Positions(tuple(frames), positions.rows, positions.columns)
