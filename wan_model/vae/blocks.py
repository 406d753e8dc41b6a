"""The blocks that both Wan VAEs are made of, and the skeletons of their encoders and decoders.

Follows `wan/modules/vae.py` of Wan 2.1, whose parameter names are kept. `convolution.py` describes the interface.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .convolution import Cache, Chunk, Cost, Layers, RMSNorm, causal_conv3d, images, videos
from .rect import Rect, Span
from .runtime import Runtime

ATTENTION_SCORES = 2**26  # most in one call, since a backend may hold all of them


class ResidualBlock(nn.Module):
    """Two normalised causal 3x3x3 convolutions beside a shortcut."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__()
        self.residual: Layers = nn.Sequential(
            RMSNorm(cin),
            nn.SiLU(),
            causal_conv3d(ops, cin, cout, 3),
            RMSNorm(cout),
            nn.SiLU(),
            nn.Identity(),  # the official dropout's place in the numbering
            causal_conv3d(ops, cout, cout, 3),
        )
        self.shortcut = nn.Identity() if cin == cout else causal_conv3d(ops, cin, cout, 1)

    def input_rect(self, out: Rect) -> Rect:
        return out.with_halo().with_halo()

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return out.with_halo().with_halo(), out.with_halo()

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        conv1, conv2 = self.residual[2], self.residual[6]
        middle = out.with_halo()
        cin, cout, frames = conv1.in_channels, conv1.out_channels, chunk.frames
        first, second = conv1.cost(middle, chunk, runtime), conv2.cost(out, chunk, runtime)
        output, cache = second.output, first.cache + second.cache
        shortcut = 0 if cin == cout else output
        held = cin * frames * middle.with_halo().area + first.cache  # x and the first cache, during the second
        peak = max(first.peak, held + second.peak - output, held + second.cache + output + shortcut)
        return Cost(first.work + second.work + cin * shortcut, peak, cache, output, frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        middle = out.with_halo()
        first, second = (None, None) if cache is None else (cache[:1], cache[1:])
        buffer, first = conv1.fill_buffer(x, first, middle, keep, norm1, runtime.kernels)
        h = conv1.convolve(buffer, runtime)
        del buffer  # large, and not needed for the next one
        buffer, second = conv2.fill_buffer(h, second, out, keep, norm2, runtime.kernels)
        del h
        h = conv2.convolve(buffer, runtime)
        del buffer
        h += self.shortcut(middle.with_halo().crop(x, out))
        return h, first + second if keep else None


class Head(nn.Sequential):
    """The last normalised convolution of an encoder or decoder."""

    __getitem__: Callable[..., Any]  # its layers, which torch types as plain modules
    __iter__: Callable[..., Iterator[Any]]

    def __init__(self, ops, cin: int, cout: int):
        super().__init__(RMSNorm(cin), nn.SiLU(), causal_conv3d(ops, cin, cout, 3))

    def input_rect(self, out: Rect) -> Rect:
        return self[2].input_rect(out)

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return self[2].cache_rects(out)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        return self[2].cost(out, chunk, runtime)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        norm, _, conv = self
        buffer, cache = conv.fill_buffer(x, cache, out, keep, norm, runtime.kernels)
        return conv.convolve(buffer, runtime), cache


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of each frame, the only layer that reads the whole frame."""

    def __init__(self, ops, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1)
        self.proj = ops.Conv2d(dim, dim, 1)

    def input_rect(self, out: Rect) -> Rect:
        return Rect.whole(out.rows.size, out.cols.size)

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return ()

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        c, pixels = self.proj.in_channels, out.area
        output = c * chunk.frames * pixels
        work = 4 * c * output + 2 * output * pixels
        peak = 6 * output  # x; queries, keys and values; their result before and after `proj`
        return Cost(work, peak, 0, output, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        b, _, _, h, w = x.shape
        qkv = self.to_qkv(self.norm(images(x)))
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # (B T, 1, H W, C) each, one head
        rows = max(1, ATTENTION_SCORES // (h * w))
        y = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, dim=2)], dim=2)
        y = self.proj(y.squeeze(1).transpose(1, 2).unflatten(2, (h, w)))  # (B T, C, H, W)
        return videos(y, b).add_(x), ()


class Pointwise(nn.Module):
    """A block without weights or caches whose step only moves or drops elements."""

    def input_rect(self, out: Rect) -> Rect:
        return out

    def cache_rects(self, out: Rect) -> tuple[Rect, ...]:
        return ()


class Means(Pointwise):
    """Drops the log variances of the encoder's (means, log variances)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        both = 2 * self.channels * chunk.frames * out.area
        return Cost(0, both, 0, both, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        return x[:, : self.channels], ()


class Patchify(Pointwise):
    """2x2 pixels become channels, ordered (channel, column, row) as in the official code of Wan 2.2."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def input_rect(self, out: Rect) -> Rect:
        return out.map(Span.doubled)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        output = 4 * self.channels * chunk.frames * out.area
        return Cost(0, 2 * output, 0, output, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        return rearrange(x, "b c t (h p) (w q) -> b (c q p) t h w", p=2, q=2), ()


class Unpatchify(Pointwise):
    """Channels become 2x2 pixels: the inverse of `Patchify`.

    row_first: the channels are ordered (channel, row, column), as `pixel_shuffle` takes them.
    """

    def __init__(self, channels: int, row_first: bool = False):
        super().__init__()
        self.channels, self.order = channels, "c p q" if row_first else "c q p"

    def input_rect(self, out: Rect) -> Rect:
        return out.map(Span.halved)

    def cost(self, out: Rect, chunk: Chunk, runtime: Runtime) -> Cost:
        output = self.channels * chunk.frames * out.area
        return Cost(0, 2 * output, 0, output, chunk.frames)

    def step(self, x: torch.Tensor, cache: Cache, out: Rect, keep: bool, runtime: Runtime):
        y = rearrange(x, f"b ({self.order}) t h w -> b c t (h p) (w q)", p=2, q=2)
        return self.input_rect(out).map(Span.doubled).crop(y, out), ()


class Encoder(nn.Module):
    """The official encoder's parts; `stages` are its `downsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, dim, 3)
        self.downsamples: Layers = nn.Sequential(*stages)
        self.middle = _middle(ops, 4 * dim)
        self.head = Head(ops, 4 * dim, out_channels)


class Decoder(nn.Module):
    """The official decoder's parts; `stages` are its `upsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, 4 * dim, 3)
        self.middle = _middle(ops, 4 * dim)
        self.upsamples: Layers = nn.Sequential(*stages)
        self.head = Head(ops, dim, out_channels)


def _middle(ops, dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(ops, dim, dim), AttentionBlock(ops, dim), ResidualBlock(ops, dim, dim))
