"""What the step cache saves and costs on the demo family: `python3 dev.py bench step_cache`.

Samples held-out prompts with each criterion and budget and judges the clips as `tiny.evaluate` does. The result goes
into a section of its own in benchmarks/results.md.
"""

import argparse
import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType

import bench
import page
import torch
from bench import ROOT, log

from tiny import evaluate, family, judge

from wan_model.vae import build_vae

BUDGETS = {
    "easycache": (0.025, 0.05, 0.1, 0.2),
    "teacache": (0.025, 0.05, 0.1, 0.2),
    "magcache": (0.005, 0.01, 0.02, 0.05),
}
START, END = 0.15, 0.95  # as the node
TOGETHER = 20  # prompts sampled at once
NOTE = """The demo family's text-to-video model by WanSampler's way, {count} held-out prompts, {steps} steps, guidance
{guidance:g}. Fewer calls: of the network. Error: of the latents, relative to those of the run without a cache. Seen:
part of the clips whose property is as prompted, over all properties, and of those where all are."""
COLUMNS = ["criterion", "budget", "fewer calls", "error", "properties seen", "all seen"]


class Bench:
    """The family in the host. pack: this pack as the host loads it. models: the folder with the family's files."""

    def __init__(self, pack: ModuleType, models: Path, count: int):
        self.pack = pack
        files = {kind: str(models / folder / f"wan_tiny_{kind}.safetensors") for kind, folder in family.FOLDERS.items()}
        self.model = self.room("model").load(files["t2v"], "float32")
        self.vae = build_vae(self.room("model").checkpoint.load(files["vae"])[0], dtype=torch.float32)
        self.scenes = [evaluate.held_out(index) for index in range(count)]
        encode, clip = self.room("clip").encode_prompt, self.room("clip").load(files["umt5"])
        self.texts = [encode(clip, caption, "positive")[0][0] for _, caption in self.scenes]
        self.negative = encode(clip, "", "negative")

    def room(self, name: str) -> ModuleType:
        """A file of the pack's host folder."""
        return importlib.import_module(f"{self.pack.__name__}.host.{name}")

    def latents(self, model) -> tuple[torch.Tensor, int]:
        """Latents of all prompts, and for how many samples the network was called."""
        from comfy.patcher_extension import WrappersMP

        calls, results, sampling = [], [], self.room("sampling")
        model = model.clone()

        def count(executor, x, *arguments, **options):
            calls.append(len(x))
            return executor(x, *arguments, **options)

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
        schedule = sampling.Schedule(family.STEPS, family.SHIFT, "unipc")
        for first in range(0, len(self.texts), TOGETHER):
            group = self.texts[first : first + TOGETHER]
            context = torch.nn.utils.rnn.pad_sequence([text[0] for text in group], batch_first=True)
            latent = {"samples": torch.zeros(len(group), 16, *family.SIZE)}
            stages = [sampling.Expert(model, family.GUIDANCE)]
            out = sampling.sample(stages, [[context, {}]], self.negative, latent, schedule, first)
            results.append(out["samples"])
        return torch.cat(results), sum(calls)

    def seen(self, latents: torch.Tensor) -> tuple[float, float]:
        """Part of the properties that are as prompted, and of the clips where all are."""
        scores = []
        for latent, (scene, _) in zip(latents, self.scenes, strict=True):
            clip = self.vae.decode(latent[None]).clamp(-1, 1)[0]
            scores.append(list(judge.score(clip, scene).values()))
        return (
            sum(sum(score) / len(score) for score in scores) / len(scores),
            sum(all(score) for score in scores) / len(scores),
        )

    def rows(self) -> list[list[str]]:
        """A row without a cache, then one for each criterion and budget."""
        plain, calls = self.latents(self.model)
        rows = [["none", "", "1.00", "", *(f"{part:.3f}" for part in self.seen(plain))]]
        step_cache = self.room("step_cache")
        for criterion, budgets in BUDGETS.items():
            for budget in budgets:
                settings = step_cache.Settings(criterion, budget, START, END)
                latents, fewer = self.latents(step_cache.apply(self.model, settings))
                error = float((latents - plain).norm() / plain.norm())
                seen = (f"{part:.3f}" for part in self.seen(latents))
                rows.append([criterion, f"{budget:g}", f"{calls / fewer:.2f}", f"{error:.1e}", *seen])
                log.info("%s", " | ".join(rows[-1]))
        return rows


def main() -> None:
    """Measure all and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=evaluate.PROMPTS, help="prompts")
    parser.add_argument("--models", type=Path, default=family.MODELS, help="folder with the family's files")
    parser.add_argument("--page", type=Path, help="file to write into; default: benchmarks/results.md")
    options = bench.begin(parser)
    version = bench.start_comfyui()
    nodes = importlib.import_module("nodes")
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "the pack could not be loaded"
    pack = sys.modules[str(ROOT).replace(".", "_x_")]
    with torch.inference_mode():
        rows = Bench(pack, options.models, options.count).rows()
    note = NOTE.format(count=options.count, steps=family.STEPS, guidance=family.GUIDANCE)
    command = "python3 dev.py bench step_cache"
    text = page.section("Step cache", command, f"ComfyUI {version}", f"{note}\n\n{page.table(COLUMNS, rows)}")
    page.replace(options.page, "step_cache", text)


if __name__ == "__main__":
    main()
