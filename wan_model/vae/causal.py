"""The causal layers that both Wan VAEs are made of, each able to run on any rectangle of the frame.

Every layer here is a block with the same three methods, so that a stream can walk a list of them:

    reads(out)            the Region of its input that it needs to make the Region `out` of its output
    step(x, cache, out)   (y, new cache): x (B, C, T, H, W) covers reads(out), y covers out
    holds(out)            the Regions that the tensors of its cache cover, in the cache's order

A cache is None before the first frame, else a tuple of tensors; it is never changed, only replaced, so a step that
fails can be run again. Time runs in order: one frame first, then any number of frames per step.

Follows `wan/modules/vae.py` of Wan 2.1, whose parameter names are kept.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .region import Region, Span

HISTORY = 2  # frames that a convolution of temporal kernel 3 looks back

Cache = tuple[torch.Tensor, ...] | None


class _Causal:
    """Mixin over a namespace's 3-D convolution: no padding of its own; taps that would meet no frame are dropped."""

    def _conv_forward(self, x, weight, bias, *args, **kwargs):
        """Convolve without padding; a single first frame meets only the last temporal tap, in two dimensions."""
        if x.shape[2] < weight.shape[2]:
            y = F.conv2d(x[:, :, -1], weight[:, :, -1], bias, self.stride[1:])
            return y.unsqueeze(2)
        return super()._conv_forward(x, weight, bias, *args, **kwargs)

    def reads(self, out: Region) -> Region:
        return out.around() if self.kernel_size[1] == 3 else out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return (self.reads(out),) if self.kernel_size[0] == 3 else ()

    def step(self, x: torch.Tensor, cache: Cache, out: Region, norm: "RMSNorm | None" = None):
        """Convolve x, normalised and activated first where `norm` is given, after the cached frames."""
        if self.kernel_size == (1, 1, 1):
            return self(x), ()
        history = 0 if cache is None else HISTORY
        pads = out.edges() if self.kernel_size[1] == 3 else (0, 0, 0, 0)
        buffer, frames = _assemble(x, history, pads)
        if history:
            frames[:, :, : HISTORY - cache[0].shape[2]] = 0
            frames[:, :, HISTORY - cache[0].shape[2] : HISTORY] = cache[0]
        if norm is None:
            frames[:, :, history:] = x
        else:
            norm.activate(x, frames[:, :, history:])
        return self(buffer), (frames[:, :, -HISTORY:].clone(),)


def _assemble(x: torch.Tensor, history: int, pads: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for a convolution's input: `history` frames before x and zeros around; (the buffer, its part to fill)."""
    left, right, top, bottom = pads
    b, c, t, h, w = x.shape
    buffer = x.new_empty(b, c, history + t, top + h + bottom, left + w + right)
    if top:
        buffer[..., 0, :] = 0
    if bottom:
        buffer[..., -1, :] = 0
    if left:
        buffer[..., 0] = 0
    if right:
        buffer[..., -1] = 0
    return buffer, buffer[..., top : top + h, left : left + w]


@functools.cache
def _causal_class(conv: type) -> type:
    return type("CausalConv3d", (_Causal, conv), {})


def causal_conv3d(ops, cin: int, cout: int, kernel, stride=1) -> nn.Module:
    """A causal convolution whose weights are those of `ops.Conv3d` (so the host may cast, offload or patch them)."""
    return _causal_class(ops.Conv3d)(cin, cout, kernel, stride=stride)


class RMSNorm(nn.Module):
    """Unit length over channels, times sqrt(channels) * gamma: the official `RMS_norm`."""

    def __init__(self, dim: int, axes: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise x (B, C, ...), into `out` where it is given."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12)
        scale = norm.reciprocal_().mul_(x.shape[1] ** 0.5)
        return torch.mul(x, scale, out=out).mul_(self.gamma.to(x))

    def activate(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write silu(norm(x)) into `out`."""
        F.silu(self(x, out), inplace=True)


class ResidualBlock(nn.Module):
    """Two normalised causal 3x3x3 convolutions beside a shortcut."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(cin),
            nn.SiLU(),
            causal_conv3d(ops, cin, cout, 3),
            RMSNorm(cout),
            nn.SiLU(),
            nn.Identity(),  # the official dropout's place in the numbering
            causal_conv3d(ops, cout, cout, 3),
        )
        self.shortcut = nn.Identity() if cin == cout else causal_conv3d(ops, cin, cout, 1)

    def reads(self, out: Region) -> Region:
        return out.around().around()

    def holds(self, out: Region) -> tuple[Region, ...]:
        return out.around().around(), out.around()

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        middle = out.around()
        first, second = (None, None) if cache is None else (cache[:1], cache[1:])
        h, first = conv1.step(x, first, middle, norm1)
        h, second = conv2.step(h, second, out, norm2)
        h += self.shortcut(middle.around().crop(x, out))
        return h, first + second


class Head(nn.Sequential):
    """The last normalised convolution of an encoder or decoder."""

    def __init__(self, ops, cin: int, cout: int):
        super().__init__(RMSNorm(cin), nn.SiLU(), causal_conv3d(ops, cin, cout, 3))

    def reads(self, out: Region) -> Region:
        return self[2].reads(out)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return self[2].holds(out)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        return self[2].step(x, cache, out, self[0])


class AttentionBlock(nn.Module):
    """Self-attention with one head over the pixels of each frame: the one layer that reads the whole frame."""

    def __init__(self, ops, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1)
        self.proj = ops.Conv2d(dim, dim, 1)

    def reads(self, out: Region) -> Region:
        return Region.whole(out.rows.size, out.cols.size)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)  # (B T, C, H, W)
        qkv = self.to_qkv(self.norm(frames)).reshape(b * t, 1, 3 * c, h * w)  # one head
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=-1)  # (B T, 1, H W, C) each
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(y.squeeze(1).transpose(1, 2).reshape(b * t, c, h, w))  # (B T, C, H, W)
        return y.reshape(b, t, c, h, w).transpose(1, 2) + x, ()  # (B, C, T, H, W)


