"""The Wan VAE: recognised from a checkpoint's names and shapes, encoded and decoded as a stream."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import nn

from ..geometry import latent_frames, video_frames
from ..variants import TIME_STRIDE
from . import vae21, vae22
from .blocks import Means
from .config import VAEConfig
from .convolution import causal_conv3d
from .past import Past, check_past, clip_of
from .resampling import Downsample
from .runtime import CPU, Runtime
from .stream import Regroup, Stream
from .tiling import Blocks, TilePlan, tile_grid, tile_plan

VERSIONS = {"2.1": vae21, "2.2": vae22}
Shape = tuple[int, int, int | None, int, int]  # (B, C, frames, H, W); None if the length is not known before the end
NOT_SHARED = "Several devices can share the decode of a whole latent alone: decode parts of a clip on one device."
EMPTY_LATENT = "The latent has 0 frames, and the VAE decodes 1 or more: sample or encode a clip first."


class WanVAE(nn.Module):
    """A Wan 2.1 or 2.2 VAE with the official parameter names.

    Pixels are in [-1, 1], in `config.channels` channels, written as 3 below; latents are the raw means, not normalised
    (`variants.FAMILIES` has the statistics). The compute type is the input's.
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
        """Return the means (B, C, (T-1)/4 + 1, H/8, W/8; /16 for 2.2) of a video (B, 3, T, H, W), T = 4n + 1.

        tile: (height, width) in pixels, or None for whole frames; the result is the same to rounding. Raise
        ValueError for other frame counts, sides not divisible by the VAE's stride, and tiles that are too small.
        """
        return torch.cat(list(self.encode_stream([video], tile=tile)), dim=2)

    def decode(self, latent: torch.Tensor, *, tile: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the video (B, 3, 4 (F-1) + 1, 8 H, 8 W; 16 for 2.2), not clamped, of a latent (B, C, F, H, W).

        tile: (height, width) in pixels, or None for whole frames; the result is the same to rounding. Raise
        ValueError for a wrong channel count and tiles that are too small.
        """
        stream = self.decode_stream(latent, tile=tile)
        b, _, f, h, w = latent.shape
        s = self.config.decoded_stride
        video = latent.new_empty(b, self.config.channels, video_frames(f), h * s, w * s)
        at = 0
        for chunk in stream:
            video[:, :, at : at + chunk.shape[2]] = chunk
            at += chunk.shape[2]
        return video

    def decode_stream(
        self,
        latents: torch.Tensor | Iterable[torch.Tensor],
        *,
        tile: tuple[int, int] | None = None,
        runtime: Runtime = CPU,
        device=None,
        dtype: torch.dtype | None = None,
        park=None,
        on_step=None,
        past: Past | None = None,
        goes_on: bool = False,
    ) -> Stream:
        """Iterate over the decoded video in time: (B, 3, 1, H, W), then (B, 3, 4, H, W) for each further latent frame.

        latents: (B, C, F, H, W), or an iterable of such pieces of any lengths F, which is read lazily and may be
        endless. runtime: kernels and thresholds for the device. device, dtype: of the computation; each latent frame is
        moved there when it is decoded (default: the latent's own). park, on_step: see `Stream`. past: `Stream.past` of
        the decode of the clip's earlier frames; those of `latents` follow them, (B, 3, 4, H, W) each. goes_on: whether
        `Stream.past` is wanted of this one. Raise ValueError for a wrong channel count, pieces of different sizes, no
        pieces, tiles that are too small, the past of another clip, and parts of a clip that devices are to share.
        """
        whole = isinstance(latents, torch.Tensor)
        first, pieces = _peek([latents] if isinstance(latents, torch.Tensor) else latents, EMPTY_LATENT)
        self._check_latent(first)
        batch, channels, frames, height, width = first.shape
        if whole and frames == 0:
            raise ValueError(EMPTY_LATENT)
        known = whole and past is None and not goes_on
        if runtime.share.size > 1 and not known:
            raise ValueError(NOT_SHARED)
        length = frames if known else None
        shape = (batch, channels, length, height, width)
        plan = decode_plan(self, shape, tile, (dtype or first.dtype).itemsize, runtime)
        clip = clip_of(self.config, shape, dtype or first.dtype)
        check_past(past, clip)
        sources = (piece[:, :, k : k + 1] for piece in _alike(pieces, first) for k in range(piece.shape[2]))
        options = {"device": device or first.device, "dtype": dtype, "park": park, "on_step": on_step}
        total = frames if whole else None
        look_ahead = whole and not goes_on
        return Stream(sources, plan, total=total, look_ahead=look_ahead, past=past, clip=clip, **options)

    def encode_stream(
        self,
        chunks: Iterable[torch.Tensor],
        *,
        tile: tuple[int, int] | None = None,
        runtime: Runtime = CPU,
        device=None,
        dtype: torch.dtype | None = None,
        park=None,
        on_step=None,
    ) -> Stream:
        """Iterate over latents (B, C, 1, h, w) in time, of video pieces (B, 3, t, H, W) of any lengths.

        runtime: kernels and thresholds for the device. device, dtype: of the computation; each chunk is moved
        there when it is encoded (default: the first piece's own). park, on_step: see `Stream`. Raise
        ValueError at once for no frames, a wrong channel count, sides not divisible by the VAE's stride and tiles
        that are too small, and at the end if the number of frames is not 4n + 1.
        """
        first, pieces = _peek(chunks, "The video has 0 frames, and the VAE encodes 1, 5, 9, ... (4n + 1).")
        height, width = first.shape[3:]
        stride, channels = self.config.stride, self.config.channels
        if height % stride or width % stride or first.shape[1] != channels:
            raise ValueError(
                f"This VAE (Wan {self.config.version}) encodes video (B, {channels}, T, H, W) whose sides are "
                f"multiples of {stride}, but got {tuple(first.shape)}: crop or resize it."
            )
        shape = (first.shape[0], channels, None, height, width)
        plan = encode_plan(self, shape, tile, (dtype or first.dtype).itemsize, runtime)
        options = {"device": device or first.device, "dtype": dtype, "park": park, "on_step": on_step}
        return Stream(Regroup(pieces), plan, **options)

    def _check_latent(self, latent: torch.Tensor) -> None:
        if latent.ndim != 5 or latent.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"This VAE (Wan {self.config.version}) decodes latents of {self.config.latent_channels} channels, "
                f"(B, C, F, H, W), but got {tuple(latent.shape)}: load the VAE that belongs to the model."
            )

    def decode_blocks(self) -> Blocks:
        """Return the decoder as blocks: on whole frames, then in tiles."""
        decoder, version = self.decoder, VERSIONS[self.config.version]
        blocks, last = version.decoder_blocks(decoder, self.config)
        count = version.WHOLE_FRAME_BLOCKS
        return [self.conv2, decoder.conv1, *decoder.middle, *blocks[:count]], [*blocks[count:], decoder.head, *last], []

    def encode_blocks(self) -> Blocks:
        """Return the encoder as blocks: in tiles, then on whole frames."""
        encoder, version = self.encoder, VERSIONS[self.config.version]
        first, blocks = version.encoder_blocks(encoder, self.config)
        small = max(i for i, block in enumerate(blocks) if isinstance(block, Downsample)) + 1  # at latent resolution
        small += int(isinstance(blocks[small], vae22.Join))
        rest = [*blocks[small:], *encoder.middle, encoder.head, self.conv1, Means(self.config.latent_channels)]
        return [], [*first, encoder.conv1, *blocks[:small]], rest


def _peek(pieces: Iterable[torch.Tensor], none: str) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """Return the first of `pieces`, and all of them. Raise ValueError with the message `none` if there are none."""
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:
        raise ValueError(none)
    return first, chain([first], pieces)


def _alike(pieces: Iterable[torch.Tensor], first: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield `pieces`. Raise ValueError for one that differs from the `first` in more than its length."""
    for piece in pieces:
        if piece.ndim != 5 or (piece.shape[:2], piece.shape[3:]) != (first.shape[:2], first.shape[3:]):
            raise ValueError(
                f"A latent of {tuple(piece.shape)} follows one of {tuple(first.shape)}: pieces of one video differ in "
                "their number of frames alone."
            )
        yield piece


def decode_plan(vae: WanVAE, shape: Shape, tile: tuple[int, int] | None, itemsize: int, runtime: Runtime) -> TilePlan:
    """Return the plan of decoding a latent of `shape` (B, C, F, H, W) in tiles of (height, width) pixels.

    F is None if the length is not known before the end.
    """
    stride = vae.config.decoded_stride
    grid = tile_grid(shape[3], shape[4], tile, stride, stride)
    return tile_plan(vae.decode_blocks(), grid, shape[1], 1, shape[2], itemsize * shape[0], runtime)


def encode_plan(vae: WanVAE, shape: Shape, tile: tuple[int, int] | None, itemsize: int, runtime: Runtime) -> TilePlan:
    """Return the plan of encoding a video of `shape` (B, C, T, H, W) in tiles of (height, width) pixels.

    T is None if the length is not known before the end.
    """
    stride = vae.config.stride
    grid = tile_grid(shape[3] // stride, shape[4] // stride, tile, 1, stride)
    length = None if shape[2] is None else latent_frames(shape[2])
    return tile_plan(vae.encode_blocks(), grid, vae.config.channels, TIME_STRIDE, length, itemsize * shape[0], runtime)


def make_vae(config: VAEConfig, *, ops=torch.nn, dtype=None, device=None) -> WanVAE:
    """Return an empty VAE for inference, whose weights the caller loads."""
    with torch.device(device or "cpu"):
        vae = WanVAE(config, ops)
    lay_out(vae)
    return vae.to(dtype=dtype).requires_grad_(False).eval()


def lay_out(vae: WanVAE) -> None:
    """Put the input channels of every convolution weight innermost in memory, as in the activations.

    Otherwise a backend copies the weight in each call. A weight that is loaded later keeps its own layout.
    """
    for weight in vae.parameters():
        weight.data = innermost(weight.data)


def innermost(weight: torch.Tensor) -> torch.Tensor:
    """Return a convolution's weight with its input channels innermost in memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.contiguous(memory_format=formats.get(weight.ndim, torch.contiguous_format))


def build_vae(state_dict: dict[str, torch.Tensor], *, ops=torch.nn, dtype=None, device=None) -> WanVAE:
    """Return the VAE of a checkpoint with official names, with its tensors converted to `dtype` and `device` if given.

    Raise ValueError if it is not a Wan VAE, or if names are missing, unexpected or of another shape.
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
    vae.load_state_dict({name: x.to(device=device, dtype=dtype) for name, x in state_dict.items()}, assign=True)
    lay_out(vae)
    return vae


def vae_config(state_dict: Mapping[str, torch.Tensor]) -> VAEConfig:
    """Infer version and sizes of a VAE from the names and shapes of its weights (official names; meta tensors will do).

    Raise ValueError if they are not a Wan VAE's.
    """
    names = ("encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.2.weight", "conv2.weight")
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(f"This is not a Wan VAE: it has no weight {missing[0]}. Choose a Wan 2.1 or 2.2 VAE file.")
    encoder, decoder, head, conv2 = (state_dict[name].shape for name in names)
    if [len(shape) for shape in (encoder, decoder, head, conv2)] == [5] * 4 and decoder[0] == 4 * head[1]:
        found = _video_channels(encoder[1], head[0])
        if found is not None:
            version, channels, upscale = found
            return VAEConfig(version, conv2[0], encoder[0], head[1], channels, upscale)
    raise ValueError(
        f"This is not a Wan 2.1 or 2.2 VAE: its encoder's first convolution is {tuple(encoder)} (a Wan VAE reads 3 "
        f"channels, 4 with alpha, or 12) and its decoder's last is {tuple(head)}. Choose a Wan VAE file."
    )


def _video_channels(read: int, made: int) -> tuple[str, int, int] | None:
    """Return version, channels and upscaling of a VAE by the channels that its first convolution reads and its last
    makes, or None."""
    if read == made == 12:
        return "2.2", 3, 1
    upscale = {read: 1, 4 * read: 2}.get(made)  # an upscaling decoder makes 2x2 pixels from one
    return None if upscale is None or read not in (3, 4) else ("2.1", read, upscale)
