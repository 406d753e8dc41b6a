"""VAE: the streaming VAE as a VAE of the host.

The host's own nodes call it like any other VAE; the pack's nodes call the same object with tile settings. Frames leave
the device as they are decoded, so device memory depends on one step and not on the length of the clip.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ...wan_model import checkpoint, geometry
from ...wan_model.kernels.fused import vae_runtime
from ...wan_model.messages import Message
from ...wan_model.vae import (
    Past,
    Runtime,
    Stream,
    fit_decode,
    fit_encode,
    lay_out,
    make_vae,
    plan_decode,
    plan_encode,
    vae_config,
)
from ...wan_model.vae.tiling import MIN_TILE
from ...wan_model.variants import FAMILIES, TIME_STRIDE
from .. import compat
from ..messages import latents
from ..model.loading import make_patcher, place
from ..model.precision import FLOATS
from ..transfer import off_device
from .float32 import exact
from .pixels import with_channels
from .recovery import RAM, resumed

WORKING_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FIND_MODE = "MIOPEN_FIND_MODE"  # environment variable of MIOpen
AUTO = (0, 0)  # tile: chosen from the free memory
OVERLAP = 8  # the host's own VAE blends 1/8 of a tile with the next one
USABLE = 0.8  # of the free memory: the rest is for workspaces of the backend and errors of the estimate


def load(path: str, decode_dtype: str = "auto", encode_dtype: str = "auto") -> "HostVAE":
    """Load a Wan VAE file.

    decode_dtype, encode_dtype: keys of `FLOATS`, or "auto": the host's choice for decoding, float32 for encoding, since
    an encoder of lower precision shifts colours. Raise ValueError for a file that holds no Wan VAE.
    """
    dtypes = FLOATS.get(decode_dtype), FLOATS.get(encode_dtype)
    advise_amd()
    vae = HostVAE(checkpoint.load(path)[0], *dtypes)
    vae.path = path
    vae.patcher.cached_patcher_init = (load_patcher, (path, decode_dtype, encode_dtype))  # newer hosts load it again
    return vae


def advise_amd() -> None:
    """Log how to shorten the search for kernels that MIOpen, the convolutions of AMD, makes in a first run."""
    if torch.version.hip and FIND_MODE not in os.environ:
        logging.info(
            "On AMD, the first run of a VAE at each size can take minutes, while MIOpen searches for kernels. Start "
            "ComfyUI with %s=FAST to search less.",
            FIND_MODE,
        )


def choose_dtypes(
    decode_dtype: torch.dtype | None = None, encode_dtype: torch.dtype | None = None
) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of decoding and encoding: as given, else the host's choice and float32."""
    device = comfy.model_management.vae_device()
    return (
        decode_dtype or comfy.model_management.vae_dtype(device, WORKING_DTYPES),
        encode_dtype or torch.float32,
    )


def load_patcher(*arguments, disable_dynamic: bool = False):
    """Return the host patcher of `load`, which is never dynamic, as a newer host may ask by `disable_dynamic`."""
    return load(*arguments).patcher


