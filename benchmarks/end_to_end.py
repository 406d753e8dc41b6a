"""From a prompt to frames on a running server, ours beside ComfyUI's own nodes: `python3 dev.py bench end_to_end`.

Without an option it takes some minutes on a CPU. --quick only shows that everything runs; --full is for a GPU.
The result goes into a section of its own in benchmarks/results.md.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import bench
import page
import torch
from bench import COMFYUI, log
from safetensors.torch import save_file

from devtools import host
from devtools.client import Client
from devtools.server import Server
from tiny import random_weights, tokenizer

DIT, VAE, TEXT = "bench_dit.safetensors", "bench_vae.safetensors", "bench_umt5.safetensors"
GIB = 2**30
SHIFT, SEED = 8.0, 1  # ComfyUI's own shift for Wan
NOTE = """Random weights; one new server for each run, the runs in turns, medians of them. Loading: the loader nodes
alone. First step: from queueing the prompt to the end of the first step, with all that was put off until then. Step:
median of the later steps, both prompts. Both begin with this pack's text encoder, of two blocks, and take Euler's steps
at guidance 5 from the same file. Memory: the most that the server's process held, on a GPU what was in use there."""
COLUMNS = ["case", "nodes", "loading s", "first step s", "s a step", "decode s", "whole s", "memory GiB"]


@dataclass(frozen=True)
class Case:
    """A model and a clip. blocks: how many of the model's are in the file. turns: runs of each contender.

    card: GiB of the GPU that ComfyUI may use, or None for all.
    """

    model: str
    blocks: int
    dtype: torch.dtype
    width: int
    height: int
    length: int
    steps: int
    turns: int
    card: int | None = None

    @property
    def options(self) -> list[str]:
        """ComfyUI's, for a card of that size."""
        if self.card is None:
            return []
        return ["--reserve-vram", f"{torch.cuda.mem_get_info()[1] / GIB - self.card:.1f}"]

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        clip = f"{self.width}x{self.height}x{self.length}"
        limit = f", within {self.card} GiB" if self.card else ""
        return f"{self.model}, {self.blocks} blocks, {dtype}, {clip}, {self.steps} steps{limit}"


PRESETS = {
    "quick": (Case("1.3B", 1, torch.float32, 64, 64, 5, 2, turns=1),),
    "default": (Case("1.3B", 4, torch.float32, 128, 128, 9, 6, turns=2),),
    "full": (
        Case("1.3B", 30, torch.bfloat16, 832, 480, 81, 6, turns=2),
        Case("14B", 40, torch.bfloat16, 832, 480, 81, 4, turns=2),
        Case("14B", 40, torch.bfloat16, 1280, 720, 81, 3, turns=1),
        Case("14B", 40, torch.bfloat16, 1280, 720, 81, 3, turns=1, card=16),
    ),
}


def write_models(models: Path, case: Case) -> None:
    """The files of a case under the server's folder `models`."""
    layout, kept = f"official/wan2.1_t2v_{case.model}", {"blocks": case.blocks}
    dit = random_weights.Tiny(DIT, "diffusion_models", (), layout, {}, kept)
    vae = random_weights.Tiny(VAE, "vae", (), "official/wan2.1_vae", {})
    text = random_weights.Tiny(TEXT, "text_encoders", (), "hf/umt5_xxl_encoder", {10240: 64}, {"encoder.block": 2})
    for tiny, dtype in ((dit, case.dtype), (vae, torch.float32), (text, torch.float16)):
        generator, tensors, shapes = torch.Generator().manual_seed(3), {}, random_weights.shapes(tiny)
        if tiny is text:
            learnt = bytearray(random_weights.train_tokenizer())
            tensors[tokenizer.TENSOR] = torch.frombuffer(learnt, dtype=torch.uint8)
            shapes.pop("encoder.embed_tokens.weight", None)  # the same tensor again
            shapes["shared.weight"] = [1024, 4096]  # more than the tokenizer has pieces
        for name, shape in shapes.items():
            tensors[name] = torch.empty(shape, dtype=dtype).uniform_(-0.03, 0.03, generator=generator)
            if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
                tensors[name] += 1
        (models / tiny.folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, models / tiny.folder / tiny.name)


def node(kind: str, **inputs: object) -> dict:
    """A node of a prompt; (name, slot) as an input is a link."""
    links = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": links, "_meta": {"title": kind}}


def text_nodes() -> dict[str, dict]:
    """Return the text nodes that both graphs start with."""
    return {
        "clip": node("WanTextEncoderLoader", text_encoder_name=TEXT),
        "text": node("WanTextEncode", clip=("clip", 0), positive="a cat walks on the grass", negative="blur"),
    }


