"""Start and end images through CLIP, read by the cross-attention (`MLPProj` and `WanI2VCrossAttention`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Part

ONE_IMAGE = 257  # tokens of ViT-H/14


class ImageEmbedding(nn.Module):
    """CLIP tokens to context tokens (`MLPProj`); `emb_pos` distinguishes the tokens of two images."""

    def __init__(self, channels, dim, ops, **factory):
        super().__init__()
        self.proj = nn.Sequential(
            ops.LayerNorm(channels, **factory),
            ops.Linear(channels, channels, **factory),
            nn.GELU(),
            ops.Linear(channels, dim, **factory),
            ops.LayerNorm(dim, **factory),
        )
        self.emb_pos = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, tokens, channels) -> (B, tokens, dim)."""
        if self.emb_pos is not None:  # outside a layer of `ops`, like `modulation`
            x = x + self.emb_pos[:, : x.shape[1]].to(x)
        return self.proj(x)


@dataclass(frozen=True)
class ClipImages(Part):
    """CLIP tokens of one image. channels: of a token."""

    name = "clip"
    mark = "img_emb.proj.1.bias"
    conditions = ("clip_fea", "text_as_image")

    channels: int = 1280

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("img_emb.proj.1.bias", 0))

    def build(self, network, config, ops, **factory):
        network.img_emb = ImageEmbedding(self.channels, config.dim, ops, **factory)
        for block in network.blocks:
            attention = block.cross_attn
            attention.k_img = ops.Linear(config.dim, config.dim, **factory)
            attention.v_img = ops.Linear(config.dim, config.dim, **factory)
            attention.norm_k_img = ops.RMSNorm(config.dim, eps=config.eps, **factory)

    def check(self, config, given, x):
        if given.get("clip_fea") is None and not given.get("text_as_image"):
            raise ValueError(f"This {config.variant} model needs CLIP vision features (clip_fea) and got none.")

    def prepare(self, network, draft):
        """Embed `clip_fea` (B, 257 or 514, channels); with `text_as_image` instead, k_img and v_img read the text.

        The second follows ComfyUI without CLIP vision; the authors always use it.
        """
        features = draft.given.get("clip_fea")
        draft.image_context = draft.context if features is None else network.img_emb(features)

    def extra_bytes(self, config, shape, itemsize, shapes):
        both = config.part(ClipPositions.name)
        count = both.tokens_of_both if both else ONE_IMAGE
        return 3 * shape[0] * count * config.dim * itemsize  # embedded, and a block's keys and values of it


@dataclass(frozen=True)
class ClipPositions(Part):
    """A position embedding that distinguishes the CLIP tokens of two images."""

    name = "clip_positions"
    mark = "img_emb.emb_pos"

    tokens_of_both: int = 2 * ONE_IMAGE
    channels: int = 1280

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("img_emb.emb_pos", 1), sizes.size("img_emb.emb_pos", 2))

    def build(self, network, config, ops, **factory):
        network.img_emb.emb_pos = nn.Parameter(torch.empty(1, self.tokens_of_both, self.channels, **factory))
