"""Says what a clip shows, by measuring: colours by hue, the shape by its outline, the motion by its track."""

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from . import scenes

CONTRAST = 0.5  # of the strongest difference from the background: beyond it a pixel belongs to the shape
GRAY = 0.25  # saturation below which a colour is white, gray or black
FAR, GROWN, TURNED = 0.12, 1.4, 0.35  # of the shorter side; ratio of areas; radians: less is no motion
ROUND = 1.5 * np.pi  # radians: less is no way around
ANGLES = np.linspace(0, np.pi / 2, 15, endpoint=False)


@dataclass(frozen=True)
class Seen:
    """What is seen in a clip, in the words of `scenes`; motion is "still" and shape None where there is none."""

    shape: str | None
    colour: str | None
    background: str
    motion: str


def look(clip: torch.Tensor) -> Seen:
    """What `clip` (3, T, H, W) in [-1, 1] shows."""
    frames = ((clip.float().clamp(-1, 1) + 1) / 2).permute(1, 2, 3, 0).numpy()  # (T, H, W, 3) in [0, 1]
    border = np.concatenate([frames[:, :3], frames[:, -3:]], axis=1).reshape(-1, 3)
    ground = np.median(border, axis=0)
    difference = np.abs(frames - ground).max(axis=3)  # (T, H, W)
    strongest = np.quantile(difference, 0.99)
    blobs = [_largest(frame > CONTRAST * strongest) for frame in difference]
    if strongest < 0.1 or any(blob.sum() < 12 for blob in blobs):
        return Seen(None, None, name_colour(ground), "still")
    inside = np.stack(blobs) & (difference > 0.8 * strongest)
    colour = np.median(frames[inside if inside.any() else np.stack(blobs)], axis=0)
    shape = name_shape(blobs)
    return Seen(
        shape,
        name_colour(colour),
        name_colour(ground),
        name_motion(blobs, scenes.FOLDS[shape]),
    )


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (H, W)."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    return labels == 1 + int(np.argmax(sizes))


def name_colour(rgb: np.ndarray) -> str:
    """The name of the hue nearest to that of `rgb` in [0, 1], or white, gray or black for a pale one."""
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))
    if saturation < GRAY or value < 0.15:
        return "black" if value < 0.25 else "gray" if value < 0.75 else "white"
    hues = {name: colorsys.rgb_to_hsv(*(part / 255 for part in true))[0] for name, true in scenes.COLOURS.items()}
    return min(hues, key=lambda name: abs((hue - hues[name] + 0.5) % 1 - 0.5))


def name_shape(blobs: list[np.ndarray]) -> str:
    """The shape that overlaps the masks best, each drawn over them with their centre and area at its best angle."""
    scores = {shape: np.mean([_overlap(blob, shape) for blob in blobs[::4]]) for shape in scenes.SHAPES}
    return max(scores, key=scores.get)


def _overlap(blob: np.ndarray, shape: str) -> float:
    """Intersection over union of a mask with a shape of its centre and area, at the best angle."""
    rows, cols = np.indices(blob.shape)
    y, x = ndimage.center_of_mass(blob)
    area, best = blob.sum(), 0.0
    for angle in ANGLES if shape != "circle" else ANGLES[:1]:
        for turn in (0, np.pi / 2) if shape == "triangle" else (0,):
            c, s = np.cos(angle + turn), np.sin(angle + turn)
            u, v = ((cols - x) * c + (rows - y) * s, (rows - y) * c - (cols - x) * s)
            drawn = scenes.distance(shape, *map(torch.from_numpy, (u, v)), _radius(shape, area)).numpy() < 0
            best = max(best, (blob & drawn).sum() / (blob | drawn).sum())
    return best


def _radius(shape: str, area: float) -> torch.Tensor:
    """The radius at which `shape` covers `area` pixels."""
    unit = {"circle": np.pi, "square": 1.7**2, "triangle": 3 * 3**0.5 / 4 * 1.15**2, "cross": 4 * 0.36 * (2 - 0.36)}
    return torch.tensor((area / unit[shape]) ** 0.5)


def name_motion(blobs: list[np.ndarray], folds: int) -> str:
    """The motion of the masks (H, W) of a shape that `folds` turns map onto itself."""
    side = min(blobs[0].shape)
    centres = np.array([ndimage.center_of_mass(blob) for blob in blobs]) / side  # (T, 2): y, x
    areas = np.array([blob.sum() for blob in blobs], dtype=float)
    net, spans = centres[-1] - centres[0], np.ptp(centres, axis=0)
    axis, around = int(np.argmax(spans)), _around(centres)
    if spans.min() > FAR and abs(around) > ROUND:
        return ("around counterclockwise", "around clockwise")[int(around > 0)]
    if spans[axis] > FAR:
        if abs(net[axis]) < 0.5 * spans[axis]:
            return ("bounce vertically", "bounce sideways")[axis]
        return (("up", "down"), ("left", "right"))[axis][int(net[axis] > 0)]
    growth = areas[-3:].mean() / areas[:3].mean()
    if growth > GROWN or growth < 1 / GROWN:
        return "grow" if growth > 1 else "shrink"
    turned = _turned(blobs, folds) if folds else 0.0
    return "still" if abs(turned) < TURNED else scenes.TURNS[int(turned < 0)]


def _around(centres: np.ndarray) -> float:
    """Radians by which a track of centres (T, 2) goes around its middle, with the clock as positive."""
    y, x = (centres - centres.mean(axis=0)).T
    angles = np.unwrap(np.arctan2(y, x))
    return float(angles[-1] - angles[0])


def _turned(blobs: list[np.ndarray], folds: int) -> float:
    """Radians that the masks turn by from first to last, with the clock as positive."""
    phases = []
    for blob in blobs:
        rows, cols = np.nonzero(blob)
        z = (cols - cols.mean()) + 1j * (rows - rows.mean())
        phases.append(np.angle((z**folds / np.maximum(np.abs(z), 1) ** (folds - 1)).sum()))
    unwrapped = np.unwrap(phases)
    return float(unwrapped[-1] - unwrapped[0]) / folds


def score(clip: torch.Tensor, scene: scenes.Scene) -> dict[str, bool]:
    """Which of the four properties of `scene` are seen in `clip`."""
    seen = look(clip)
    return {name: getattr(seen, name) == getattr(scene, name) for name in ("shape", "colour", "background", "motion")}