def ours(case: Case) -> dict[str, dict]:
    """The prompt in this pack's nodes."""
    size = {"width": case.width, "height": case.height, "length": case.length, "batch_size": 1}
    run = {"steps": case.steps, "guidance": 5.0, "shift": SHIFT, "solver": "euler", "seed": SEED, "denoise": 1.0}
    links = {"model": ("model", 0), "positive": ("text", 0), "negative": ("text", 1), "latent": ("latent", 0)}
    return {
        **text_nodes(),
        "model": node("WanModelLoader", model_name=DIT, weight_dtype="auto"),
        "vae": node("WanVAELoader", vae_name=VAE, decode_dtype="auto", encode_dtype="auto"),
        "latent": node("WanEmptyLatent", vae=("vae", 0), **size),
        "sampler": node("WanSampler", **links, **run),
        "decode": node("WanVAEDecode", vae=("vae", 0), samples=("sampler", 0), tile_width=0, tile_height=0),
        "save": node("PreviewImage", images=("decode", 0)),
    }


def theirs(case: Case) -> dict[str, dict]:
    """The prompt in ComfyUI's nodes."""
    size = {"width": case.width, "height": case.height, "length": case.length, "batch_size": 1}
    run = {
        "steps": case.steps,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "seed": SEED,
        "denoise": 1.0,
    }
    links = {"model": ("model", 0), "positive": ("text", 0), "negative": ("text", 1), "latent_image": ("latent", 0)}
    return {
        **text_nodes(),
        "model": node("UNETLoader", unet_name=DIT, weight_dtype="default"),
        "vae": node("VAELoader", vae_name=VAE),
        "latent": node("EmptyHunyuanLatentVideo", **size),
        "sampler": node("KSampler", **links, **run),
        "decode": node("VAEDecode", samples=("sampler", 0), vae=("vae", 0)),
        "save": node("PreviewImage", images=("decode", 0)),
    }


CONTENDERS = {"ours": ours, "ComfyUI": theirs}


@dataclass
class Clock:
    """Hears the events of a prompt. began: seconds at which each node began; steps: at which each step was done."""

    began: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    used: int = 0  # bytes on the GPU, at most

    def hear(self, event: str, data: dict) -> None:
        """The handler for `Client.run`."""
        now = time.perf_counter()
        if event == "executing":
            self.began[data["node"]] = now
        elif event == "progress" and data["node"] == "sampler" and data["value"] == len(self.steps) + 1:
            self.steps.append(now)
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.used = max(self.used, total - free)

    def took(self, name: str) -> float:
        """Seconds of a node: until the next one began."""
        return min(at for at in self.began.values() if at > self.began[name]) - self.began[name]


def run(comfyui: Path, base: Path, prompt: dict, options: list[str]) -> dict[str, float]:
    """One prompt on a new server: what the columns say."""
    with Server(sys.executable, comfyui, base, *options, cpu=not torch.cuda.is_available()) as server:
        clock, start = Clock(), time.perf_counter()
        Client(server.url).run(prompt, clock.hear, timeout=3600)
        done = time.perf_counter()
        memory = clock.used or server.peak_memory()
    later = [after - before for before, after in zip(clock.steps, clock.steps[1:], strict=False)]
    return {
        "loading": clock.took("model") + clock.took("vae"),
        "first": clock.steps[0] - start,
        "step": statistics.median(later),
        "decode": clock.took("decode"),
        "whole": done - start,
        "memory": memory / GIB,
    }


def measured(case: Case, comfyui: Path, base: Path) -> list[list[str]]:
    """The rows of a case."""
    write_models(base / "models", case)
    results = {name: [] for name in CONTENDERS}
    for _ in range(case.turns):
        for name, prompt in CONTENDERS.items():
            results[name].append(run(comfyui, base, prompt(case), case.options))
            log.info("%s: %s: %s", case, name, {key: round(value, 2) for key, value in results[name][-1].items()})
    rows = []
    for name, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append(["" if rows else f"{case} (median of {case.turns})", name, *(f"{v:.3g}" for v in middle.values())])
    return rows


def main() -> None:
    """Run a preset and write its section."""
    options = bench.begin(bench.parser(__doc__))
    comfyui, rows = host.locate(COMFYUI), []
    with tempfile.TemporaryDirectory(prefix="wan-bench-") as folder:
        host.prepare_base(Path(folder))
        for case in PRESETS[options.preset]:
            rows += measured(case, comfyui.folder, Path(folder))
    versions = f"ComfyUI {comfyui.version}"
    bench.write(options, "From prompt to frames", versions, NOTE, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
