"""The blocks of the Wan DiT, with the official parameter names (`wan/modules/model.py` and `vace_model.py`).

Weighted layers come from the injected namespace `ops`. Precision is decided in `dit.py`: what these layers
are given is already in the dtype that they compute in. torch's layer and RMS norms accumulate in float32 whatever the
dtype of their input.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import Attention, ContextAttention
from .rope import rope_table, rotate_

Part = tuple[slice, slice]
"""Samples of a batch, and tokens or frames of theirs: an index of (B, L, dim) or of (B, F, n, dim)."""


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm of `x` (B, L, dim), then `shift + (1 + scale) * x`.

    shift, scale: (B or 1, F or 1, 1, dim); one row serves all the tokens of its latent frame.
    """
    dim = x.shape[-1]
    if shift.numel() == dim:  # one row for all tokens: normalise and modulate in a single pass
        return layer_norm(x, (dim,), 1 + scale.flatten(), shift.flatten(), eps)
    x = layer_norm(x, (dim,), eps=eps).unflatten(1, (shift.shape[1], -1))  # (B, F, tokens of a frame, dim)
    return torch.addcmul(shift, x, 1 + scale).flatten(1, 2)  # (B, L, dim)


@dataclass(frozen=True)
class Kernels:
    """The operations that only move memory, so that a caller can pass in what its device does in one pass.

    rope_table: makes what `rotate` takes, of (grid, head_dim, device); its first axis is the tokens. rotate may
    overwrite its argument.
    """

    rope_table: Callable[..., Tensor] = rope_table
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate_
    norm_modulate: Callable[[Tensor, Tensor, Tensor, float], Tensor] = norm_modulate


TORCH = Kernels()


@dataclass(frozen=True)
class BlockInputs:
    """What all blocks of one forward share. A caller that wraps blocks changes it with `dataclasses.replace`.

    e: time modulation, float32 (B or 1, F or 1, 6, dim). rope: table of the grid. context: embedded text (B, n, dim),
    of which the last row stands for `repeats` equal ones. image_context: embedded CLIP tokens (B, 257 or 514, dim) or
    None. attention: runs self-attention; cross_attention: runs text and image cross-attention. chunk: how many tokens
    at most are projected at once, or None for all: the same result, with less memory in use.
    """

    e: Tensor
    rope: Tensor
    context: Tensor
    image_context: Tensor | None
    attention: Attention
    cross_attention: ContextAttention
    repeats: int = 1
    chunk: int | None = None
    kernels: Kernels = TORCH


def modulation(table: Tensor, e: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Learned `table` (1, n, dim) plus time modulation `e` (B, F, n, dim), added in float32: n tensors (B, F, 1, dim).

    `table` is not inside a layer of `ops`, so it may have been left on another device or in another dtype.
    """
    return (table.to(e) + e).to(dtype).unsqueeze(3).unbind(2)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate * y` for x, y (B, L, dim) and gate (B or 1, F or 1, 1, dim)."""
    frames = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, frames), y.unflatten(1, frames), gate).flatten(1, 2)  # (B, L, dim)


