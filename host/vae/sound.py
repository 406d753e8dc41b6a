"""A finished video file: the frames of another one as they are, and a sound track cut to their length."""

import heapq
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

LAYOUTS = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}  # channels of a sound track -> the codec's name
PIECE = 1  # seconds of sound that are encoded at once
REGULAR = {"movflags": "faststart+use_metadata_tags"}


def remux(source: Path, target: Path, audio: dict | None, seconds: float) -> None:
    """Write the frames of the video file `source` to `target`, a regular MP4, with `audio` up to `seconds`.

    Nothing is encoded again but the sound. audio: the host's AUDIO or None. Raise ValueError for a number of channels
    that no video has.
    """
    with av.open(source) as old, av.open(target, "w", format="mp4", options=REGULAR) as new:
        new.metadata.update({name: value for name, value in old.metadata.items() if name not in RESERVED})
        stream = old.streams.video[0]
        tracks = [_copied(old, stream, new.add_stream_from_template(stream))]
        if audio is not None:
            tracks.append(_encoded(new, audio, seconds))
        for packet in heapq.merge(*tracks, key=_time):
            new.mux(packet)


RESERVED = ("major_brand", "minor_version", "compatible_brands", "encoder")  # the new file writes its own


def _time(packet) -> Fraction:
    return packet.dts * packet.time_base


def _copied(container, stream, target) -> Iterator[av.Packet]:
    for packet in container.demux(stream):
        if packet.dts is not None:  # the last packet is empty
            packet.stream = target
            yield packet


def _encoded(container, audio: dict, seconds: float) -> Iterator[av.Packet]:
    rate, waveform = audio["sample_rate"], audio["waveform"][0]  # (channels, samples)
    channels, kept = waveform.shape[0], round(seconds * rate)
    if channels not in LAYOUTS:
        raise ValueError(f"The sound has {channels} channels and a video takes {', '.join(map(str, LAYOUTS))}.")
    stream = container.add_stream("aac", rate=rate, layout=LAYOUTS[channels])

    def packets() -> Iterator[av.Packet]:
        at = 0
        for part in waveform[:, :kept].split(PIECE * rate, dim=1):
            frame = av.AudioFrame.from_ndarray(
                part.float().contiguous().cpu().numpy(), format="fltp", layout=LAYOUTS[channels]
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            at += part.shape[1]
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()
