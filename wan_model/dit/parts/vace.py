"""VACE: blocks over control tokens, with hints that main blocks add to their results (`wan/modules/vace_model.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ...variants import PATCH
from ..cost import clip_tokens
from ..layers import Block, BlockInputs
from ..sequence import to_tokens
from .base import Part, check_same_size


class VaceBlock(Block):
    """A block over control tokens, which also computes the hint for one main block."""

    def __init__(self, config, first, ops, **factory):
        super().__init__(config, ops, **factory)
        if first:
            self.before_proj = ops.Linear(config.dim, config.dim, **factory)
        self.after_proj = ops.Linear(config.dim, config.dim, **factory)

    def start(self, control: Tensor, x: Tensor) -> Tensor:
        """Return control tokens (B, L, dim) plus the embedded latent `x` (B, L, dim); for the first block only."""
        return self.before_proj(control) + x


@dataclass(frozen=True)
class Vace(Part):
    """Control contexts. layers: indices of the blocks that receive a hint. channels: of a context."""

    name = "vace"
    mark = "vace_patch_embedding.weight"
    conditions = ("vace_context", "vace_scale")

    layers: tuple[int, ...]
    channels: int = 96

    @classmethod
    def read(cls, sizes, layers):
        count = sizes.count("vace_blocks.")
        if not count or layers % count:
            raise ValueError(f"This is not a whole Wan DiT: {layers} blocks are no multiple of {count} VACE blocks.")
        return cls(tuple(range(0, layers, layers // count)), sizes.size("vace_patch_embedding.weight", 1))

    def build(self, network, config, ops, **factory):
        network.vace_patch_embedding = ops.Conv3d(self.channels, config.dim, kernel_size=PATCH, stride=PATCH, **factory)
        network.vace_blocks = nn.ModuleList(VaceBlock(config, i == 0, ops, **factory) for i in self.layers)

    def check(self, config, given, x):
        contexts, scales = _split(given)
        if len(scales) != len(contexts):
            raise ValueError(f"{len(contexts)} VACE contexts have {len(scales)} strengths: give one for each.")
        for context in contexts[:1]:
            if context.shape[1] != self.channels:
                raise ValueError(
                    f"The VACE context has {context.shape[1]} channels, the model takes {self.channels} "
                    "(two latents of 16 and a mask of 64)."
                )
            check_same_size("The VACE context", context, x)

    def prepare(self, network, draft):
        """Add the hints of vace_context (B, 96, F, H, W), or of several (B, N, 96, F, H, W), times vace_scale."""
        contexts, scales = _split(draft.given)
        if not contexts:
            return
        clip = to_tokens(draft.clip)
        controls = [to_tokens(network.vace_patch_embedding(network.pad_to_patch(c))) for c in contexts]
        stack = iter(draft.runtime.lend(network.vace_blocks))
        first = next(stack)
        blocks = chain([first], stack)
        controls = [first.start(c, clip) for c in controls]
        shared: list[BlockInputs] = []

        def before(index, block, inputs):
            if not shared:
                controls[:] = [draft.runtime.share.shard(control, draft.whole) for control in controls]
            shared[:] = [inputs]
            return inputs

        def after(index, x):
            if index in self.layers:
                block = next(blocks)
                controls[:] = [block(c, shared[0]) for c in controls]
                for control, scale in zip(controls, scales, strict=True):
                    x = torch.add(x, block.after_proj(control), alpha=scale)
            return x

        draft.before_block.append(before)
        draft.after_block.append(after)

    def extra_bytes(self, config, shape, itemsize, shapes):
        given = shapes.get("vace_context")
        if given is None:
            return 0
        contexts = 1 if len(given) == 5 else given[1]
        return clip_tokens(shape) * config.dim * itemsize * (contexts + 1)  # and the main tokens while theirs run

    @property
    def extra_blocks(self):
        return len(self.layers)


def _split(given) -> tuple[Sequence[Tensor], Sequence[float]]:
    """Return each VACE context (B, 96, F, H, W) and its strength; both empty without a context."""
    context, scale = given.get("vace_context"), given.get("vace_scale")
    if context is None:
        return (), ()
    contexts = (context,) if context.ndim == 5 else context.unbind(1)
    scale = 1.0 if scale is None else scale
    return contexts, (scale,) * len(contexts) if isinstance(scale, int | float) else scale
