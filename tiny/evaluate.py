"""Measures the demo family on scenes that its training never saw, and prints what it finds.

python -m tiny.evaluate vae vae22 t2v lora experts i2v ti2v
"""

import argparse
import logging
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import FOUR_STEPS, family, judge, scenes, train_lora, whole_clip
from wan_model.variants import NEGATIVE_PROMPT

HELD_OUT = 10**8  # seeds from here on are in no training set
CLIPS, PROMPTS, TOGETHER = 32, 100, 20  # reconstructed clips; prompts; of which as many are sampled at once

log = logging.getLogger("tiny")


def held_out(index: int) -> tuple[scenes.Scene, str]:
    """A scene and its caption; every third is Chinese."""
    rng = np.random.default_rng(HELD_OUT + index)
    scene = scenes.draw_scene(rng)
    return scene, scenes.caption(scene, rng, chinese=index % 3 == 2)


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels in [-1, 1]."""
    return 10 * float(torch.log10(4 / (made - true).square().mean()))


def measure_vae(kind: str = "vae") -> dict[str, float]:
    """PSNR of held-out clips through the VAE of `kind`, as in training, streamed and tiled, and of their first frames;
    statistics of normalised latents.
    """
    vae = family.load_vae(kind)
    clips = torch.stack([scenes.render(held_out(index)[0]) for index in range(CLIPS)])
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "whole": lambda clip: whole_clip.decode(vae, whole_clip.encode(vae, clip)),
        "streamed": lambda clip: vae.decode(vae.encode(clip)),
        "tiled": lambda clip: vae.decode(vae.encode(clip, tile=(32, 32)), tile=(32, 32)),
    }
    result = {}
    for name, way in ways.items():
        made = torch.cat([way(clip[None]) for clip in clips]).clamp(-1, 1)
        result[f"PSNR {name} (dB)"] = psnr(made, clips)
    result["PSNR of first frames (dB)"] = psnr(made[:, :, 0], clips[:, :, 0])
    latents = family.normalise(torch.cat([vae.encode(clip[None]) for clip in clips]))
    return result | {"latent mean": float(latents.mean()), "latent deviation": float(latents.std())}


def measure_t2v(dit: Callable[..., Tensor], vae: str = "vae", negative: str = "", **sampling) -> dict[str, float]:
    """Part of held-out prompts whose property is seen in the clip, for each property, and for all at once.

    vae: its kind. sampling: as `family.sample` takes it.
    """
    encoder, vae = family.TextEncoder(), family.load_vae(vae)
    scores = []
    for first in range(0, PROMPTS, TOGETHER):
        group = [held_out(index) for index in range(first, min(first + TOGETHER, PROMPTS))]
        context = encoder([caption for _, caption in group])
        seeds = list(range(first, first + len(group)))
        latents = family.sample(dit, context, encoder([negative]), seeds, **sampling)
        clips = family.decode(vae, latents)
        scores += [judge.score(clip, scene) for clip, (scene, _) in zip(clips, group, strict=True)]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]} | {
        "all": float(np.mean([all(score.values()) for score in scores]))
    }


def measure_ti2v() -> dict[str, float]:
    """From held-out first frames: PSNR of the first frame, and part of the clips that are as prompted."""
    dit, encoder, vae = family.load_dit("ti2v"), family.TextEncoder(), family.load_vae("vae22")
    firsts, scores = [], []
    for start in range(0, PROMPTS, TOGETHER):
        group = [held_out(index) for index in range(start, min(start + TOGETHER, PROMPTS))]
        given = torch.stack([scenes.render(scene, frames=1) for scene, _ in group])
        context = encoder([caption for _, caption in group])
        seeds = list(range(start, start + len(group)))
        held = family.normalise(vae.encode(given))
        clips = family.decode(vae, family.sample(dit, context, encoder([""]), seeds, first=held, size=family.SIZE22))
        firsts += [psnr(clip[:, :1], frame) for clip, frame in zip(clips, given, strict=True)]
        scores += [judge.score(clip, scene) for clip, (scene, _) in zip(clips, group, strict=True)]
    parts = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return {"PSNR of the first frame (dB)": float(np.mean(firsts))} | parts


def measure_i2v(last: bool = False) -> dict[str, float]:
    """From held-out first frames, or first and last: PSNR of the given frames, and part whose motion is as prompted."""
    dit, encoder, vae = family.load_dit("i2v"), family.TextEncoder(), family.load_vae()
    firsts, lasts, motions = [], [], []
    for start in range(0, PROMPTS, TOGETHER):
        group = [held_out(index) for index in range(start, min(start + TOGETHER, PROMPTS))]
        true = torch.stack([scenes.render(scene) for scene, _ in group])
        given = torch.zeros_like(true)  # gray where nothing is given
        given[:, :, 0] = true[:, :, 0]
        if last:
            given[:, :, -1] = true[:, :, -1]
        pictures = family.normalise(torch.cat([vae.encode(clip[None]) for clip in given]))
        y = torch.cat((family.frame_mask(torch.full((len(group),), last)), pictures), dim=1)
        context = encoder([caption for _, caption in group])
        seeds = list(range(start, start + len(group)))
        clips = family.decode(vae, family.sample(dit, context, encoder([""]), seeds, y=y))
        firsts += [psnr(clip[:, 0], real[:, 0]) for clip, real in zip(clips, true, strict=True)]
        lasts += [psnr(clip[:, -1], real[:, -1]) for clip, real in zip(clips, true, strict=True)]
        motions += [judge.score(clip, scene)["motion"] for clip, (scene, _) in zip(clips, group, strict=True)]
    ends = {"PSNR of the first frame (dB)": float(np.mean(firsts))}
    if last:
        ends["PSNR of the last frame (dB)"] = float(np.mean(lasts))
    return ends | {"motion": float(np.mean(motions))}


def t2v(**options) -> dict[str, float]:
    """`measure_t2v` of the text-to-video DiT."""
    return measure_t2v(family.load_dit("t2v"), **options)


SEEN = f"{PROMPTS} held-out prompts, guidance {family.GUIDANCE:g}, parts seen"
MEASURES: dict[str, dict[str, Callable[[], dict[str, float]]]] = {
    "vae": {f"{CLIPS} held-out clips": measure_vae},
    "vae22": {f"{CLIPS} held-out clips": lambda: measure_vae("vae22")},
    "t2v": {
        SEEN: t2v,
        "guidance 1, parts seen": lambda: t2v(guidance=1.0),
        "the official negative prompt, parts seen": lambda: t2v(negative=NEGATIVE_PROMPT),
    },
    "lora": {
        "four steps with the LoRA, parts seen": lambda: measure_t2v(train_lora.load(), **FOUR_STEPS),
        "the same four steps without it, parts seen": lambda: t2v(**FOUR_STEPS),
    },
    "experts": {SEEN: lambda: measure_t2v(family.Experts())},
    "ti2v": {
        SEEN: lambda: measure_t2v(family.load_dit("ti2v"), "vae22", size=family.SIZE22),
        f"{PROMPTS} held-out first frames": measure_ti2v,
    },
    "i2v": {
        f"{PROMPTS} held-out first frames": measure_i2v,
        f"{PROMPTS} held-out first and last frames": lambda: measure_i2v(last=True),
    },
}


def main() -> None:
    """Measure what the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=list(MEASURES), default=list(MEASURES))
    options = parser.parse_args()
    with torch.inference_mode():
        for part in options.parts:
            for title, measure in MEASURES[part].items():
                log.info("%s: %s", part, title)
                for name, value in measure().items():
                    log.info("  %-30s %.3f", name, value)


if __name__ == "__main__":
    main()
