"""A Wan VAE run over whole clips at once, with gradients: what `WanVAE` streams, for training."""

import shutil

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_model.vae import WanVAE
from wan_model.vae.blocks import AttentionBlock, Patchify, ResidualBlock, Unpatchify
from wan_model.vae.convolution import images, videos
from wan_model.vae.rect import Rect
from wan_model.vae.resampling import Downsample, Upsample
from wan_model.vae.runtime import Runtime
from wan_model.vae.vae22 import DownStage, UpStage


def encode(vae: WanVAE, video: Tensor) -> Tensor:
    """Means (B, C, (T-1)/4 + 1, H / stride, W / stride) of video (B, 3, T, H, W), T = 4n + 1."""
    encoder = vae.encoder
    x = _conv(encoder.conv1, _whole(Patchify(3), video) if vae.config.patch == 2 else video)
    for block in (*encoder.downsamples, *encoder.middle):
        x = _block(block, x)
    return vae.conv1(_head(encoder.head, x))[:, : vae.config.latent_channels]


def decode(vae: WanVAE, latent: Tensor) -> Tensor:
    """Video (B, 3, 4 (F-1) + 1, H stride, W stride) of latent (B, C, F, H, W)."""
    decoder = vae.decoder
    x = _conv(decoder.conv1, vae.conv2(latent))
    for block in (*decoder.middle, *decoder.upsamples):
        x = _block(block, x)
    x = _head(decoder.head, x)
    return _whole(Unpatchify(3), x, 2) if vae.config.patch == 2 else x


def _whole(block: Patchify | Unpatchify, x: Tensor, scale: int = 1) -> Tensor:
    """A block without weights on whole frames, whose result is `scale` times as high and wide."""
    return block.step(x, (), Rect.whole(scale * x.shape[3], scale * x.shape[4]), False, Runtime())[0]


def _block(block: torch.nn.Module, x: Tensor) -> Tensor:
    return STEPS[type(block)](block, x)


def _conv(conv: torch.nn.Module, x: Tensor) -> Tensor:
    """Causal: zeros before the first frame and around each."""
    time, side = conv.kernel_size[0] - 1, conv.kernel_size[1] // 2
    if x.shape[2] == 1:  # a lone frame meets only the last temporal tap
        return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=side).unsqueeze(2)
    return F.conv3d(F.pad(x, (side, side, side, side, time, 0)), conv.weight, conv.bias, conv.stride)


def _norm(x: Tensor, gamma: Tensor) -> Tensor:
    return x * x.square().mean(dim=1, keepdim=True).add(1e-12).rsqrt() * gamma


def _activate(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(_norm(x, gamma))


if shutil.which("g++"):  # one pass over memory instead of six, forward and back
    _activate = torch.compile(_activate, dynamic=True)


def _head(head: torch.nn.Module, x: Tensor) -> Tensor:
    return _conv(head[2], _activate(x, head[0].gamma))


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    h = _conv(conv1, _activate(x, norm1.gamma))
    return _conv(conv2, _activate(h, norm2.gamma)) + block.shortcut(x)


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    b, _, _, h, w = x.shape
    qkv = block.to_qkv(_norm(images(x), block.norm.gamma)).flatten(2).transpose(1, 2)  # (B T, H W, 3 C)
    y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
    return x + videos(block.proj(y.transpose(1, 2).unflatten(2, (h, w))), b)


def _down(block: Downsample, x: Tensor) -> Tensor:
    conv = block.resample[1]
    y = videos(F.conv2d(F.pad(images(x), (0, 1, 0, 1)), conv.weight, conv.bias, 2), x.shape[0])
    if block.time_conv is None or y.shape[2] == 1:
        return y
    return torch.cat((y[:, :, :1], block.time_conv(y)), dim=2)


def _up(block: Upsample, x: Tensor) -> Tensor:
    if block.time_conv is not None and x.shape[2] > 1:
        later = _conv(block.time_conv, x[:, :, 1:])  # (B, 2 C, T - 1, H, W)
        pairs = torch.stack(later.chunk(2, dim=1), dim=3).flatten(2, 3)  # (B, C, 2 (T - 1), H, W)
        x = torch.cat((x[:, :, :1], pairs), dim=2)
    conv = block.resample[1]
    large = F.interpolate(images(x), scale_factor=2, mode="nearest")
    return videos(F.conv2d(large, conv.weight, conv.bias, padding=1), x.shape[0])


def _down_stage(stage: DownStage, x: Tensor) -> Tensor:
    y = x
    for block in stage.downsamples:
        y = _block(block, y)
    if stage.avg_shortcut.time == 2:
        x = F.pad(x, (0, 0, 0, 0, 1, 0))  # the first frame is paired with zeros
    return stage.avg_shortcut(x, y, Rect.whole(*y.shape[3:]), False)


def _up_stage(stage: UpStage, x: Tensor) -> Tensor:
    y = x
    for block in stage.upsamples:
        y = _block(block, y)
    if stage.avg_shortcut is None:
        return y
    rect = Rect.whole(*y.shape[3:])
    first = stage.avg_shortcut(x[:, :, :1], y[:, :, :1], rect, True)
    return torch.cat((first, stage.avg_shortcut(x[:, :, 1:], y[:, :, 1:], rect, False)), dim=2)


STEPS = {
    ResidualBlock: _residual,
    AttentionBlock: _attention,
    Downsample: _down,
    Upsample: _up,
    DownStage: _down_stage,
    UpStage: _up_stage,
}
