"""The VAEs that are compared, all with the same weights, and the tile schemes in use elsewhere.

Each builder takes weights in official names and returns an object whose encode(video) gives means and whose
decode(latent) gives video, both (B, C, T, H, W).
"""

from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType, SimpleNamespace

import torch

from wan_model.vae import VAEConfig
from wan_model.variants import TIME_STRIDE
from wan_model.weights import layouts

Weights = dict[str, torch.Tensor]
Decode = Callable[[torch.Tensor], torch.Tensor]

SHAPE = {
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
}


class Ours:
    """This pack's VAE as its nodes run it: images in [0, 1] with their channels last, off the device.

    host_vae: the module `host.vae.vae` of the loaded pack. tile: (height, width) in pixels, or None for whole frames.
    """

    def __init__(self, host_vae: ModuleType, weights: Weights, dtype: torch.dtype, tile: tuple[int, int] | None = None):
        from comfy.model_management import load_models_gpu

        self.vae, self.tile = host_vae.HostVAE(weights, dtype, dtype), tile
        load_models_gpu([self.vae.patcher])  # now, so that no run counts it

    def decode_stream(self, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        """Video (B, 3, 1 or 4, H, W) in [-1, 1] over time."""
        stride = self.vae.config.stride
        frame = latent.shape[3] * stride, latent.shape[4] * stride
        for images in self.vae.decode_chunks(latent, self.tile or frame):
            yield images.movedim(-1, 1).mul_(2).sub_(1)  # (B, T, H, W, 3) -> (B, 3, T, H, W)

    def encode_stream(self, video: torch.Tensor) -> Iterator[torch.Tensor]:
        """Means (B, C, 1, h, w) over time."""
        chunks = ((chunk + 1) / 2 for chunk in video.split(TIME_STRIDE, dim=2))
        return self.vae.encode_chunks(chunks, video.shape, self.tile or video.shape[3:])

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """All of `decode_stream`."""
        return torch.cat(list(self.decode_stream(latent)), dim=2)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """All of `encode_stream`."""
        return torch.cat(list(self.encode_stream(video)), dim=2)


def comfyui(config: VAEConfig, weights: Weights) -> torch.nn.Module:
    """The host's own VAE."""
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2

    options = SHAPE | {"dim": config.dim, "z_dim": config.latent_channels}
    with torch.device("meta"):
        if config.version == "2.1":
            vae = comfy.ldm.wan.vae.WanVAE(**options)
        else:
            vae = comfy.ldm.wan.vae2_2.WanVAE(**options, dec_dim=config.dec_dim)
    vae.load_state_dict(weights, assign=True)
    return vae.eval()


def diffusers(config: VAEConfig, weights: Weights, tiled: bool = False) -> SimpleNamespace:
    """diffusers' AutoencoderKLWan; its tiles are 256 pixels wide, 192 apart."""
    from diffusers import AutoencoderKLWan

    table, options = layouts.VAE21_DIFFUSERS, {}
    if config.version == "2.2":
        table = layouts.VAE22_DIFFUSERS
        options = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        options |= {"scale_factor_spatial": 16}
    widths = {"base_dim": config.dim, "decoder_base_dim": config.dec_dim, "z_dim": config.latent_channels}
    names = layouts.rename(weights, layouts.inverse(table))
    with torch.device("meta"):
        vae = AutoencoderKLWan(**SHAPE, **widths, **options)
    vae.load_state_dict({theirs: weights[official] for official, theirs in names.items()}, assign=True)
    vae.eval()
    if tiled:
        vae.enable_tiling()
    return SimpleNamespace(
        encode=lambda video: vae.encode(video, return_dict=False)[0].mode(),
        decode=lambda latent: vae.decode(latent, return_dict=False)[0],
    )


def comfyui_tiled(decode: Decode, stride: int, size: int, overlap: int, frames: int, frame_overlap: int) -> Decode:
    """The host's `decode_tiled_3d` over `decode`; sizes and overlaps in pixels and latent frames."""
    from comfy.utils import tiled_scale_multidim

    def run(latent: torch.Tensor) -> torch.Tensor:
        return tiled_scale_multidim(
            latent,
            decode,
            tile=(frames, size // stride, size // stride),
            overlap=(frame_overlap, overlap // stride, overlap // stride),
            upscale_amount=(lambda t: max(0, 4 * t - 3), stride, stride),
            index_formulas=(4, stride, stride),
            out_channels=3,
        )

    return run


def wrapper_tiled(decode: Decode, stride: int) -> Decode:
    """The scheme of WanVideoWrapper over `decode`: tiles of 272 pixels, 144 rows and 128 columns apart, blended."""
    size = 272 // stride

    def run(latent: torch.Tensor) -> torch.Tensor:
        b, _, f, h, w = latent.shape
        total = latent.new_zeros(b, 3, 4 * f - 3, h * stride, w * stride)
        weight = latent.new_zeros(h * stride, w * stride)
        for top, left in product(starts(h, size, 144 // stride), starts(w, size, 128 // stride)):
            tile = decode(latent[..., top : top + size, left : left + size])
            rows = ramp(top * stride, tile.shape[3], h * stride, 272 - 144).to(latent)
            cols = ramp(left * stride, tile.shape[4], w * stride, 272 - 128).to(latent)
            mask = torch.minimum(rows[:, None], cols)
            inside = (slice(top * stride, top * stride + len(rows)), slice(left * stride, left * stride + len(cols)))
            total[(..., *inside)] += tile * mask
            weight[inside] += mask
        return total / weight

    return run


def starts(length: int, size: int, step: int) -> list[int]:
    """Where tiles of `size` begin: every `step`, until one reaches the end."""
    return list(range(0, max(1, length - size + step), step))


def ramp(start: int, size: int, length: int, overlap: int) -> torch.Tensor:
    """Weights of a tile's pixels along one axis: rising and falling over `overlap`, except where the frame ends."""
    at = torch.arange(1, size + 1, dtype=torch.float32)
    up = at / overlap if start else torch.ones(size)
    down = at.flip(0) / overlap if start + size < length else torch.ones(size)
    return torch.minimum(up, down).clamp(max=1)
