"""The demo family's world: one coloured shape that moves on a plain background, and the sentences that describe it."""

from dataclasses import dataclass

import numpy as np
import torch

FRAMES, SIDE, RATE = 17, 64, 16  # of a demo clip: frames, pixels of the shorter side, frames per second

COLOURS = {
    "red": (225, 45, 40),
    "yellow": (240, 215, 40),
    "green": (50, 175, 65),
    "cyan": (60, 205, 215),
    "blue": (45, 80, 215),
    "purple": (155, 60, 190),
}
BACKGROUNDS = COLOURS | {"white": (240, 240, 240), "gray": (130, 130, 130), "black": (18, 18, 18)}
SHAPES = ("circle", "square", "triangle", "cross")
FOLDS = {"circle": 0, "square": 4, "triangle": 3, "cross": 4}  # turns by 1 / n of a circle that change nothing
MOTIONS = (
    "right",
    "left",
    "up",
    "down",
    "grow",
    "shrink",
    "clockwise",
    "counterclockwise",
    "bounce vertically",
    "bounce sideways",
)
TURNS = ("clockwise", "counterclockwise")

ENGLISH = {
    "right": "moves right",
    "left": "moves left",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "clockwise": "turns clockwise",
    "counterclockwise": "turns counterclockwise",
    "bounce vertically": "bounces up and down",
    "bounce sideways": "bounces left and right",
    "around clockwise": "moves clockwise",  # these two only in scenes without an end
    "around counterclockwise": "moves counterclockwise",
}
CHINESE = {
    "red": "\u7ea2\u8272",
    "yellow": "\u9ec4\u8272",
    "green": "\u7eff\u8272",
    "cyan": "\u9752\u8272",
    "blue": "\u84dd\u8272",
    "purple": "\u7d2b\u8272",
    "white": "\u767d\u8272",
    "gray": "\u7070\u8272",
    "black": "\u9ed1\u8272",
    "circle": "\u5706\u5f62",
    "square": "\u6b63\u65b9\u5f62",
    "triangle": "\u4e09\u89d2\u5f62",
    "cross": "\u5341\u5b57\u5f62",
    "right": "\u5411\u53f3\u79fb\u52a8",
    "left": "\u5411\u5de6\u79fb\u52a8",
    "up": "\u5411\u4e0a\u79fb\u52a8",
    "down": "\u5411\u4e0b\u79fb\u52a8",
    "grow": "\u6162\u6162\u53d8\u5927",
    "shrink": "\u6162\u6162\u53d8\u5c0f",
    "clockwise": "\u987a\u65f6\u9488\u65cb\u8f6c",
    "counterclockwise": "\u9006\u65f6\u9488\u65cb\u8f6c",
    "bounce vertically": "\u4e0a\u4e0b\u5f39\u8df3",
    "bounce sideways": "\u5de6\u53f3\u5f39\u8df3",
}


