"""A video file that can be played while it grows: an MP4 to which whole fragments are appended.

Each piece of video is encoded by an encoder of its own and begins with a key frame, so the bytes of a fragment depend
on its frames and its place alone: a run that goes on after a break writes the same file as one without.
"""

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import torch

from . import sound
from .whole_file import guarded, whole_file

CODEC = "libx264"
QUALITY = {"crf": "18", "bf": "0"}  # without frames that depend on later ones, a fragment ends with its last frame
THREADS = 4  # of an encoder; the result depends on it
BT709 = 1  # the number of this matrix, of its primaries and of its transfer in H.264
MP4 = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer+use_metadata_tags",
    "avoid_negative_ts": "disabled",  # or each fragment would begin at 0
    "use_editlist": "0",
}


@dataclass
class GrowingVideo:
    """An MP4 file at `path` of `rate` frames a second, and how much of it is written.

    metadata: entries of the file, as ComfyUI reads them. size: bytes of the whole fragments. frames, pieces: written.
    header: bytes before the first fragment. fragment: where the newest begins.
    """

    path: Path
    rate: Fraction
    metadata: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    frames: int = 0
    pieces: int = 0
    header: int = 0
    fragment: int = 0

    @property
    def seconds(self) -> float:
        """Length of what is written."""
        return float(self.frames / self.rate)

    def mark(self) -> str:
        """Return a short name for the header on the disk: it tells a file that grows from a finished one."""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(self.header)).hexdigest()[:12]

    def append(self, images: torch.Tensor) -> None:
        """Write images (t, H, W, 3) in [0, 1]. Raise `DiskFull`; the file then ends as before."""
        header, fragment = encode(images, self.rate, self.frames, self.pieces, self.metadata)
        if self.pieces:
            header = b""
        else:
            self.header = len(header)
        self.fragment = self.size + len(header)
        self.write(header + fragment)
        self.frames, self.pieces = self.frames + len(images), self.pieces + 1

    def write(self, data: bytes) -> None:
        """Put `data` behind the whole fragments; where it does not fit, nothing is kept of it."""
        with guarded(self.path), open(self.path, "r+b" if self.size else "wb") as file:
            file.seek(self.size)
            try:
                file.write(data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, self.size)
                raise
        self.size += len(data)

    def finish(self, audio: dict | None = None) -> None:
        """Turn the file into a regular MP4 with its index at the front, and with `audio` cut to its length.

        Where that fails, for want of room or because another program holds the file, it stays as it grew, which plays
        too.
        """
        try:
            with whole_file(self.path) as partial:
                sound.remux(self.path, partial, audio, self.seconds)
        except OSError as error:
            lost = " and without its sound" if audio else ""
            logging.warning("%s stays as it was written, without an index%s. %s", self.path.name, lost, error)


def encode(
    images: torch.Tensor, rate: Fraction, first: int, number: int, metadata: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """Return the header of an MP4 file and fragment `number` of it, with images (t, H, W, 3) from frame `first` on."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=MP4 | {"fragment_index": str(number + 1)}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(CODEC, rate=rate, options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.thread_count = THREADS
        context.colorspace = context.color_primaries = context.color_trc = BT709
        for place, image in enumerate(images, first):
            container.mux(stream.encode(frame(image, place, rate)))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    cut = data.index(b"moof") - 4  # a box begins with its size
    return data[:cut], data[cut:]


def frame(image: torch.Tensor, place: int, rate: Fraction) -> av.VideoFrame:
    """Return image (H, W, 3) in [0, 1] as frame `place` of a video."""
    levels = image[..., :3].float().mul(255).round().clamp(0, 255).to(torch.uint8)
    made = av.VideoFrame.from_ndarray(levels.cpu().numpy(), format="rgb24")
    made = made.reformat(format="yuv420p", dst_colorspace="ITU709")
    made.pts, made.time_base = place, 1 / rate
    return made