def parts(x: Tensor, e: Tensor, chunk: int | None) -> Iterator[tuple[Part, Part]]:
    """Splits the tokens x (B, L, dim) into parts of at most `chunk`, each within one sample.

    Yields an index of x and one of the modulation `e` (B or 1, F or 1, ...) that belongs to it. A part is whole frames,
    or lies within one, so that each row of the modulation serves equally many of its tokens.
    """
    batch, length = x.shape[:2]
    if chunk is None or batch * length <= chunk:
        yield (slice(None), slice(None)), (slice(None), slice(None))
        return
    frames = e.shape[1]
    of_frame = length // frames
    at_once = max(1, chunk // of_frame)  # frames
    size = min(chunk, at_once * of_frame)
    for b, f in product(range(batch), range(0, frames, at_once)):
        stop = min(f + at_once, frames)
        rows = (slice(b, b + 1) if e.shape[0] > 1 else slice(None), slice(f, stop))
        for start in range(f * of_frame, stop * of_frame, size):
            yield (slice(b, b + 1), slice(start, min(start + size, stop * of_frame))), rows


def in_parts(function: Callable[[Part, Part], tuple[Tensor, ...]], x: Tensor, e: Tensor, chunk: int | None):
    """What `function` makes of each of `parts(x, e, chunk)`, joined to tensors (B, L, n)."""
    joined = ()
    for tokens, rows in parts(x, e, chunk):
        made = function(tokens, rows)
        if tokens == (slice(None), slice(None)):
            return made
        joined = joined or tuple(piece.new_empty(*x.shape[:2], piece.shape[-1]) for piece in made)
        for whole, piece in zip(joined, made, strict=True):
            whole[tokens] = piece
    return joined


class SelfAttention(nn.Module):
    """Projections of self-attention. Not called as a whole: the block projects in parts and attends to all tokens."""

    def __init__(self, dim, heads, eps, ops, **factory):
        super().__init__()
        self.heads = heads
        self.q = ops.Linear(dim, dim, **factory)
        self.k = ops.Linear(dim, dim, **factory)
        self.v = ops.Linear(dim, dim, **factory)
        self.o = ops.Linear(dim, dim, **factory)
        self.norm_q = ops.RMSNorm(dim, eps=eps, **factory)
        self.norm_k = ops.RMSNorm(dim, eps=eps, **factory)

    def qkv(self, x: Tensor, rope: Tensor, rotate: Callable) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated queries and keys, and values, each (B, L, dim)."""
        return rotate(self.norm_q(self.q(x)), rope), rotate(self.norm_k(self.k(x)), rope), self.v(x)


class CrossAttention(SelfAttention):
    """Attention to the text and, if `image`, to the CLIP tokens with keys and values of their own, summed."""

    def __init__(self, dim, heads, eps, image, ops, **factory):
        super().__init__(dim, heads, eps, ops, **factory)
        if image:
            self.k_img = ops.Linear(dim, dim, **factory)
            self.v_img = ops.Linear(dim, dim, **factory)
            self.norm_k_img = ops.RMSNorm(dim, eps=eps, **factory)

    def keys_values(self, inputs: BlockInputs) -> list[tuple[Tensor, Tensor, int]]:
        """Keys and values (B, n, dim), and how often the last stands there: of the text, and of an image if any."""
        text, image = inputs.context, inputs.image_context
        found = [(self.norm_k(self.k(text)), self.v(text), inputs.repeats)]
        if image is not None:
            found.append((self.norm_k_img(self.k_img(image)), self.v_img(image), 1))
        return found

    def forward(self, x: Tensor, keys_values: list[tuple[Tensor, Tensor, int]], attention: ContextAttention) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        q = self.norm_q(self.q(x))
        results = (attention(q, k, v, self.heads, repeats) for k, v, repeats in keys_values)
        return self.o(functools.reduce(torch.add, results))


class FeedForward(nn.Sequential):
    """Linear, GELU(tanh), linear; the wide activation is kept once."""

    def __init__(self, dim, ffn_dim, ops, **factory):
        super().__init__(
            ops.Linear(dim, ffn_dim, **factory), nn.GELU(approximate="tanh"), ops.Linear(ffn_dim, dim, **factory)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        return self[2](torch.ops.aten.gelu_(self[0](x), approximate=self[1].approximate))


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention and feed-forward, each callable alone.

    None of the three parts changes the `x` (B, L, dim) that it is given.
    """

    def __init__(self, config, ops, **factory):
        super().__init__()
        dim, heads, eps = config.dim, config.heads, config.eps
        self.eps = eps
        self.self_attn = SelfAttention(dim, heads, eps, ops, **factory)
        self.norm3 = ops.LayerNorm(dim, eps=eps, **factory)
        self.cross_attn = CrossAttention(dim, heads, eps, config.image_tokens > 0, ops, **factory)
        self.ffn = FeedForward(dim, config.ffn_dim, ops, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 6, dim, **factory))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """The three parts in order."""
        x = self.attend(x, inputs)
        x = self.attend_context(x, inputs)
        return self.feed_forward(x, inputs)

    def attend(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Residual plus self-attention between all tokens."""
        shift, scale, gate = modulation(self.modulation[:, :3], inputs.e[:, :, :3], x.dtype)
        attn, kernels = self.self_attn, inputs.kernels

        def project(tokens: Part, rows: Part) -> tuple[Tensor, ...]:
            normed = kernels.norm_modulate(x[tokens], shift[rows], scale[rows], self.eps)
            return attn.qkv(normed, inputs.rope[tokens[1]], kernels.rotate)

        y = inputs.attention(*in_parts(project, x, inputs.e, inputs.chunk), attn.heads)

        def add(tokens: Part, rows: Part) -> tuple[Tensor, ...]:
            return (gated_add(x[tokens], attn.o(y[tokens]), gate[rows]),)

        return in_parts(add, x, inputs.e, inputs.chunk)[0]

    def attend_context(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Residual plus attention to the text and image context."""
        keys_values = self.cross_attn.keys_values(inputs)

        def add(tokens: Part, rows: Part) -> tuple[Tensor, ...]:
            of_sample = [(k[tokens[0]], v[tokens[0]], repeats) for k, v, repeats in keys_values]
            return (x[tokens] + self.cross_attn(self.norm3(x[tokens]), of_sample, inputs.cross_attention),)

        return in_parts(add, x, inputs.e, inputs.chunk)[0]

    def feed_forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Residual plus feed-forward."""
        shift, scale, gate = modulation(self.modulation[:, 3:], inputs.e[:, :, 3:], x.dtype)

        def add(tokens: Part, rows: Part) -> tuple[Tensor, ...]:
            normed = inputs.kernels.norm_modulate(x[tokens], shift[rows], scale[rows], self.eps)
            return (gated_add(x[tokens], self.ffn(normed), gate[rows]),)

        return in_parts(add, x, inputs.e, inputs.chunk)[0]


class VaceBlock(Block):
    """A block over the control tokens, which also makes the hint that one main block adds to its output."""

    def __init__(self, config, first, ops, **factory):
        super().__init__(config, ops, **factory)
        if first:
            self.before_proj = ops.Linear(config.dim, config.dim, **factory)
        self.after_proj = ops.Linear(config.dim, config.dim, **factory)

    def start(self, control: Tensor, x: Tensor) -> Tensor:
        """First block only: control tokens (B, L, dim) joined with the embedded latent `x` (B, L, dim)."""
        return self.before_proj(control) + x


class Head(nn.Module):
    """Last norm, modulation and projection to patches, all in float32."""

    def __init__(self, config, patch, ops, **factory):
        super().__init__()
        self.eps = config.eps
        self.head = ops.Linear(config.dim, config.out_dim * patch, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory))

    def forward(self, x: Tensor, e: Tensor, chunk: int | None = None) -> Tensor:
        """x (B, L, dim), e (B or 1, F or 1, dim) float32 -> (B, L, out_dim * patch) float32, `chunk` tokens at once."""
        shift, scale = modulation(self.modulation, e.unsqueeze(2), torch.float32)

        def project(tokens: Part, rows: Part) -> tuple[Tensor, ...]:
            return (self.head(norm_modulate(x[tokens].float(), shift[rows], scale[rows], self.eps)),)

        return in_parts(project, x, e, chunk)[0]


class ImageEmbedding(nn.Module):
    """CLIP tokens to context tokens (`MLPProj`); with two images their tokens are told apart by `emb_pos`."""

    def __init__(self, config, ops, **factory):
        super().__init__()
        image_dim, dim = config.image_dim, config.dim
        self.proj = nn.Sequential(
            ops.LayerNorm(image_dim, **factory),
            ops.Linear(image_dim, image_dim, **factory),
            nn.GELU(),
            ops.Linear(image_dim, dim, **factory),
            ops.LayerNorm(dim, **factory),
        )
        self.emb_pos = None
        if config.variant == "flf2v":
            self.emb_pos = nn.Parameter(torch.empty(1, config.image_tokens, image_dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, tokens, image_dim) -> (B, tokens, dim)."""
        if self.emb_pos is not None:  # outside a layer of `ops`, like `modulation`
            x = x + self.emb_pos[:, : x.shape[1]].to(x)
        return self.proj(x)
