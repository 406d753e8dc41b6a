"""Scenes of the demo family's world that have no end: a shape bounces, turns or goes around, and stays in the frame."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from . import scenes

HOP, ROUND = 16, 32  # frames of a hop there and back, and of a way around
PARTS = {  # how often each motion is drawn
    "bounce vertically": 0.16,
    "bounce sideways": 0.16,
    "clockwise": 0.25,
    "counterclockwise": 0.25,
    "around clockwise": 0.09,
    "around counterclockwise": 0.09,
}
CROSSES = 1.6  # how much more often than another shape a cross is drawn


@dataclass(frozen=True)
class Endless(scenes.Scene):
    """A scene that goes on. amount: of a hop or radius of the way around, as parts of the frame; radians of a turn in a
    frame. phase: frames by which it had begun before the first one.
    """

    phase: float


def draw_scene(rng: np.random.Generator, parts: dict[str, float] = PARTS, crosses: float = CROSSES) -> Endless:
    """A random scene whose shape differs from its background in colour.

    parts: how often each motion is drawn. crosses: how much more often than another shape a cross is.
    """
    motion = str(rng.choice(list(parts), p=np.array(list(parts.values())) / sum(parts.values())))
    shapes = list(scenes.SHAPES)[motion in scenes.TURNS :]  # a circle that turns looks still
    often = np.array([crosses if shape == "cross" else 1.0 for shape in shapes])
    shape = str(rng.choice(shapes, p=often / often.sum()))
    colour = list(scenes.COLOURS)[rng.integers(len(scenes.COLOURS))]
    background = rng.choice([name for name in scenes.BACKGROUNDS if name != colour])
    x, y, radius, amount = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58), rng.uniform(0.18, 0.23), rng.uniform()
    angle = rng.uniform(-0.12, 0.12)
    match motion:
        case "bounce vertically":
            y, amount = rng.uniform(0.66, 0.73), rng.uniform(0.32, 0.42)
        case "bounce sideways":
            x, amount = rng.uniform(0.27, 0.34), rng.uniform(0.32, 0.42)
        case "clockwise" | "counterclockwise":
            radius, amount, angle = rng.uniform(0.22, 0.28), rng.uniform(0.06, 0.09), rng.uniform(0, 2 * np.pi)
        case _:
            amount = rng.uniform(0.16, 0.21)
    shades = tuple(rng.uniform(0.94, 1.04, size=2))
    phase = rng.uniform(0, ROUND)
    return Endless(shape, colour, str(background), motion, (x, y, radius), amount, angle, shades, phase)


def positions(scene: Endless, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `scenes.positions`, of the frames with these numbers."""
    moment = frames + scene.phase
    x, y, radius, angle = (np.full(len(frames), value) for value in (*scene.start, scene.angle))
    hop = np.abs(np.sin(np.pi * moment / HOP)) * scene.amount
    way = 2 * np.pi * moment / ROUND
    match scene.motion:
        case "clockwise":  # y points down, so a growing angle turns with the clock
            angle = angle + scene.amount * moment
        case "counterclockwise":
            angle = angle - scene.amount * moment
        case "bounce vertically":
            y = y - hop
        case "bounce sideways":
            x = x + hop
        case "around clockwise":
            x, y = x + scene.amount * np.cos(way), y + scene.amount * np.sin(way)
        case "around counterclockwise":
            x, y = x + scene.amount * np.cos(way), y - scene.amount * np.sin(way)
    return x, y, radius, angle


def render(scene: Endless, start: int, stop: int) -> torch.Tensor:
    """Frames start to stop - 1: float32 (3, stop - start, 64, 64) in [-1, 1]."""
    return scenes.paint(scene, scenes.draw(scene.shape, positions(scene, np.arange(start, stop))))


def switched(
    scene: Endless, rng: np.random.Generator, parts: dict[str, float] = PARTS, crosses: float = CROSSES
) -> Endless:
    """A scene that a new prompt makes of `scene`: some of what it shows changes, the rest goes on.

    parts, crosses: as in `draw_scene`.
    """
    while True:
        other = draw_scene(rng, parts, crosses)
        keeps = dict(zip(("colour", "background", "shape", "motion"), rng.uniform(size=4) < 0.5, strict=True))
        new = other if not keeps["motion"] else replace(other, motion=scene.motion, start=scene.start)
        if keeps["motion"]:
            new = replace(new, amount=scene.amount, angle=scene.angle, phase=scene.phase)
        kept = {name: getattr(scene, name) for name in ("colour", "background", "shape") if keeps[name]}
        new = replace(new, **kept)
        if is_seen(new) and prompted(new) != prompted(scene):
            return new


def prompted(scene: scenes.Scene) -> tuple[str, str, str, str]:
    """The scene as a prompt tells it."""
    return scene.colour, scene.shape, scene.background, scene.motion


def is_seen(scene: scenes.Scene) -> bool:
    """Whether shape and motion can be seen."""
    return scene.colour != scene.background and (scene.shape != "circle" or scene.motion not in scenes.TURNS)


def caption(scene: Endless, rng: np.random.Generator) -> str:
    """A sentence in either language; of a way around in English alone, for which the tokenizer has the words."""
    return scenes.caption(scene, rng, chinese=scene.motion in scenes.CHINESE and rng.uniform() < 0.4)
