"""Draws the pictures and the clip that the example workflows begin with: a ball that rolls down a hill."""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

FRAMES, WIDTH, HEIGHT, RATE = 17, 128, 96, 16  # one second, in the size of a run with the tiny checkpoints
FILES = ("wan_example_start.png", "wan_example_end.png", "wan_example_mask.png", "wan_example.mp4")


def frame(moment: float) -> Image.Image:
    """The scene at `moment`, 0 for its first frame and 1 for its last."""
    sky = np.linspace((90, 150, 220), (230, 220, 190), HEIGHT)[:, None].repeat(WIDTH, axis=1)
    image = Image.fromarray(sky.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, HEIGHT // 2), (WIDTH, HEIGHT * 5 // 6), (WIDTH, HEIGHT), (0, HEIGHT)], fill=(70, 130, 60))
    draw.circle((16 + 90 * moment, HEIGHT // 2 - 4 + 24 * moment), 12, fill=(210, 50, 40))
    return image


def mask() -> Image.Image:
    """White where a workflow makes something new: a disc in the middle."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).circle((WIDTH // 2, HEIGHT // 2), HEIGHT // 3, fill=(255, 255, 255))
    return image


def write(folder: Path) -> None:
    """Writes `FILES` into `folder`, the host's input folder."""
    folder.mkdir(parents=True, exist_ok=True)
    start, end, inpainted, clip = (folder / name for name in FILES)
    frames = [frame(index / (FRAMES - 1)) for index in range(FRAMES)]
    frames[0].save(start)
    frames[-1].save(end)
    mask().save(inpainted)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
