"""A causal network over a whole clip at once, as it is trained."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dit.layers import BlockInputs
from ..dit.runtime import Runtime
from .history import Model, spans

Layers = dict[int, tuple[Tensor, Tensor]]  # keys and values by index of a block of the network


def over_clip(
    model: Model,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    *,
    blocks: int | Sequence[int],
    window: int | None = None,
    clean: Tensor | None = None,
    runtime: Runtime | None = None,
) -> Tensor:
    """Return the velocity of all blocks of the clip x (B, C, F, H, W), none of which sees a later one.

    What `_forward_train` of Self-Forcing (`wan/modules/causal_model.py`) does by a mask: a block attends to itself and
    the frames before it, at most `window` in all. clean: teacher forcing: the same clip without noise, which stands for
    the frames before a block, at timestep 0. t: (B, F). It can be differentiated, and holds no mask.
    """
    runtime, edges = runtime or Runtime(), list(spans(blocks, x.shape[2]))
    seen: Layers = {}
    if clean is not None:
        model(clean, torch.zeros_like(t), context, runtime=_blockwise(runtime, edges, clean.shape[2], window, seen, {}))
    return model(x, t, context, runtime=_blockwise(runtime, edges, x.shape[2], window, {}, seen))


def _blockwise(
    runtime: Runtime, edges: Sequence[tuple[int, int]], frames: int, window: int | None, made: Layers, past: Layers
) -> Runtime:
    """Return `runtime` with attention by blocks. made: gets keys and values; past: those of the frames before, or {}.

    edges: first frame and end of each block.
    """

    def run_block(index: int, block, x: Tensor, inputs: BlockInputs) -> Tensor:
        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            tokens, parts = q.shape[1] // frames, []
            made[index] = k, v
            before = past.get(index, (k, v))
            for start, stop in edges:
                first = 0 if window is None else max(0, stop - window)
                own, seen = slice(start * tokens, stop * tokens), slice(first * tokens, start * tokens)
                keys, values = (torch.cat((a[:, seen], b[:, own]), 1) for a, b in zip(before, (k, v), strict=True))
                parts.append(inputs.attention(q[:, own], keys, values, heads))
            return torch.cat(parts, dim=1)

        return runtime.run_block(index, block, x, dataclasses.replace(inputs, attention=attention))

    return dataclasses.replace(runtime, run_block=run_block)