class HostVAE(comfy.sd.VAE):
    """`WanVAE` as a VAE of the host.

    It sets the attributes of the host's class and overrides the methods that run the network. The host's constructor is
    not called, since it only knows its own networks. path: of the file, None if it was not made by `load`.
    """

    path: str | None = None

    def __init__(self, state_dict, decode_dtype=None, encode_dtype=None):
        self.config = config = vae_config(state_dict)
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype, self.encode_dtype = choose_dtypes(decode_dtype, encode_dtype)
        self.working_dtypes = WORKING_DTYPES
        self.size = None

        self.latent_channels, self.latent_dim, self.output_channels = config.latent_channels, 3, config.channels
        down, up = (config.stride,) * 2, (config.decoded_stride,) * 2
        self.downscale_ratio = (lambda frames: max(0, geometry.latent_frames(frames)), *down)
        self.upscale_ratio = (lambda latents: max(0, geometry.video_frames(latents)), *up)
        self.downscale_index_formula, self.upscale_index_formula = (TIME_STRIDE, *down), (TIME_STRIDE, *up)
        self.not_video = self.disable_offload = self.handles_tiling = False
        self.crop_input = True
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = None
        self.process_input = lambda image: image * 2 - 1
        self.process_output = lambda image: image.add_(1).div_(2).clamp_(0, 1)
        self.memory_used_decode = lambda shape, dtype: self.plan(plan_decode, shape, None, dtype).peak_bytes
        self.memory_used_encode = lambda shape, dtype: self.plan(plan_encode, shape, None, dtype).peak_bytes

        self.first_stage_model = self.build(state_dict)
        offload_device = comfy.model_management.vae_offload_device()
        # A dynamic patcher would bring the weights to the device in the layout of the file: see `lay_out`.
        self.patcher = make_patcher(self.first_stage_model, self.device, offload_device, disable_dynamic=True)

    def build(self, state_dict):
        """Return the network, encoder and decoder each in its own dtype."""
        vae = make_vae(self.config, ops=comfy.ops.manual_cast, dtype=self.vae_dtype, device="meta")
        vae.encoder.to(self.encode_dtype)
        vae.conv1.to(self.encode_dtype)  # the encoder's last convolution; conv2 is the decoder's first
        place(vae, state_dict)
        lay_out(vae)
        return vae.to(comfy.model_management.vae_offload_device())

    @property
    def runtime(self) -> Runtime:
        """Kernels and thresholds for the device."""
        return vae_runtime(self.device)

    def plan(self, plan, shape, tile, dtype, runtime=None):
        """Return the `plan_decode` or `plan_encode` of this VAE on its device."""
        return plan(self.config, shape, tile, dtype, runtime or self.runtime)

    def vae_output_dtype(self):
        """Return the dtype of the host's images."""
        return compat.image_dtype()

    # What the host's nodes call

    def decode(self, samples_in, vae_options=None, tile=AUTO):
        """Decode a latent (B, C, T, h, w) to images (B, frames, H, W, 3) in [0, 1], off the device.

        tile: (height, width) in pixels; 0 is the whole frame along that side, `AUTO` the largest that fits in the free
        memory.
        Raise ValueError for latents of another family or with NaN or infinite values.
        """
        check_latent(self, samples_in)
        batch, _, latents, height, width = samples_in.shape
        stride, frames = self.config.decoded_stride, geometry.video_frames(latents)
        shape = (batch, frames, height * stride, width * stride, self.output_channels)
        out = torch.empty(shape, device=self.output_device, dtype=self.vae_output_dtype())
        done = 0
        for chunk in self.decode_chunks(samples_in, tile):
            out[:, done : done + chunk.shape[1]] = chunk
            done += chunk.shape[1]
        return out

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Decode in tiles of latent pixels. Overlaps and time tiles are ignored: halos are exact, time streams."""
        stride = self.config.decoded_stride
        return self.decode(samples, tile=((tile_y or 0) * stride, (tile_x or 0) * stride))

    def encode(self, pixel_samples, tile=AUTO):
        """Encode images (T, H, W, 1, 3 or 4) or (B, T, H, W, ...) in [0, 1] to a latent (B, C, t, h, w).

        tile: as in `decode`.

        Frames beyond the last 4n+1 are dropped; sides are cropped about the centre to whole latent pixels.
        """
        images = pixel_samples if pixel_samples.ndim == 5 else pixel_samples.unsqueeze(0)
        images = self.crop(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        frames = geometry.snap_length(images.shape[1])
        if frames != images.shape[1]:
            logging.info("Encoding %d of %d frames: a Wan clip has 4n+1.", frames, images.shape[1])
        video = images[:, :frames].permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W)
        return torch.cat(list(self.encode_chunks(video.split(TIME_STRIDE, dim=2), video.shape, tile)), dim=2)

    def crop(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (N, H, W, 1, 3 or 4) in this VAE's channels, cropped about the centre to whole latent pixels.

        Raise ValueError for other channels, for no images, and if nothing is left.
        """
        count, height, width = images.shape[:3]
        if count == 0:
            raise ValueError("There are 0 images, and a clip needs 1 or more: connect images, or another video.")
        cropped = self.vae_encode_crop_pixels(with_channels(images, self.output_channels))
        if not cropped.numel():
            raise ValueError(
                f"The images are {width}x{height} pixels and one latent pixel of this VAE is {self.config.stride} wide "
                "and high: choose larger ones."
            )
        return cropped

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Encode in tiles of pixels; overlaps and time tiles are ignored, as in `decode_tiled`."""
        return self.encode(pixel_samples, tile=(tile_y or 0, tile_x or 0))

    # Streams

    def decode_chunks(self, samples, tile=AUTO, past: Past | None = None, leave=None) -> Iterator[torch.Tensor]:
        """Iterate over images (B, 1 or 4, H, W, 3) in time, off the device; arguments as in `decode`.

        past: of the decode of the frames before, which `samples` follow. leave: called with the `Past` after the last
        frame, its tensors in RAM. Unless the device is the CPU, the next chunk is computed while one is returned.
        """
        steps, goes_on = StepProgress(samples.shape[2]), leave is not None
        stream = self.decoder(samples, tile, self.runtime, steps, past, goes_on)
        chunks = self.frames(stream)
        return then(chunks, lambda: leave(stream.past(RAM))) if goes_on else chunks

    def decoder(self, samples, tile, runtime: Runtime, on_step, past: Past | None = None, goes_on=False) -> Stream:
        """Return the stream of a decode, arguments as in `decode` and `WanVAE.decode_stream`, with the VAE loaded."""
        shape, stride = list(samples.shape), self.config.decoded_stride
        frame = (shape[3] * stride, shape[4] * stride)
        if past is not None or goes_on:
            shape[2] = None  # the caches are kept, as if more frames could follow
        return self.first_stage_model.decode_stream(
            samples,
            device=self.device,
            dtype=self.vae_dtype,
            on_step=on_step,
            past=past,
            goes_on=goes_on,
            **self.prepare(plan_decode, fit_decode, tuple(shape), frame, tile, self.vae_dtype, runtime),
        )

    def frames(self, stream: Stream) -> Iterator[torch.Tensor]:
        """Iterate over the images of a `decoder`, off the device; it goes on in smaller tiles if memory runs out."""
        images = (self.images(chunk) for chunk in resumed(stream, lambda: compat.on_device(self.device)))
        return off_device(images, self.device, self.output_device)

    def images(self, chunk: torch.Tensor) -> torch.Tensor:
        """Return decoded video (B, C, T, H, W) as images (B, T, H, W, C) in [0, 1], a contiguous copy."""
        dtype = self.vae_output_dtype()
        image = chunk.permute(0, 2, 3, 4, 1).to(dtype, copy=True, memory_format=torch.contiguous_format)
        return self.process_output(image)

    def encode_chunks(self, chunks, shape, tile=AUTO, expected=1) -> Iterator[torch.Tensor]:
        """Iterate over latents (B, C, 1, h, w) in time, of `chunks` (B, 3, t, H, W) in [0, 1] of a video of `shape`.

        If the number of frames is not known in advance, it is None in `shape`; the progress bar then shows `expected`.
        """
        stream = self.first_stage_model.encode_stream(
            (self.process_input(chunk.to(RAM)) for chunk in chunks),  # an error in here would lose the chunk
            device=self.device,
            dtype=self.encode_dtype,
            on_step=StepProgress(geometry.latent_frames(shape[2] or expected)),
            **self.prepare(plan_encode, fit_encode, shape, shape[3:], tile, self.encode_dtype, self.runtime),
        )
        latents = (latent.to(self.vae_output_dtype()) for latent in resumed(stream, self.exactly))
        yield from off_device(latents, self.device, self.output_device)

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Context for encoding: on the device, without TF32 if the dtype is float32."""
        with compat.on_device(self.device), exact(self.encode_dtype):
            yield

    def prepare(self, plan, fit, shape, frame, tile, dtype, runtime) -> dict:
        """Load the VAE on its device with memory to spare for the work; return the stream's tile, park and runtime.

        plan, fit: of the work, on `shape`. frame: (height, width) in pixels. tile: as in `decode`; `AUTO` is the
        largest that fits in the free memory after loading.
        """
        chosen = None if tile == AUTO else tuple(t or max(side, MIN_TILE) for t, side in zip(tile, frame, strict=True))
        smallest = chosen or fit(self.config, shape, 0, dtype, runtime)
        needed, least = (self.plan(plan, shape, each, dtype, runtime).peak_bytes for each in (chosen, smallest))
        with compat.on_device(self.device):
            comfy.model_management.load_models_gpu(
                [self.patcher],
                memory_required=needed,
                minimum_memory_required=least,  # beyond this, keep weights loaded
            )
        return self.fitted(plan, fit, shape, chosen, dtype, runtime)

    def fitted(self, plan, fit, shape, tile, dtype, runtime) -> dict:
        """Return the stream's tile, park and runtime for the memory that is free now; arguments as in `prepare`.

        tile: (height, width) in pixels, None for the largest that fits.
        """
        budget = compat.free_memory(self.device) * USABLE
        tile = tile or fit(self.config, shape, budget, dtype, runtime)
        work = self.plan(plan, shape, tile, dtype, runtime)
        logging.info("Wan VAE: %s", work)
        stays = work.peak_bytes + work.parked_bytes <= budget
        return {"tile": tile, "park": self.device if stays else RAM, "runtime": runtime}


