"""Measures how long clips of the demo family's causal model keep to their prompts, and draws it over time.

The network computes in the dtype in which it is trained.

python -m tiny.drift --plot drift.png
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import endless, family, judge, long_clips, train_lora
from .endless import Endless
from wan_model.dit.model import WanDiT
from wan_model.variants.distilled import Preset
from wan_model.variants.rollout import Rollout

HELD_OUT = 2 * 10**8  # seeds from here on are in no training set
SCENES = [  # motion and shape; a circle that turns looks still
    (motion, shape)
    for motion in endless.PARTS
    for shape in list(endless.scenes.SHAPES)[motion in endless.scenes.TURNS :]
]
PROMPTS, TOGETHER, FRAMES = len(SCENES), 24, 151  # prompts, that are made at once at most; latent frames of a clip: 601
EVEN = {"parts": dict.fromkeys(endless.PARTS, 1.0), "crosses": 1.0}  # how `endless` draws all as often
WINDOW, TIMES = 33, 9  # video frames that are judged at once; windows over a clip
ENDS = 3  # windows at the beginning and at the end
BEFORE, SOON = 16, 2  # latent frames before a prompt changes; blocks in which that is to be seen
PROPERTIES = ("colour", "background", "shape", "motion")
COLOURS = {"colour": "#d62728", "background": "#1f77b4", "shape": "#2ca02c", "motion": "#9467bd"}
GOALS = {"colour": 0.95, "background": 0.95, "shape": 0.75, "motion": 0.8}

log = logging.getLogger("tiny")


def held_out(index: int) -> tuple[Endless, np.random.Generator]:
    """A scene that goes on, and a source for its caption; each motion comes with each shape in turn."""
    rng, wanted = np.random.default_rng(HELD_OUT + index), SCENES[index % len(SCENES)]
    while True:
        scene = endless.draw_scene(rng, **EVEN)
        if (scene.motion, scene.shape) == wanted:
            return scene, rng


def starts(frames: int) -> np.ndarray:
    """First video frames of the windows over a clip of so many video frames."""
    return np.linspace(0, frames - WINDOW, TIMES).round().astype(int)


def seen(clip: torch.Tensor, scene: Endless, start: int) -> list[bool]:
    """Which of `PROPERTIES` are seen in the window that begins at a frame of clip (3, T, 64, 64)."""
    score = judge.score(clip[:, start : start + WINDOW], scene)
    return [score[name] for name in PROPERTIES]


class Model:
    """The causal model with its prompts' encoder and its VAE."""

    def __init__(self, dit: WanDiT, rollout: Rollout, sampling: Preset):
        self.dit, self.rollout, self.sampling = dit, rollout, sampling
        self.encoder, self.vae = family.TextEncoder(), family.load_vae()

    def clips(self, parts: list[tuple[int, list[str]]], seeds: list[int]) -> torch.Tensor:
        """Clips (N, 3, T, 64, 64) whose N prompts change from part to part; a part has a number of latent frames."""
        contexts = [(frames, self.encoder(prompts)) for frames, prompts in parts]
        negative = self.encoder([""])
        latents = long_clips.roll(self.dit, contexts, negative, seeds, self.rollout, self.sampling)
        return family.decode(self.vae, latents)


def groups(count: int) -> list[list[int]]:
    """Numbers below `count` in groups that are made at once."""
    return [list(range(first, min(first + TOGETHER, count))) for first in range(0, count, TOGETHER)]


def over_time(model: Model, count: int = PROMPTS, frames: int = FRAMES) -> np.ndarray:
    """Part of the clips in which each property is seen, by window: (TIMES, 4)."""
    scores = []
    for group in groups(count):
        scenes = [held_out(index) for index in group]
        clips = model.clips([(frames, [endless.caption(*scene) for scene in scenes])], group)
        begin = starts(clips.shape[2])
        scores += [[seen(clip, scene, at) for at in begin] for clip, (scene, _) in zip(clips, scenes, strict=True)]
    return np.array(scores).mean(axis=0)


