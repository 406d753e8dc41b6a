"""The blocks of the Wan DiT, with the official parameter names (`wan/modules/model.py` and `vace_model.py`).

Weighted layers come from the injected namespace `ops`. Precision is decided in `dit.py`: what these layers
are given is already in the dtype that they compute in. torch's layer and RMS norms accumulate in float32 whatever the
dtype of their input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import Attention
from .rope import rotate_


@dataclass(frozen=True)
class BlockInputs:
    """What all blocks of one forward share. A caller that wraps blocks changes it with `dataclasses.replace`.

    e: time modulation, float32 (B or 1, F or 1, 6, dim). rope: `rope_table` of the grid. context: embedded text
    (B, 512, dim). image_context: embedded CLIP tokens (B, 257 or 514, dim) or None. attention: runs self-attention;
    cross_attention: runs text and image cross-attention.
    """

    e: Tensor
    rope: Tensor
    context: Tensor
    image_context: Tensor | None
    attention: Attention
    cross_attention: Attention


def modulation(table: Tensor, e: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Learned `table` (1, n, dim) plus time modulation `e` (B, F, n, dim), added in float32: n tensors (B, F, 1, dim).

    `table` is not inside a layer of `ops`, so it may have been left on another device or in another dtype.
    """
    return (table.to(e) + e).to(dtype).unsqueeze(3).unbind(2)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm of `x` (B, L, dim), then `shift + (1 + scale) * x`.

    shift, scale: (B or 1, F or 1, 1, dim); one row serves all the tokens of its latent frame.
    """
    dim = x.shape[-1]
    if shift.numel() == dim:  # one row for all tokens: normalise and modulate in a single pass
        return layer_norm(x, (dim,), 1 + scale.flatten(), shift.flatten(), eps)
    x = layer_norm(x, (dim,), eps=eps).unflatten(1, (shift.shape[1], -1))  # (B, F, tokens of a frame, dim)
    return torch.addcmul(shift, x, 1 + scale).flatten(1, 2)  # (B, L, dim)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate * y` for x, y (B, L, dim) and gate (B or 1, F or 1, 1, dim)."""
    frames = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, frames), y.unflatten(1, frames), gate).flatten(1, 2)  # (B, L, dim)


class SelfAttention(nn.Module):
    """Projections of self-attention. Not called as a whole: the block frees the input of `qkv` before it attends."""

    def __init__(self, dim, heads, eps, ops, **factory):
        super().__init__()
        self.heads = heads
        self.q = ops.Linear(dim, dim, **factory)
        self.k = ops.Linear(dim, dim, **factory)
        self.v = ops.Linear(dim, dim, **factory)
        self.o = ops.Linear(dim, dim, **factory)
        self.norm_q = ops.RMSNorm(dim, eps=eps, **factory)
        self.norm_k = ops.RMSNorm(dim, eps=eps, **factory)

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated queries and keys, and values, each (B, L, dim)."""
        return rotate_(self.norm_q(self.q(x)), rope), rotate_(self.norm_k(self.k(x)), rope), self.v(x)


class CrossAttention(SelfAttention):
    """Attention to the text and, if `image`, to the CLIP tokens with keys and values of their own, summed."""

    def __init__(self, dim, heads, eps, image, ops, **factory):
        super().__init__(dim, heads, eps, ops, **factory)
        if image:
            self.k_img = ops.Linear(dim, dim, **factory)
            self.v_img = ops.Linear(dim, dim, **factory)
            self.norm_k_img = ops.RMSNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        q = self.norm_q(self.q(x))
        context = inputs.context
        out = inputs.cross_attention(q, self.norm_k(self.k(context)), self.v(context), self.heads)
        if inputs.image_context is not None:
            image = inputs.image_context
            out = out + inputs.cross_attention(q, self.norm_k_img(self.k_img(image)), self.v_img(image), self.heads)
        return self.o(out)


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
        qkv = self.self_attn.qkv(norm_modulate(x, shift, scale, self.eps), inputs.rope)
        y = inputs.attention(*qkv, self.self_attn.heads)
        del qkv  # the residual sum below needs the room
        return gated_add(x, self.self_attn.o(y), gate)

    def attend_context(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Residual plus attention to the text and image context."""
        return x + self.cross_attn(self.norm3(x), inputs)

    def feed_forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Residual plus feed-forward."""
        shift, scale, gate = modulation(self.modulation[:, 3:], inputs.e[:, :, 3:], x.dtype)
        return gated_add(x, self.ffn(norm_modulate(x, shift, scale, self.eps)), gate)


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

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, L, dim), e (B or 1, F or 1, dim) float32 -> (B, L, out_dim * patch) float32."""
        shift, scale = modulation(self.modulation, e.unsqueeze(2), torch.float32)
        return self.head(norm_modulate(x.float(), shift, scale, self.eps))


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
