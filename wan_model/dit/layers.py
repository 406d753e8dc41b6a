"""The blocks of the Wan DiT, with the official parameter names (`wan/modules/model.py`).

Weighted layers come from the injected namespace `ops`. `model.py` decides precision: inputs of these layers are already
in their compute dtype. torch's layer and RMS norms accumulate in float32 whatever the
dtype of their input.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import Attention
from .rope import rope_table, rotate_

Piece = tuple[slice, slice]
"""Samples of a batch, and tokens or rows of theirs: an index of (B, L, dim) or of (B, R, n, dim)."""

WHOLE: Piece = (slice(None), slice(None))


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return the layer norm of `x` (B, L, dim), then `shift + (1 + scale) * x`.

    shift, scale: (B or 1, R, 1, dim); each row applies to the same number of tokens.
    """
    dim = x.shape[-1]
    if shift.numel() == dim:  # one row for all tokens: normalise and modulate in a single pass
        return layer_norm(x, (dim,), 1 + scale.flatten(), shift.flatten(), eps)
    x = layer_norm(x, (dim,), eps=eps).unflatten(1, (shift.shape[1], -1))  # (B, R, tokens of a row, dim)
    return torch.addcmul(shift, x, 1 + scale).flatten(1, 2)  # (B, L, dim)


@dataclass(frozen=True)
class Kernels:
    """The memory-bound operations, for which a caller can pass in fused kernels.

    rope_table(positions, head_dim, device): returns the table for `rotate`, whose first axis is the tokens. rotate may
    overwrite its argument.
    """

    rope_table: Callable[..., Tensor] = rope_table
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate_
    norm_modulate: Callable[[Tensor, Tensor, Tensor, float], Tensor] = norm_modulate


TORCH = Kernels()

Exchange = Callable[[Attention, Callable[[], tuple[Tensor, ...]], int], Tensor]
"""exchange(attention, project, heads) -> out: runs `attention` on the queries, keys and values that `project` makes.

Both are of the tokens of this device, (B, L, heads * head_dim) each. Where devices share the tokens, `attention` gets
all tokens in order, and some of the heads.
"""


def attend(attention: Attention, project: Callable[[], tuple[Tensor, ...]], heads: int) -> Tensor:
    """Run `attention` where one device holds all tokens: an `Exchange`."""
    q, k, v = project()
    return attention(q, k, v, heads)


@dataclass(frozen=True)
class BlockInputs:
    """Inputs shared by all blocks of one forward. A caller that wraps blocks changes them with `dataclasses.replace`.

    time: time embedding, float32 (B or 1, R, dim), which no block reads. e: the modulation computed from it, (B or 1,
    R, 6, dim). counts: number of consecutive tokens that each of the R rows applies to, None if it is the same for
    all. rope: table of the tokens. context: embedded text (B, n, dim). image_context: embedded CLIP tokens (B, n,
    dim), or None. keys_values: the result of `CrossAttention.keys_values` in an earlier forward, or None. attention,
    cross_attention: run self-attention, and attention to text and images. exchange: brings the tokens of all devices
    to `attention`. after_text: called in order with the block and x (B, L, dim), between the attention to the text and
    the feed-forward; each returns the new x. chunk: most tokens that are projected at once, or None for all; the result
    is the same, with less memory.
    """

    time: Tensor
    e: Tensor
    rope: Tensor
    context: Tensor
    image_context: Tensor | None
    attention: Attention
    cross_attention: Attention
    counts: tuple[int, ...] | None = None
    keys_values: list[tuple[Tensor, Tensor]] | None = None
    after_text: tuple[Callable, ...] = ()
    chunk: int | None = None
    kernels: Kernels = TORCH
    exchange: Exchange = attend


def modulation(table: Tensor, e: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return learned `table` (1, n, dim) plus time modulation `e` (B, R, n, dim): n tensors (B, R, 1, dim).

    The sum is in float32. `table` is outside any layer of `ops`, so it may still be on another device or in another
    dtype.
    """
    return (table.to(e) + e).to(dtype).unsqueeze(3).unbind(2)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return `x + gate * y` for x, y (B, L, dim) and gate (B or 1, R, 1, dim)."""
    rows = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, rows), y.unflatten(1, rows), gate).flatten(1, 2)  # (B, L, dim)


