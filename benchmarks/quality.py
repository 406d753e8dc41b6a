"""Quality of the demo family when it is quantised, cached, or decoded in tiles: `python3 dev.py bench quality`.

Samples held-out prompts in the host, one by one as a user does, and judges the clips as `tiny.evaluate` does. The
result goes into a section of its own in benchmarks/results.md.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import bench
import page
import torch
from bench import log
from writers import write_gguf

from tiny import evaluate, family, judge

PRECISIONS = ("bfloat16", "fp8_e4m3fn", "fp8_e5m2")
PACKED = ("Q8_0", "Q4_0")
BUDGETS = {"easycache": (0.1, 0.2), "teacache": (0.2,), "magcache": (0.02, 0.05)}
START, END = 0.15, 0.95  # as the node
NOTE = """The demo family's text-to-video model by WanSampler, {count} held-out prompts one by one, {steps} steps,
guidance {guidance:g}, beside the plain run: float32, no cache, decoded in float32 and untiled. Fewer calls: of the
network. Latents: relative error. Clips: PSNR of the pixels. Seen: part of the properties that are as prompted, and of
the clips where all four are."""
COLUMNS = ["run", "fewer calls", "latents", "clips (dB)", "properties seen", "all seen"]


class Family:
    """The demo family in the host. room: as `bench.load_pack` returns it. count: held-out prompts."""

    def __init__(self, room: Callable[[str], ModuleType], count: int):
        self.room = room
        self.scenes = [evaluate.held_out(index) for index in range(count)]
        encoder = room("host.encoders.clip")
        clip = encoder.load(str(family.path("umt5")))
        self.texts = [encoder.encode_prompt(clip, caption, "positive") for _, caption in self.scenes]
        self.negative = encoder.encode_prompt(clip, "", "negative")

    def load(self, file: Path, dtype: str = "auto"):
        """The MODEL of a file."""
        return self.room("host.model.loading").load(str(file), dtype)

    def sample(self, model) -> tuple[torch.Tensor, int]:
        """Latents of all prompts, and how often the network was called, each prompt and its negative counted."""
        from comfy.patcher_extension import WrappersMP

        calls, results, sampling = [], [], self.room("host.sampling.sampling")
        model = model.clone()

        def count(executor, x, *arguments, **options):
            calls.append(len(x))
            return executor(x, *arguments, **options)

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
        stages = [sampling.Expert(model, family.GUIDANCE)]
        schedule = sampling.Schedule(family.STEPS, family.SHIFT, "unipc")
        for seed, text in enumerate(self.texts):
            latent = {"samples": torch.zeros(1, 16, *family.SIZE)}
            results.append(sampling.sample(stages, text, self.negative, latent, schedule, seed)["samples"])
        return torch.cat(results), sum(calls)

    def decode(self, latents: torch.Tensor, dtype: str = "float32", tile: tuple[int, int] = (64, 64)) -> torch.Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1], by the VAE's own node."""
        vae = self.room("host.vae.vae").load(str(family.path("vae")), decode_dtype=dtype)
        clips = torch.cat([vae.decode(latent[None], tile=tile) for latent in latents])
        return clips.permute(0, 4, 1, 2, 3) * 2 - 1

    def seen(self, clips: torch.Tensor) -> tuple[float, float]:
        """Part of the properties that are as prompted, and of the clips where all are."""
        scores = [list(judge.score(clip, scene).values()) for clip, (scene, _) in zip(clips, self.scenes, strict=True)]
        parts = [sum(score) / len(score) for score in scores]
        return sum(parts) / len(parts), sum(part == 1 for part in parts) / len(parts)


def models(shown: Family, folder: Path) -> Iterator[tuple[str, object]]:
    """Names and MODELs of the runs that differ in their network."""
    file = family.path("t2v")
    for dtype in PRECISIONS:
        yield dtype, shown.load(file, dtype)
    weights = family.load_dit("t2v").state_dict()
    for kind in PACKED:
        write_gguf(folder / f"{kind}.gguf", weights, kind)
        yield f"GGUF {kind}", shown.load(folder / f"{kind}.gguf")
    step_cache, plain = shown.room("host.sampling.step_cache"), shown.load(file, "float32")
    for criterion, budgets in BUDGETS.items():
        for budget in budgets:
            settings = step_cache.Settings(criterion, budget, START, END)
            yield f"{criterion} {budget:g}", step_cache.apply(plain, settings)


def rows(shown: Family, folder: Path) -> Iterator[list[str]]:
    """A row of the plain run, then one of each other."""
    plain, calls = shown.sample(shown.load(family.path("t2v"), "float32"))
    clips = shown.decode(plain)

    def row(name: str, latents: torch.Tensor, called: int, made: torch.Tensor) -> list[str]:
        error = (latents - plain).norm() / plain.norm()
        same = ["", ""] if made is clips else [f"{error:.1e}", f"{evaluate.psnr(made, clips):.1f}"]
        return [name, f"{calls / called:.2f}", *same, *(f"{part:.1%}" for part in shown.seen(made))]

    yield row("plain", plain, calls, clips)
    yield row("decoded in tiles of 32x32", plain, calls, shown.decode(plain, tile=(32, 32)))
    yield row("decoded in bfloat16", plain, calls, shown.decode(plain, "bfloat16"))
    for name, model in models(shown, folder):
        latents, called = shown.sample(model)
        yield row(name, latents, called, shown.decode(latents))


def main() -> None:
    """Measure all and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=evaluate.PROMPTS, help="prompts")
    parser.add_argument("--page", type=Path, help="file to write into; default: benchmarks/results.md")
    options = bench.begin(parser)
    version = bench.start_comfyui()
    torch.set_num_threads(1)  # networks as small as these are slower on many
    room = bench.load_pack()
    found = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for row in rows(Family(room, options.count), Path(folder)):
            found.append(row)
            log.info("%s", " | ".join(row))
    note = NOTE.format(count=options.count, steps=family.STEPS, guidance=family.GUIDANCE)
    command = f"python3 dev.py bench quality --count {options.count}"
    text = page.section("Quality", command, f"ComfyUI {version}", f"{note}\n\n{page.table(COLUMNS, found)}")
    page.replace(options.page, "quality", text)


if __name__ == "__main__":
    main()
