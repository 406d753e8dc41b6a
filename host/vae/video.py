"""VIDEO: a clip that is decoded while it is saved, and clips that are encoded while they are read.

Neither direction holds the whole clip: memory depends on a few frames and not on the length.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import Input, InputImpl, Types

from ...wan_model import geometry
from ...wan_model.variants import TIME_STRIDE
from . import vae as host_vae
from .decoding import Decoding
from .video_file import expected_frames, read_frames
from .whole_file import whole_file


def decode(vae, samples: torch.Tensor, tile, fps: float, audio: dict | None = None) -> Input.Video:
    """Return the VIDEO of a latent (B, C, T, h, w): the clips of the batch one after the other.

    tile: as in `HostVAE.decode`. A VAE of this pack decodes when the video is saved; the host's own, which
    cannot stream, decodes here. The VIDEO in the host's cache holds only the latent and the VAE.
    Raise ValueError for latents of another family or with NaN or infinite values.
    """
    host_vae.check_latent(vae, samples)
    if not isinstance(vae, host_vae.HostVAE):
        images = host_vae.decode(vae, samples, tile).flatten(0, 1)  # (B, T, H, W, 3) -> (B * T, H, W, 3)
        return InputImpl.VideoFromComponents(
            Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(fps))
        )
    batch, _, latents, height, width = samples.shape
    stride = vae.config.decoded_stride
    shape = (batch * geometry.video_frames(latents), height * stride, width * stride, vae.output_channels)

    def frames():
        for clip in samples.split(1):
            for chunk in vae.decode_chunks(clip, tile):
                yield from chunk[0]

    return StreamedVideo(frames, shape, Fraction(fps), audio)


def part(decoding: Decoding, fps: float, audio: dict | None = None) -> Input.Video:
    """Return the VIDEO of the frames that follow those of `decoding.before`; they are decoded when it is saved."""
    return StreamedVideo(lambda: chain.from_iterable(decoding.chunks()), decoding.shape, Fraction(fps), audio)


def encode(vae, video: Input.Video, tile) -> torch.Tensor:
    """Return the latent (1, C, t, h, w) of a VIDEO, which a VAE of this pack reads frame by frame.

    tile: as in `HostVAE.encode`.
    Frames beyond the last 4n+1 are left out; sides are cropped about the centre to whole latent pixels.
    Raise ValueError for a video of no frames or of fewer pixels than one latent pixel, and for a broken file.
    """
    if not isinstance(vae, host_vae.HostVAE):
        return host_vae.encode(vae, video.get_components().images, tile)
    expected = expected_frames(video)  # before reading: all readers of a file in memory share one position
    chunks = clip_chunks(vae, frames_of(video))
    first = next(chunks, None)
    if first is None:
        raise ValueError("The video has 0 frames and a clip needs 1 or more: choose another video.")
    shape = (1, 3, None, *first.shape[-2:])
    return torch.cat(list(vae.encode_chunks(chain([first], chunks), shape, tile, expected)), dim=2)


def frames_of(video: Input.Video) -> Iterator[torch.Tensor]:
    """Iterate over the frames (H, W, 3) in [0, 1] of a VIDEO, one at a time if possible."""
    if isinstance(video, StreamedVideo):
        return video.frames()
    if isinstance(video, InputImpl.VideoFromFile):
        return read_frames(video)
    return iter(video.get_components().images[..., :3])


def clip_chunks(vae, frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield chunks (1, 3, 1, H, W), (1, 3, 4, H, W), (1, 3, 4, H, W), ... of frames, cropped for `vae`.

    One to three frames that do not fill the last chunk are dropped.
    """
    wanted = 1
    while len(group := list(islice(frames, wanted))) == wanted:
        yield vae.crop(torch.stack(group)).movedim(-1, 0).unsqueeze(0)  # (t, H, W, 3) -> (1, 3, t, H, W)
        wanted = TIME_STRIDE


class Frames:
    """Stand-in for a tensor of images in the host's writer, which reads its shape and iterates over its frames."""

    def __init__(self, frames: Callable[[], Iterator[torch.Tensor]], shape: tuple[int, int, int, int]):
        self.frames, self.shape = frames, shape

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.frames()