def then(items: Iterable, action: Callable[[], None]) -> Iterator:
    """Yield `items`, then call `action`."""
    yield from items
    action()


class StepProgress:
    """`on_step` of a stream: moves the host's progress bar, `total` latent frames long, and raises if cancelled."""

    def __init__(self, total: int):
        self.total = total
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: float, _):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, self.total)


def decode(vae, samples, tile=AUTO) -> torch.Tensor:
    """Decode with any video VAE of the host, as `HostVAE.decode`; the host's own VAEs tile in their own way."""
    if isinstance(vae, HostVAE):
        return vae.decode(samples, tile=tile)
    check_latent(vae, samples)
    if tile == AUTO:
        return vae.decode(samples)
    stride = vae.spacial_compression_decode()
    height, width = (t // stride or side for t, side in zip(tile, samples.shape[3:], strict=True))
    return vae.decode_tiled(samples, tile_y=height, tile_x=width, overlap=min(height, width) // OVERLAP)


def encode(vae, images, tile=AUTO) -> torch.Tensor:
    """Encode with any video VAE of the host, as `HostVAE.encode`."""
    if isinstance(vae, HostVAE):
        return vae.encode(images, tile=tile)
    if tile == AUTO:
        return vae.encode(images)
    height, width = (t or side for t, side in zip(tile, images.shape[-3:-1], strict=True))
    return vae.encode_tiled(images, tile_y=height, tile_x=width, overlap=min(height, width) // OVERLAP)


def latent_shape(vae, batch: int, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Return the shape of a clip's latent, for any video VAE of the host.

    Raise ValueError for a VAE that is not a Wan VAE.
    """
    channels, stride = vae.latent_channels, vae.spacial_compression_encode()
    if vae.latent_dim != 3 or channels not in FAMILIES:
        raise ValueError(
            f"This VAE makes latents of {channels} channels, Wan has 16 (2.1 and A14B) or 48 (2.2 5B): load a Wan VAE "
            "in WanVAELoader."
        )
    return batch, channels, geometry.latent_frames(frames), height // stride, width // stride


def check_latent(vae, samples: torch.Tensor) -> None:
    """Raise ValueError if `samples` are not latents of this VAE, or hold NaN or infinite values."""
    if samples.ndim != 5:
        raise ValueError(
            f"This latent has {samples.ndim} dimensions, a Wan clip has 5 (batch, channels, frames, height, width): "
            "connect a latent from WanSampler or WanVAEEncode."
        )
    check_channels(vae.latent_channels, samples.shape[1])
    if not samples.numel():
        raise ValueError(
            f"The latent is empty: {tuple(samples.shape)} (batch, channels, frames, height, width). Make it with "
            "WanEmptyLatent or WanVAEEncode."
        )
    bad = ~samples.isfinite().transpose(1, 2).flatten(2).all(dim=2).all(dim=0)  # (T,)
    if bad.any():
        raise ValueError(
            f"Latent frame {int(bad.nonzero()[0])} of {samples.shape[2]} holds NaN or infinite values: sample again "
            "with another attention backend or weight_dtype float32 or bfloat16."
        )


def check_channels(decoded: int, given: int) -> None:
    """Raise ValueError if a VAE of `decoded` latent channels is given others."""
    if decoded != given:
        raise ValueError(
            Message(
                "decoded_latent",
                "The VAE decodes {decoded} and was given {given}: load the VAE of the model's family in WanVAELoader.",
                decoded=latents(decoded), given=latents(given),
            )
        )  # fmt: skip
