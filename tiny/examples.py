"""Makes the pictures, the sound and the clip that the example workflows begin with, in the demo family's world."""

import math
import sys
import wave
from array import array
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from . import scenes

SCENE = scenes.Scene("circle", "red", "blue", "right", start=(0.3, 0.5, 0.2), amount=0.4, angle=0.0, shades=(1.0, 1.0))
FRAMES, SIDE = scenes.FRAMES, scenes.SIDE  # of the clip
PICTURE = 4 * SIDE  # side of a picture in pixels
FILES = ("wan_example_start.png", "wan_example_end.png", "wan_example_mask.png", "wan_example.wav", "wan_example.mp4")
SAMPLES, PITCH, BEAT = 16000, 440, 4  # of the sound: samples, oscillations and beats a second


def frames(side: int) -> list[Image.Image]:
    """The scene in `side` x `side` pixels."""
    video = ((scenes.render(SCENE, side, side) + 1) * 127.5).round().byte()
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in video.permute(1, 2, 3, 0).numpy()]


def mask() -> Image.Image:
    """White where a workflow makes something new: a disc in the middle."""
    image = Image.new("RGB", (PICTURE, PICTURE))
    ImageDraw.Draw(image).circle((PICTURE // 2, PICTURE // 2), PICTURE // 3, fill=(255, 255, 255))
    return image


def write_sound(path: Path) -> None:
    """A tone in beats, as long as the clip."""
    time = [sample / SAMPLES for sample in range(SAMPLES * FRAMES // scenes.RATE)]
    tone = array("h", (int(2e4 * math.sin(2 * math.pi * PITCH * t) * (t * BEAT % 1 < 0.5)) for t in time))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, tone.itemsize, SAMPLES, 0, "NONE", ""))
        file.writeframes(tone.tobytes())


def write(folder: Path) -> None:
    """Writes `FILES` into `folder`, the host's input folder."""
    folder.mkdir(parents=True, exist_ok=True)
    start, end, inpainted, sound, clip = (folder / name for name in FILES)
    pictures = frames(PICTURE)
    pictures[0].save(start)
    pictures[-1].save(end)
    mask().save(inpainted)
    write_sound(sound)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=scenes.RATE, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for image in frames(SIDE):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
