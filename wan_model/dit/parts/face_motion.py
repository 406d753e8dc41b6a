"""The motion encoder and face encoder of Wan-Animate (`wan/modules/animate/{motion_encoder,face_blocks}.py`).

The motion encoder is LIA's: an encoder built of StyleGAN2's blocks, whose layers scale their weights by one over the
square root of the values that they sum, here applied to what they make. Then 20 numbers weight as many directions.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, layer_norm, leaky_relu, pad, silu

from ...transfer import send

SIDE = 512  # pixels of a face
WIDTHS = (32, 64, 128, 256, 512, 512, 512, 512)  # channels at each halving of the side
MOTION = 512  # channels of a motion
BLUR = (1.0, 3.0, 3.0, 1.0)
AT_ONCE = 2  # faces: their first feature maps are as large as a short clip's tokens
EPS = 1e-6


def scaled(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what `layer`, a convolution or projection, makes of x with its weight scaled; the bias is not."""
    fan_in = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels * math.prod(layer.kernel_size)
    return layer(x * fan_in**-0.5)


class Activation(nn.Module):
    """Bias for each channel, then a leaky ReLU that keeps the variance."""

    def __init__(self, channels, **factory):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1, channels, 1, 1, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels, H, W) -> the same shape."""
        return leaky_relu(x + self.bias.to(x), 0.2) * math.sqrt(2)


class Blur(nn.Module):
    """A binomial filter over 4 x 4 pixels. Files hold its kernel too, which is a constant."""

    def forward(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """x (N, C, H, W) -> (N, C, H', W'), with `padding` zeros on each side, every `stride`-th pixel."""
        line = send(torch.tensor(BLUR, dtype=x.dtype), x.device) / sum(BLUR)
        kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
        return conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class Residual(nn.Module):
    """Two convolutions, of which the second halves the sides, beside a short cut."""

    def __init__(self, channels, out, ops, **factory):
        super().__init__()
        self.conv1 = nn.Sequential(
            ops.Conv2d(channels, channels, 3, padding=1, bias=False, **factory), Activation(channels, **factory)
        )
        self.conv2 = nn.Sequential(
            Blur(), ops.Conv2d(channels, out, 3, stride=2, bias=False, **factory), Activation(out, **factory)
        )
        self.skip = nn.Sequential(Blur(), ops.Conv2d(channels, out, 1, bias=False, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels, H, W) -> (N, out, H / 2, W / 2)."""
        convolve, activate = self.conv1
        y = activate(scaled(convolve, x))
        blur, convolve, activate = self.conv2
        y = activate(scaled(convolve, blur(y, padding=2)))
        blur, convolve = self.skip
        return (y + scaled(convolve, blur(x, padding=1, stride=2))) / math.sqrt(2)


class MotionEncoder(nn.Module):
    """Pictures of faces to motions. directions: how many a motion is made of."""

    def __init__(self, directions, ops, **factory):
        super().__init__()
        first = nn.Sequential(ops.Conv2d(3, WIDTHS[0], 1, bias=False, **factory), Activation(WIDTHS[0], **factory))
        pairs = pairwise(WIDTHS)
        last = ops.Conv2d(WIDTHS[-1], MOTION, 4, bias=False, **factory)
        self.enc = nn.Module()
        self.enc.net_app = nn.Module()
        self.enc.net_app.convs = nn.ModuleList([first, *(Residual(*pair, ops, **factory) for pair in pairs), last])
        widths = (*(MOTION,) * 4, directions)
        self.enc.fc = nn.ModuleList(ops.Linear(MOTION, width, **factory) for width in widths)
        self.dec = nn.Module()
        self.dec.direction = nn.Module()
        self.dec.direction.weight = nn.Parameter(torch.empty(MOTION, directions, **factory))

    def forward(self, faces: Tensor) -> Tensor:
        """faces (N, 3, 512, 512) in [-1, 1] -> (N, 512), a few faces at a time."""
        return torch.cat([self.numbers(part) for part in faces.split(AT_ONCE)]) @ self.directions().to(faces).T

    def numbers(self, faces: Tensor) -> Tensor:
        """faces (N, 3, 512, 512) -> (N, directions)."""
        (convolve, activate), *blocks, last = self.enc.net_app.convs
        x = activate(scaled(convolve, faces))
        for block in blocks:
            x = block(x)
        x = scaled(last, x).flatten(1)  # (N, 512)
        for layer in self.enc.fc:
            x = scaled(layer, x)
        return x

    def directions(self) -> Tensor:
        """Return the orthonormal directions, float32 (512, directions), on the CPU: not every device has this."""
        weight = self.dec.direction.weight.detach().to("cpu", torch.float32)
        return torch.linalg.qr(weight + 1e-8 * torch.eye(*weight.shape)).Q


class CausalConv(nn.Module):
    """A convolution over 3 frames that sees none after its own; the first frame stands for those before it."""

    def __init__(self, channels, out, stride, ops, **factory):
        super().__init__()
        self.conv = ops.Conv1d(channels, out, 3, stride=stride, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, frames, channels) -> (N, frames / stride rounded up, out)."""
        return self.conv(pad(x.transpose(1, 2), (2, 0), mode="replicate")).transpose(1, 2)


class FaceEncoder(nn.Module):
    """Motions to tokens: `groups` and a learned one for each four frames. width: channels of a group."""

    def __init__(self, groups, width, dim, ops, **factory):
        super().__init__()
        self.groups = groups
        self.conv1_local = CausalConv(MOTION, groups * width, 1, ops, **factory)
        self.conv2 = CausalConv(width, width, 2, ops, **factory)
        self.conv3 = CausalConv(width, width, 2, ops, **factory)
        self.out_proj = ops.Linear(width, dim, **factory)
        self.padding_tokens = nn.Parameter(torch.empty(1, 1, 1, dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, frames, 512) -> (B, frames / 4 rounded up, groups + 1, dim)."""
        batch = x.shape[0]
        x = self.conv1_local(x).unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        x = silu(layer_norm(x, x.shape[-1:], eps=EPS))  # (B * groups, frames, width)
        for convolve in (self.conv2, self.conv3):
            x = silu(layer_norm(convolve(x), x.shape[-1:], eps=EPS))
        x = self.out_proj(x).unflatten(0, (batch, -1)).transpose(1, 2)  # (B, frames / 4, groups, dim)
        learned = self.padding_tokens.to(x).expand(*x.shape[:2], -1, -1)
        return torch.cat((x, learned), dim=2)
