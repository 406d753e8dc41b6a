"""The frames of a video file, one by one."""

import logging
import math
import os
from collections.abc import Iterator

import av
import numpy as np
import torch

from .. import compat

MISSING = 1.0  # seconds; a Matroska file that ends this long before its declared end is truncated


def expected_frames(video) -> int:
    """Return the approximate number of frames that a VIDEO declares, or 1: for progress bars only."""
    try:
        return max(1, round(video.get_duration() * float(video.get_frame_rate())))
    except (av.error.FFmpegError, ValueError):
        return 1  # reading the frames will raise the error


def read_frames(video) -> Iterator[torch.Tensor]:
    """Yield the frames (H, W, 3) in [0, 1] of the host's `VideoFromFile`, in its trim window, turned upright.

    Raise ValueError, with the file's name, if the file is not a video, damaged or truncated.
    """
    source = video.get_stream_source()
    name = os.path.basename(source) if isinstance(source, str) else "The video"
    start, duration = compat.trim_window(video)
    read, last = 0, 0.0
    try:
        with av.open(source) as container:
            stream = first_video_stream(container, name)
            first = int(start / stream.time_base)
            stop = int((start + duration) / stream.time_base) if duration else math.inf
            if first:
                container.seek(first, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None:  # missing in damaged files
                    if frame.pts >= stop:
                        return
                    if frame.pts < first:
                        continue
                    last = frame.time + frame.duration * float(frame.time_base)
                read += 1
                yield pixels(frame)
            declared = declared_end(stream)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{name} cannot be read beyond frame {read}: it is cut off, damaged or no video ({error.strerror}). Copy "
            "or export it again."
        ) from error
    if declared - last > MISSING:
        raise ValueError(
            f"{name} is cut off: it ends after {last:.1f} of {declared:.1f} seconds. Copy or export it again."
        )
    logging.info("Read %d frames of %s.", read, name)


def first_video_stream(container, name: str):
    """Return the stream to decode. Raise ValueError for a file without one."""
    if not container.streams.video:
        raise ValueError(f"{name} has sound but no pictures: choose a file with a video stream.")
    return container.streams.video[0]


def declared_end(stream) -> float:
    """Return the seconds at which a Matroska stream should end, 0 if it does not say.

    FFmpeg reports truncation of other containers as an error, but treats it as the end of a Matroska file.
    """
    hours, _, rest = stream.metadata.get("DURATION", "0:0:0").partition(":")
    minutes, _, seconds = rest.partition(":")
    return 3600 * float(hours) + 60 * float(minutes) + float(seconds)


def pixels(frame) -> torch.Tensor:
    """Return a decoded frame as (H, W, 3) in [0, 1], rotated as its file says."""
    image = frame.to_ndarray(format="gbrp16le")  # (H, W, 3); rgb24 would not interpolate chroma
    turns = round(frame.rotation / 90)
    return torch.from_numpy(np.rot90(image, turns).astype(np.float32)) / 65535