class Upsample(nn.Module):
    """Twice the rows and columns; where `time`, also two frames from each one but the first (official `Resample`)."""

    def __init__(self, ops, cin: int, cout: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), ops.Conv2d(cin, cout, 3))
        self.time_conv = causal_conv3d(ops, cin, 2 * cin, (3, 1, 1)) if time else None

    def reads(self, out: Region) -> Region:
        return out.around().map(Span.coarse)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return () if self.time_conv is None else (self.reads(out),)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        if self.time_conv is None:
            cache = ()
        elif cache is None:  # the first frame stays one frame, and later ones do not look back on it
            cache = (x[:, :, :0].clone(),)
        else:
            x, cache = self._double_time(x, cache, out)
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)  # (B T, C, H, W)
        frames = F.interpolate(frames, scale_factor=2, mode="nearest")
        around = out.around()
        frames = F.pad(around.map(Span.coarse).map(Span.fine).crop(frames, around), out.edges())
        y = self.resample[1](frames)
        return y.reshape(b, t, *y.shape[1:]).transpose(1, 2), cache  # (B, C, T, H, W)

    def _double_time(self, x: torch.Tensor, cache: Cache, out: Region):
        b, c, t, h, w = x.shape
        y, cache = self.time_conv.step(x, cache, self.reads(out))
        y = y.reshape(b, 2, c, t, h, w).permute(0, 2, 3, 1, 4, 5)  # (B, C, T, 2, H, W)
        return y.reshape(b, c, 2 * t, h, w), cache


class Downsample(nn.Module):
    """Half the rows and columns; where `time`, also half the frames after the first (official `Resample`)."""

    def __init__(self, ops, dim: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), ops.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = causal_conv3d(ops, dim, dim, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def reads(self, out: Region) -> Region:
        return out.map(Span.before_stride)

    def holds(self, out: Region) -> tuple[Region, ...]:
        return () if self.time_conv is None else (out,)

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)  # (B T, C, H, W)
        _, right, _, bottom = out.edges()
        y = self.resample[1](F.pad(frames, (0, right, 0, bottom)))
        y = y.reshape(b, t, *y.shape[1:]).transpose(1, 2)  # (B, C, T, H/2, W/2)
        if self.time_conv is None:
            return y, ()
        last = (y[:, :, -1:].clone(),)
        return (y if cache is None else self.time_conv(torch.cat([cache[0], y], dim=2))), last


class Means(nn.Module):
    """Keeps the means of the encoder's (means, log variances)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def reads(self, out: Region) -> Region:
        return out

    def holds(self, out: Region) -> tuple[Region, ...]:
        return ()

    def step(self, x: torch.Tensor, cache: Cache, out: Region):
        return x[:, : self.channels], ()


class Encoder(nn.Module):
    """The official encoder's parts; `stages` are its `downsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, dim, 3)
        self.downsamples = nn.Sequential(*stages)
        self.middle = _middle(ops, 4 * dim)
        self.head = Head(ops, 4 * dim, out_channels)


class Decoder(nn.Module):
    """The official decoder's parts; `stages` are its `upsamples`."""

    def __init__(self, ops, channels: int, dim: int, stages: list[nn.Module], out_channels: int):
        super().__init__()
        self.conv1 = causal_conv3d(ops, channels, 4 * dim, 3)
        self.middle = _middle(ops, 4 * dim)
        self.upsamples = nn.Sequential(*stages)
        self.head = Head(ops, dim, out_channels)


def _middle(ops, dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(ops, dim, dim), AttentionBlock(ops, dim), ResidualBlock(ops, dim, dim))
