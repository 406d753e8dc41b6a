"""The frame rate as a part of the modulation: SkyReels-V2 Diffusion Forcing.

Source: `skyreels_v2_infer/modules/transformer.py`, with `inject_sample_info`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from .base import Part

RATES = (16, 24)  # frames a second, in the order of the embedding
DEFAULT = 24


@dataclass(frozen=True)
class FrameRate(Part):
    """An embedding for each of `RATES`, added to the modulation of every block."""

    name = "frame_rate"
    mark = "fps_embedding.weight"
    conditions = ("frame_rate",)

    def build(self, network, config, ops, **factory):
        dim = config.dim
        network.fps_embedding = ops.Embedding(len(RATES), dim, **factory)
        network.fps_projection = nn.Sequential(
            ops.Linear(dim, dim, **factory), nn.SiLU(), ops.Linear(dim, 6 * dim, **factory)
        )

    def check(self, config, given, x):
        rate = given.get("frame_rate", DEFAULT)
        if rate not in RATES:
            raise ValueError(
                f"The clip has {rate} frames a second, this {config.variant} model knows {RATES[0]} and {RATES[1]}: "
                "choose one of these."
            )

    def prepare(self, network, draft):
        """Add the embedding of `frame_rate`, one of `RATES`, to what each block is modulated by."""
        number = torch.full((), RATES.index(draft.given.get("frame_rate", DEFAULT)), device=draft.x.device)
        added = network.fps_projection(network.fps_embedding(number).float()).unflatten(0, (1, 1, 6, -1))
        draft.before_block.append(lambda index, block, inputs: replace(inputs, e=inputs.e + added))