def pieces(
    x: Tensor, e: Tensor, chunk: int | None, counts: tuple[int, ...] | None = None
) -> Iterator[tuple[Piece, Piece]]:
    """Split the tokens x (B, L, dim) into pieces of at most `chunk` tokens, with equal tokens per row in each.

    Yield an index of x and the matching index of the modulation `e` (B or 1, R, ...). With a `chunk`, a piece lies
    within one sample, and consists of whole rows or lies within one.
    """
    batch, length = x.shape[:2]
    if counts is None:
        if chunk is None or batch * length <= chunk:
            yield WHOLE, WHOLE
            return
        counts = (length // e.shape[1],) * e.shape[1]
    token = row = 0
    for count, equal in groupby(counts):
        rows = len(list(equal))
        if not count:
            pass  # these rows are of tokens that other devices hold
        elif chunk is None:
            yield (slice(None), slice(token, token + rows * count)), (slice(None), slice(row, row + rows))
        else:
            yield from _equal_rows(e, batch, token, row, rows, count, chunk)
        token, row = token + rows * count, row + rows


def _equal_rows(e: Tensor, batch: int, token: int, row: int, rows: int, count: int, chunk: int):
    """Yield the `pieces` of `rows` rows of `count` tokens each, which start at `token` and `row`."""
    at_once = max(1, chunk // count)  # rows
    size = min(chunk, at_once * count)
    for b, r in product(range(batch), range(0, rows, at_once)):
        stop = min(r + at_once, rows)
        sample = slice(b, b + 1) if e.shape[0] > 1 else slice(None)
        for start in range(token + r * count, token + stop * count, size):
            end = min(start + size, token + stop * count)
            yield (slice(b, b + 1), slice(start, end)), (sample, slice(row + r, row + stop))


def by_pieces(
    function: Callable[[Piece, Piece], tuple[Tensor, ...]],
    x: Tensor,
    e: Tensor,
    chunk: int | None,
    counts: tuple[int, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Return the results of `function` on the `pieces`, joined to tensors (B, L, n)."""
    joined: tuple[Tensor, ...] = ()
    for tokens, rows in pieces(x, e, chunk, counts):
        made = function(tokens, rows)
        if tokens == WHOLE:
            return made
        joined = joined or tuple(part.new_empty(*x.shape[:2], part.shape[-1]) for part in made)
        for whole, part in zip(joined, made, strict=True):
            whole[tokens] = part
        del made, part  # or they would be held while the next ones are made
    return joined


class SelfAttention(nn.Module):
    """The projections of self-attention. A block calls them in pieces and attends to all tokens at once."""

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
        """Return normalised and rotated queries and keys, and values, each (B, L, dim)."""
        return rotate(self.norm_q(self.q(x)), rope), rotate(self.norm_k(self.k(x)), rope), self.v(x)


class CrossAttention(SelfAttention):
    """Attention to the text plus, if there is one, attention to an image with separate keys and values.

    The part for CLIP images adds `k_img`, `v_img` and `norm_k_img`.
    """

    k_img: nn.Module
    v_img: nn.Module
    norm_k_img: nn.Module

    def keys_values(self, inputs: BlockInputs) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values (B, n, dim) of the text, and of an image if there is one."""
        text, image = inputs.context, inputs.image_context
        found = [(self.norm_k(self.k(text)), self.v(text))]
        if image is not None:
            found.append((self.norm_k_img(self.k_img(image)), self.v_img(image)))
        return found

    def forward(self, x: Tensor, keys_values: list[tuple[Tensor, Tensor]], attention: Attention) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        q = self.norm_q(self.q(x))
        return self.o(functools.reduce(torch.add, (attention(q, k, v, self.heads) for k, v in keys_values)))


class FeedForward(nn.Sequential):
    """Linear, GELU(tanh), linear; GELU overwrites the wide activation."""

    def __init__(self, dim, ffn_dim, ops, **factory):
        super().__init__(
            ops.Linear(dim, ffn_dim, **factory), nn.GELU(approximate="tanh"), ops.Linear(ffn_dim, dim, **factory)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        return self[2](torch.ops.aten.gelu_(self[0](x), approximate=self[1].approximate))


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention and feed-forward, each callable alone.

    None of the three changes its input `x` (B, L, dim).
    """

    def __init__(self, config, ops, **factory):
        super().__init__()
        dim, heads, eps = config.dim, config.heads, config.eps
        self.eps = eps
        self.self_attn = SelfAttention(dim, heads, eps, ops, **factory)
        self.norm3 = ops.LayerNorm(dim, eps=eps, **factory)
        self.cross_attn = CrossAttention(dim, heads, eps, ops, **factory)
        self.ffn = FeedForward(dim, config.ffn_dim, ops, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 6, dim, **factory))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return x after the three in order."""
        x = self.attend(x, inputs)
        x = self.attend_context(x, inputs)
        for add in inputs.after_text:
            x = add(self, x)
        return self.feed_forward(x, inputs)

    def attend(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return x plus self-attention between all tokens."""
        shift, scale, gate = modulation(self.modulation[:, :3], inputs.e[:, :, :3], x.dtype)
        attn, kernels = self.self_attn, inputs.kernels

        def project(tokens: Piece, rows: Piece) -> tuple[Tensor, ...]:
            normed = kernels.norm_modulate(x[tokens], shift[rows], scale[rows], self.eps)
            return attn.qkv(normed, inputs.rope[tokens[1]], kernels.rotate)

        def qkv() -> tuple[Tensor, ...]:
            return by_pieces(project, x, inputs.e, inputs.chunk, inputs.counts)

        y = inputs.exchange(inputs.attention, qkv, attn.heads)

        def add(tokens: Piece, rows: Piece) -> tuple[Tensor, ...]:
            return (gated_add(x[tokens], attn.o(y[tokens]), gate[rows]),)

        return by_pieces(add, x, inputs.e, inputs.chunk, inputs.counts)[0]

    def attend_context(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return x plus attention to the text and image context."""
        keys_values = inputs.keys_values or self.cross_attn.keys_values(inputs)

        def add(tokens: Piece, rows: Piece) -> tuple[Tensor, ...]:
            of_sample = [(k[tokens[0]], v[tokens[0]]) for k, v in keys_values]
            return (x[tokens] + self.cross_attn(self.norm3(x[tokens]), of_sample, inputs.cross_attention),)

        return by_pieces(add, x, inputs.e, inputs.chunk, inputs.counts)[0]

    def feed_forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return x plus the feed-forward."""
        shift, scale, gate = modulation(self.modulation[:, 3:], inputs.e[:, :, 3:], x.dtype)

        def add(tokens: Piece, rows: Piece) -> tuple[Tensor, ...]:
            normed = inputs.kernels.norm_modulate(x[tokens], shift[rows], scale[rows], self.eps)
            return (gated_add(x[tokens], self.ffn(normed), gate[rows]),)

        return by_pieces(add, x, inputs.e, inputs.chunk, inputs.counts)[0]


class Head(nn.Module):
    """Last norm, modulation and projection to patches, all in float32."""

    def __init__(self, config, patch, ops, **factory):
        super().__init__()
        self.eps = config.eps
        self.head = ops.Linear(config.dim, config.out_dim * patch, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory))

    def forward(self, x: Tensor, e: Tensor, chunk: int | None = None) -> Tensor:
        """x (B, L, dim), e (B or 1, R, dim) float32 -> (B, L, out_dim * patch) float32, `chunk` tokens at once.

        Each of the R rows applies to the same number of tokens.
        """
        shift, scale = modulation(self.modulation, e.unsqueeze(2), torch.float32)

        def project(tokens: Piece, rows: Piece) -> tuple[Tensor, ...]:
            return (self.head(norm_modulate(x[tokens].float(), shift[rows], scale[rows], self.eps)),)

        return by_pieces(project, x, e, chunk)[0]