@dataclass(frozen=True)
class Scene:
    """What a clip shows, and the particulars that its caption leaves open.

    shape, colour, background, motion: keys of the tables above. start: centre in the first frame and radius there, as
    parts of the width, the height and the shorter side. amount: how far it moves, grows or turns. angle: radians by
    which it is turned at first. shades: brightness of shape and background, about 1.
    """

    shape: str
    colour: str
    background: str
    motion: str
    start: tuple[float, float, float]
    amount: float
    angle: float
    shades: tuple[float, float]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene whose shape stays inside the frame and differs from its background in colour."""
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    shape = SHAPES[rng.integers(motion in TURNS, len(SHAPES))]  # a circle that turns looks still
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    background = rng.choice([name for name in BACKGROUNDS if name != colour])
    x, y, radius, amount = rng.uniform(0.36, 0.64), rng.uniform(0.36, 0.64), rng.uniform(0.17, 0.24), rng.uniform()
    near, far = rng.uniform(0.26, 0.34), rng.uniform(0.66, 0.74)
    match motion:
        case "right":
            x, amount = near, far - near
        case "left":
            x, amount = far, far - near
        case "down":
            y, amount = near, far - near
        case "up":
            y, amount = far, far - near
        case "grow":
            radius, amount = rng.uniform(0.10, 0.13), rng.uniform(1.1, 1.6)
        case "shrink":
            radius, amount = rng.uniform(0.24, 0.29), rng.uniform(0.5, 0.6)
        case "clockwise" | "counterclockwise":
            radius, amount = rng.uniform(0.22, 0.28), rng.uniform(0.8, 1.1)  # of a quarter turn
        case "bounce vertically":
            y, amount = far, rng.uniform(0.32, 0.42)
        case "bounce sideways":
            x, amount = near, rng.uniform(0.32, 0.42)
    angle = rng.uniform(-0.12, 0.12) if motion not in TURNS else rng.uniform(-0.3, 0.3)
    shades = tuple(rng.uniform(0.94, 1.04, size=2))
    return Scene(shape, colour, str(background), motion, (x, y, radius), amount, angle, shades)


def caption(scene: Scene, rng: np.random.Generator, chinese: bool) -> str:
    """One of the sentences that describe `scene`."""
    if chinese:
        colour, shape, background, motion = (
            CHINESE[word] for word in (scene.colour, scene.shape, scene.background, scene.motion)
        )
        sentences = (
            f"\u4e00\u4e2a{colour}\u7684{shape}\u5728{background}\u80cc\u666f\u4e0a{motion}",
            f"{background}\u80cc\u666f\u4e0a\uff0c\u4e00\u4e2a{colour}{shape}{motion}\u3002",
        )
        return sentences[rng.integers(len(sentences))]
    subject, motion, place = f"{scene.colour} {scene.shape}", ENGLISH[scene.motion], f"{scene.background} background"
    sentences = (
        f"a {subject} {motion} on a {place}",
        f"A {subject} {motion} on a {place}.",
        f"On a {place}, a {subject} {motion}.",
        f"{place}, {subject}, {motion}",
    )
    return sentences[rng.integers(len(sentences))]


def positions(scene: Scene, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre x and y (parts of width and height), radius (part of the shorter side) and angle (radians) per frame."""
    moment = np.linspace(0.0, 1.0, frames)
    x, y, radius, angle = (np.full(frames, value) for value in (*scene.start, scene.angle))
    hop = np.abs(np.sin(2 * np.pi * moment)) * scene.amount  # there and back, twice
    match scene.motion:
        case "right":
            x = x + scene.amount * moment
        case "left":
            x = x - scene.amount * moment
        case "down":
            y = y + scene.amount * moment
        case "up":
            y = y - scene.amount * moment
        case "grow":
            radius = radius * (1 + scene.amount * moment)
        case "shrink":
            radius = radius * (1 - scene.amount * moment)
        case "clockwise":  # y points down, so a growing angle turns with the clock
            angle = angle + scene.amount * np.pi / 2 * moment
        case "counterclockwise":
            angle = angle - scene.amount * np.pi / 2 * moment
        case "bounce vertically":
            y = y - hop
        case "bounce sideways":
            x = x + hop
    return x, y, radius, angle


def cover(scene: Scene, height: int = SIDE, width: int = SIDE, frames: int = FRAMES) -> torch.Tensor:
    """How much of each pixel the shape covers: float32 (frames, height, width) in [0, 1]."""
    return draw(scene.shape, positions(scene, frames), height, width)


def draw(shape: str, track: tuple[np.ndarray, ...], height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """`cover` of a shape on a track as `positions` gives it."""
    x, y, radius, angle = (torch.from_numpy(value).float()[:, None, None] for value in track)
    side = min(height, width)
    rows = torch.arange(height)[:, None] + 0.5 - y * height  # (frames, height, 1)
    cols = torch.arange(width)[None, :] + 0.5 - x * width  # (frames, 1, width)
    u = cols * angle.cos() + rows * angle.sin()
    v = rows * angle.cos() - cols * angle.sin()
    return (0.5 - distance(shape, u, v, radius * side)).clamp(0, 1)


def render(scene: Scene, height: int = SIDE, width: int = SIDE, frames: int = FRAMES) -> torch.Tensor:
    """The clip: float32 (3, frames, height, width) in [-1, 1], its edges smoothed over one pixel."""
    return paint(scene, cover(scene, height, width, frames))


def paint(scene: Scene, covered: torch.Tensor) -> torch.Tensor:
    """Pixels (3, frames, height, width) in [-1, 1] in the colours of `scene`, whose shape covers `covered` of each."""
    shape, ground = (
        (torch.tensor(colour) / 255 * shade).clamp(0, 1).view(3, 1, 1, 1) * 2 - 1
        for colour, shade in zip((COLOURS[scene.colour], BACKGROUNDS[scene.background]), scene.shades, strict=True)
    )
    return ground + (shape - ground) * covered


def distance(shape: str, u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Signed distance in pixels from (u, v) to the outline of `shape`, below 0 inside; exact enough to smooth it."""
    if shape == "circle":
        return (u * u + v * v).sqrt() - radius
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85 * radius
    if shape == "triangle":  # upright; its centre of mass at the origin
        half = 0.5 * 1.15 * radius
        return torch.maximum(v, 0.75**0.5 * u.abs() - 0.5 * v) - half
    arm = 0.36 * radius
    across = torch.maximum(u.abs() - radius, v.abs() - arm)
    upright = torch.maximum(v.abs() - radius, u.abs() - arm)
    return torch.minimum(across, upright)