def after_switch(model: Model, count: int = PROMPTS) -> dict[str, float]:
    """Part of the prompt switches after which the new prompt is seen, in the window that begins `SOON` blocks later.

    By property among those that change, and whether all that change are seen.
    """
    changed, found = [], []
    later = SOON * model.rollout.block
    for group in groups(count):
        scenes = [held_out(index) for index in group]
        new = [endless.switched(scene, rng, **EVEN) for scene, rng in scenes]
        captions = [
            [endless.caption(one, rng) for one, (_, rng) in zip(s, scenes, strict=True)]
            for s in ([scene for scene, _ in scenes], new)
        ]
        rest = later + (WINDOW - 1) // 4 + 1
        clips = model.clips([(BEFORE, captions[0]), (rest, captions[1])], group)
        begin = 4 * (BEFORE + later) - 3
        found += [seen(clip, scene, begin) for clip, scene in zip(clips, new, strict=True)]
        changed += [
            [getattr(old, name) != getattr(scene, name) for name in PROPERTIES]
            for (old, _), scene in zip(scenes, new, strict=True)
        ]
    changed, found = np.array(changed), np.array(found)
    result = {name: float(found[changed[:, i], i].mean()) for i, name in enumerate(PROPERTIES)}
    return result | {"all that changes": float((found | ~changed).all(axis=1).mean())}


def plot(scores: np.ndarray, seconds: np.ndarray, path: Path) -> None:
    """Draw the parts (TIMES, 4) over the moments of their windows into a picture."""
    width, height, left, top = 760, 330, 50, 20
    image = Image.new("RGB", (width + left + 130, height + top + 45), "white")
    draw = ImageDraw.Draw(image)

    def at(second: float, part: float) -> tuple[float, float]:
        return left + width * second / seconds[-1], top + height * (1 - part)

    for part in (0, 0.25, 0.5, 0.75, 1):
        draw.line((at(0, part), at(seconds[-1], part)), fill="#dddddd")
        draw.text((12, at(0, part)[1] - 6), f"{part:.0%}", fill="black")
    for second in np.arange(0, seconds[-1] + 0.01, 5):
        draw.text((at(second, 0)[0] - 6, top + height + 8), f"{second:.0f}", fill="black")
    draw.text((left + width / 2 - 90, top + height + 25), "seconds of video, at 16 frames each", fill="black")
    for i, name in enumerate(PROPERTIES):
        points = [at(*point) for point in zip(seconds, scores[:, i], strict=True)]
        draw.line(points, fill=COLOURS[name], width=3)
        draw.text((left + width + 12, top + 20 * i), f"{name} {scores[-ENDS:, i].mean():.0%}", fill=COLOURS[name])
    image.quantize(32).save(path, optimize=True)


def report(model: Model, path: Path | None, count: int = PROMPTS) -> None:
    """Measure, log and draw."""
    scores = over_time(model, count)
    frames = 4 * FRAMES - 3
    log.info(
        "%d held-out prompts, %d frames, guidance %g, %d steps a block, parts seen",
        count,
        frames,
        model.sampling.guidance[-1],
        model.sampling.steps,
    )
    for i, name in enumerate(PROPERTIES):
        ends = scores[:ENDS, i].mean(), scores[-ENDS:, i].mean()
        log.info("  %-12s %.3f at the beginning, %.3f at the end", name, *ends)
    for name, part in after_switch(model, count).items():
        log.info("  %-16s %.3f of the switches, %d blocks later", name, part, SOON)
    if path is not None:
        plot(scores, starts(frames) / endless.scenes.RATE, path)


def main() -> None:
    """Measure the shipped model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="where a picture of the drift over time is written")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    options = parser.parse_args()
    with torch.inference_mode():
        dit = train_lora.quick(family.load_dit("causal"))
        report(Model(dit, *long_clips.settings()), options.plot, options.prompts)


if __name__ == "__main__":
    main()