class StreamedVideo(Input.Video):
    """A VIDEO whose frames are decoded on demand and not kept.

    Saving writes each frame as it is decoded, through the host's own writer, so codecs, containers and metadata are the
    host's. Saving twice decodes twice; `get_components` decodes all frames and does not keep them.

    frames: function that starts over and yields every frame (H, W, 3) in [0, 1]. shape: (frames, H, W, 3).
    frame_rate: frames a second. audio: the host's AUDIO or None.
    """

    def __init__(self, frames, shape: tuple[int, int, int, int], frame_rate: Fraction, audio: dict | None = None):
        self.frames, self.shape, self.frame_rate, self.audio = frames, shape, frame_rate, audio
        self.stream_file = None

    def save_to(
        self,
        path,
        format=Types.VideoContainer.AUTO,
        codec=Types.VideoCodec.AUTO,
        metadata: dict | None = None,
        **options,
    ) -> None:
        """Write the video to `path`, a file's name or a binary stream, as the host's `VideoFromComponents` does.

        options: further arguments of the host's writer (bit_depth, crf, color_space). A file gets its name once it is
        complete. Raise OSError if the disk is full.
        """
        writer = InputImpl.VideoFromComponents(self.components(Frames(self.frames, self.shape)))
        if not isinstance(path, (str, os.PathLike)):
            writer.save_to(path, format=format, codec=codec, metadata=metadata, **options)
            return
        with whole_file(Path(path)) as partial:
            writer.save_to(str(partial), format=format, codec=codec, metadata=metadata, **options)

    def components(self, images) -> Types.VideoComponents:
        """Return `images` with the sound and the rate of this video."""
        return Types.VideoComponents(images=images, audio=self.audio, frame_rate=self.frame_rate)

    def get_components(self) -> Types.VideoComponents:
        """Return all frames as one tensor (frames, H, W, 3), with audio and frame rate."""
        frames = self.frames()
        first = next(frames)
        images = first.new_empty(self.shape)
        for image, frame in zip(images, chain([first], frames), strict=True):
            image.copy_(frame)
        return self.components(images)

    def get_dimensions(self) -> tuple[int, int]:
        """Return (width, height) in pixels."""
        return self.shape[2], self.shape[1]

    def get_frame_count(self) -> int:
        """Return the number of frames."""
        return self.shape[0]

    def get_frame_rate(self) -> Fraction:
        """Return the frames per second."""
        return self.frame_rate

    def get_duration(self) -> float:
        """Return the length in seconds."""
        return float(self.shape[0] / self.frame_rate)

    def get_container_format(self) -> str:
        """Return the container of `get_stream_source`."""
        return "mp4"

    def get_color_space(self) -> str:
        """Return the color space of the frames, in the host's terms."""
        return "sRGB"

    def get_stream_source(self) -> str:
        """Return the path of an mp4 of this video in the host's temporary folder, written at the first call."""
        if self.stream_file is None or not os.path.exists(self.stream_file):
            folder = folder_paths.get_temp_directory()
            os.makedirs(folder, exist_ok=True)
            self.stream_file = os.path.join(folder, f"wan_{uuid.uuid4().hex}.mp4")
            self.save_to(self.stream_file)
        return self.stream_file

    def as_trimmed(self, start_time=None, duration=None, strict_duration=False) -> "StreamedVideo | None":
        """Return the frames from `start_time` on (seconds; negative: from the end) for `duration` (0: to the end).

        Return None if no frame is left, or fewer than `duration` with `strict_duration`.
        """
        first = round((start_time or 0) * self.frame_rate)
        first = max(first + self.shape[0], 0) if first < 0 else first
        left = self.shape[0] - first
        wanted = round(duration * self.frame_rate) if duration else left
        count = min(wanted, left)
        if count < 1 or (strict_duration and count < wanted):
            return None
        shape = (count, *self.shape[1:])
        return StreamedVideo(
            lambda: islice(self.frames(), first, first + count), shape, self.frame_rate, self.trim_audio(first, count)
        )

    def trim_audio(self, first: int, count: int) -> dict | None:
        """Return the audio of `count` frames from frame `first` on."""
        if self.audio is None:
            return None
        rate = self.audio["sample_rate"]
        start, stop = (round(frame * rate / self.frame_rate) for frame in (first, first + count))
        return {**self.audio, "waveform": self.audio["waveform"][..., start:stop]}
