"""The Wan VAE: recognised from a checkpoint's names and shapes, encoded and decoded as a stream."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn

from ..geometry import latent_frames
from ..variants import TIME_STRIDE, VAEConfig
from . import vae21, vae22
from .causal import Downsample, Means, causal_conv3d
from .stream import Regroup, Stream
from .tiling import TilePlan, cut, latent_tile, tile_plan

VERSIONS = {"2.1": vae21, "2.2": vae22}


class WanVAE(nn.Module):
    """A Wan 2.1 or 2.2 VAE with the official parameter names.

    Pixels are in [-1, 1]; latents are the raw means, not normalised (`variants.FAMILIES` has the statistics). The
    compute type is the input's.
    """

    def __init__(self, config: VAEConfig, ops=torch.nn):
        super().__init__()
        self.config = config
        version, z = VERSIONS[config.version], config.latent_channels
        self.encoder = version.encoder(ops, config)
        self.conv1 = causal_conv3d(ops, 2 * z, 2 * z, 1)
        self.conv2 = causal_conv3d(ops, z, z, 1)
        self.decoder = version.decoder(ops, config)

    def encode(self, video: torch.Tensor, *, tile: tuple[int, int] | None = None) -> torch.Tensor:
        """Means (B, C, (T-1)/4 + 1, H/8, W/8; /16 for 2.2) of a video (B, 3, T, H, W) with T = 4n + 1 frames.

        tile: (height, width) in pixels, or None for whole frames; the result is the same to rounding. Raises
        ValueError for other frame counts, sides that the VAE's stride does not divide, and tiles that are too small.
        """
        return torch.cat(list(self.encode_stream([video], tile=tile)), dim=2)

    def decode(self, latent: torch.Tensor, *, tile: tuple[int, int] | None = None) -> torch.Tensor:
        """Video (B, 3, 4 (F-1) + 1, 8 H, 8 W; 16 for 2.2), not clamped, of a latent (B, C, F, H, W).

        tile: (height, width) in pixels, or None for whole frames; the result is the same to rounding. Raises
        ValueError for a wrong channel count and tiles that are too small.
        """
        b, _, f, h, w = latent.shape
        stream = self.decode_stream(latent, tile=tile)
        s = self.config.stride
        video = latent.new_empty(b, 3, TIME_STRIDE * (f - 1) + 1, h * s, w * s)
        at = 0
        for chunk in stream:
            video[:, :, at : at + chunk.shape[2]] = chunk
            at += chunk.shape[2]
        return video

    def decode_stream(
        self,
        latent: torch.Tensor,
        *,
        tile: tuple[int, int] | None = None,
        device=None,
        dtype: torch.dtype | None = None,
        park=None,
        on_step=None,
    ) -> Stream:
        """Iterator over the decoded video in time: (B, 3, 1, H, W), then (B, 3, 4, H, W) for each further latent.

        device, dtype: where and in what to compute, to which each latent frame is taken when its turn comes (default:
        the latent's own). park, on_step: see `Stream`. Raises ValueError for a wrong channel count and tiles that are
        too small.
        """
        if latent.ndim != 5 or latent.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"This VAE (Wan {self.config.version}) decodes latents of {self.config.latent_channels} channels, "
                f"(B, C, F, H, W), but got {tuple(latent.shape)}: load the VAE that belongs to the model."
            )
        plan = decode_plan(self, latent.shape, tile, (dtype or latent.dtype).itemsize)
        options = {"device": device or latent.device, "dtype": dtype, "park": park, "on_step": on_step}
        return Stream(iter(latent.split(1, dim=2)), self.decode_blocks(), plan, total=latent.shape[2], **options)

    def encode_stream(
        self,
        chunks: Iterable[torch.Tensor],
        *,
        tile: tuple[int, int] | None = None,
        device=None,
        dtype: torch.dtype | None = None,
        park=None,
        on_step=None,
    ) -> Stream:
        """Iterator over latents (B, C, 1, h, w) in time, of video pieces (B, 3, t, H, W) of any lengths.

        device, dtype: where and in what to compute, to which each chunk is taken when its turn comes (default: the
        first piece's own). park, on_step: see `Stream`. Raises ValueError at once for no frames, sides that the VAE's
        stride does not divide and tiles that are too small, and at the end where the frames do not number 4n + 1.
        """
        pieces = iter(chunks)
        first = next(pieces, None)
        if first is None:
            raise ValueError("The video has 0 frames, and the VAE encodes 1, 5, 9, ... (4n + 1).")
        height, width = first.shape[3:]
        stride = self.config.stride
        if height % stride or width % stride or first.shape[1] != 3:
            raise ValueError(
                f"This VAE (Wan {self.config.version}) encodes video (B, 3, T, H, W) whose sides are multiples of "
                f"{stride}, but got {tuple(first.shape)}: crop or resize it."
            )
        shape = (first.shape[0], 3, None, height, width)
        plan = encode_plan(self, shape, tile, (dtype or first.dtype).itemsize)
        options = {"device": device or first.device, "dtype": dtype, "park": park, "on_step": on_step}
        return Stream(Regroup(chain([first], pieces)), self.encode_blocks(), plan, **options)

    def decode_blocks(self) -> tuple[list, list, list]:
        """The decoder as blocks: on whole frames, in tiles, and none after."""
        decoder, version = self.decoder, VERSIONS[self.config.version]
        blocks = version.decoder_blocks(decoder)
        whole = [self.conv2, decoder.conv1, *decoder.middle, *blocks[: version.WHOLE]]
        last = [vae22.Unpatchify()] if self.config.patch == 2 else []
        return whole, [*blocks[version.WHOLE :], decoder.head, *last], []

    def encode_blocks(self) -> tuple[list, list, list]:
        """The encoder as blocks: none before, in tiles, and the rest on whole frames."""
        encoder, version = self.encoder, VERSIONS[self.config.version]
        first = [vae22.Patchify()] if self.config.patch == 2 else []
        blocks = version.encoder_blocks(encoder)
        small = max(i for i, block in enumerate(blocks) if isinstance(block, Downsample)) + 1  # at latent resolution
        small += int(isinstance(blocks[small], vae22.Join))
        rest = [*blocks[small:], *encoder.middle, encoder.head, self.conv1, Means(self.config.latent_channels)]
        return [], [*first, encoder.conv1, *blocks[:small]], rest


def decode_plan(vae: WanVAE, shape: Sequence[int], tile: tuple[int, int] | None, itemsize: int) -> TilePlan:
    """The plan of decoding a latent of `shape` (B, C, F, H, W) in tiles of (height, width) pixels."""
    stride = vae.config.stride
    cores = cut(shape[3] * stride, shape[4] * stride, latent_tile(tile, stride), stride)
    return tile_plan(vae.decode_blocks(), cores, stride, stride, 1, shape[2], itemsize * shape[0])


def encode_plan(vae: WanVAE, shape: Sequence[int | None], tile: tuple[int, int] | None, itemsize: int) -> TilePlan:
    """The plan of encoding a video of `shape` (B, 3, T, H, W) in tiles of (height, width) pixels.

    T is None where the length is not known before the end.
    """
    stride = vae.config.stride
    cores = cut(shape[3] // stride, shape[4] // stride, latent_tile(tile, stride), 1)
    length = None if shape[2] is None else latent_frames(shape[2])
    return tile_plan(vae.encode_blocks(), cores, 1, stride, TIME_STRIDE, length, itemsize * shape[0])


def make_vae(config: VAEConfig, *, ops=torch.nn, dtype=None, device=None) -> WanVAE:
    """An empty VAE, for inference, whose weights the caller loads."""
    with torch.device(device or "cpu"):
        vae = WanVAE(config, ops)
    for weight in vae.parameters():
        weight.data = innermost(weight.data)
    return vae.to(dtype=dtype).requires_grad_(False).eval()


def innermost(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's weight with its input channels innermost in memory, as the blocks keep their activations."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.contiguous(memory_format=formats.get(weight.ndim, torch.contiguous_format))


def build_vae(state_dict: dict[str, torch.Tensor], *, ops=torch.nn, dtype=None, device=None) -> WanVAE:
    """The VAE of a checkpoint with official names, holding its tensors (converted where dtype or device is given).

    Raises ValueError where it is not a Wan VAE, or names are missing, unexpected or of another shape.
    """
    vae = make_vae(vae_config(state_dict), ops=ops, device="meta")
    wanted = vae.state_dict()
    for problem, names in (
        ("lacks", wanted.keys() - state_dict.keys()),
        ("has unexpected", state_dict.keys() - wanted.keys()),
        ("has another shape for", [n for n in wanted if n in state_dict and wanted[n].shape != state_dict[n].shape]),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise ValueError(f"This Wan {vae.config.version} VAE file {problem} {len(names)} weights: {listed} ...")
    weights = {name: innermost(x.to(device=device, dtype=dtype)) for name, x in state_dict.items()}
    vae.load_state_dict(weights, assign=True)
    return vae


def vae_config(state_dict: dict[str, torch.Tensor]) -> VAEConfig:
    """Version and sizes of a VAE, from the names and shapes of its weights (official names; meta tensors will do).

    Raises ValueError where they are not a Wan VAE's.
    """
    names = ("encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.2.weight", "conv2.weight")
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(f"This is not a Wan VAE: it has no weight {missing[0]}. Choose a Wan 2.1 or 2.2 VAE file.")
    encoder, decoder, head, conv2 = (state_dict[name].shape for name in names)
    version = {3: "2.1", 12: "2.2"}.get(encoder[1] if len(encoder) == 5 else 0)
    if version is None or head[0] != encoder[1] or len(decoder) != 5 or decoder[0] != 4 * head[1]:
        raise ValueError(
            f"This is not a Wan 2.1 or 2.2 VAE: its encoder's first convolution is {tuple(encoder)} (a Wan VAE reads "
            f"3 or 12 channels) and its decoder's last is {tuple(head)}. Choose a Wan VAE file."
        )
    return VAEConfig(version=version, latent_channels=conv2[0], dim=encoder[0], dec_dim=head[1])
