"""A video of any length on a running server, short and long, and beside ComfyUI's own causal path:
`python3 dev.py bench stream`.

Memory and the time of a block must not depend on the length. --quick only shows that everything runs; --full is for a
GPU. ComfyUI's own path needs a host that has it (0.33); elsewhere it is left out.
The result goes into a section of its own in benchmarks/results.md.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import bench
import page
import torch
from bench import COMFYUI, log
from end_to_end import DIT, TEXT, VAE, Case, node, write_models
from safetensors import safe_open
from safetensors.torch import save_file

from devtools import host
from devtools.client import Client
from devtools.server import Server
from tiny import random_weights

MIB = 2**20
RATE, BLOCK = 16, 3  # video frames a second; latent frames of a block
STEPS, SHIFT = 4, 5.0
NEAR = 180  # video frames on both sides of a place at which the time of a block is taken
PAUSE = 0.05  # seconds between looks at the GPU's memory
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}  # variables: glibc keeps no freed memory for later
FILES = {"model": DIT, "clip": TEXT, "vae": VAE}
SMALL = {  # of `tiny.random_weights`
    "model": "tiny_random_wan2.1_self_forcing.safetensors",
    "clip": "tiny_random_umt5.safetensors",
    "vae": "tiny_random_wan2.1_vae.safetensors",
}
NOTE = """Random weights, four steps a block of three latent frames, a window of 21. One new server for each run, which
first makes a short video, so that all is loaded. Memory: the most that the server's process holds while it samples,
decodes and saves; on a GPU also the most in use there. Where lengths are compared, glibc gives freed memory back at
once (MALLOC_MMAP_THRESHOLD_), or what it happens to keep for later, up to 15%, would be all that one sees. First
frame: from queueing the prompt to the first block on the disk. A block: median around that frame of the video. ComfyUI:
SamplerARVideo, VAEDecode and SaveVideo on the same weights."""
COLUMNS = ["case", "frames", "nodes", "memory MiB", "on the GPU MiB", "first frame s", "block s at 100", "at the end",
           "whole s"]  # fmt: skip


@dataclass(frozen=True)
class Lengths:
    """The case of the comparison; our videos' files, lengths in frames and (width, height)."""

    case: Case
    files: dict[str, str]
    frames: tuple[int, ...]
    size: tuple[int, int]


PRESETS = {
    "quick": Lengths(Case("1.3B", 1, torch.float32, 64, 64, 33, STEPS, turns=1), SMALL, (33, 45), (64, 64)),
    "default": Lengths(Case("1.3B", 4, torch.float32, 128, 128, 81, STEPS, turns=2), SMALL, (81, 3201), (64, 64)),
    "full": Lengths(Case("1.3B", 30, torch.bfloat16, 832, 480, 81, STEPS, turns=2), FILES, (81, 3201), (832, 480)),
}


@dataclass
class Watch:
    """Hears the events of a prompt and looks at the GPU's memory meanwhile. blocks: when each was written."""

    server: Server
    blocks: list[float] = field(default_factory=list)
    held: int = 0  # bytes of RAM, at most
    used: int = 0  # bytes on the GPU, at most
    over: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: str, data: dict) -> None:
        """The handler for `Client.run`."""
        if event == "wan.video" and not data["finished"]:
            self.blocks.append(time.perf_counter())

    def look(self) -> None:
        """Note the memory until it is `over`. The peak in RAM is the kernel's own: looks would miss short ones."""
        self.server.forget_peak()
        while not self.over.wait(PAUSE):
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info()
                self.used = max(self.used, total - free)
        self.held = self.server.peak_memory()

    def block_at(self, frame: int) -> float:
        """Median seconds of a block around `frame`."""
        first, last = (max(0, (frame + side * NEAR - 9) // (4 * BLOCK)) for side in (-1, 1))
        times = [after - before for before, after in zip(self.blocks, self.blocks[1:], strict=False)]
        return statistics.median(times[first : last + 1] or times)


def write_causal(models: Path, case: Case) -> None:
    """The files of a case, its model marked as causal."""
    write_models(models, case)
    path = models / "diffusion_models" / DIT
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    save_file(tensors, path, metadata={"config": json.dumps({"transformer": {"causal_ar": True}})})


def ours(files: dict[str, str], size: tuple[int, int], frames: int) -> dict[str, dict]:
    """The prompt in this pack's nodes."""
    links = {"model": ("model", 0), "clip": ("clip", 0), "vae": ("vae", 0)}
    text = {"prompts": "a cat walks on the grass", "negative": ""}
    run = {"steps": STEPS, "guidance": 1.0, "shift": SHIFT, "solver": "lcm", "seed": 1, "preset": "none"}
    clip = {"width": size[0], "height": size[1], "seconds": (frames - 1) / RATE}
    file = {"filename_prefix": "bench", "resume": True}
    return {
        "clip": node("WanTextEncoderLoader", text_encoder_name=files["clip"]),
        "model": node("WanModelLoader", model_name=files["model"], weight_dtype="auto"),
        "vae": node("WanVAELoader", vae_name=files["vae"], decode_dtype="auto", encode_dtype="auto"),
        "stream": node("WanStream", **links, **text, **clip, **run, **file),
    }


def theirs(case: Case, frames: int) -> dict[str, dict]:
    """The prompt in ComfyUI's nodes, behind this pack's text encoder."""
    size = {"width": case.width, "height": case.height, "length": frames, "batch_size": 1}
    sigmas = {"scheduler": "simple", "steps": STEPS, "denoise": 1.0}
    run = {"add_noise": True, "noise_seed": 1, "cfg": 1.0, "positive": ("text", 0), "negative": ("text", 1)}
    links = {"sampler": ("sampler", 0), "sigmas": ("sigmas", 0), "latent_image": ("latent", 0)}
    return {
        "clip": node("WanTextEncoderLoader", text_encoder_name=TEXT),
        "text": node("WanTextEncode", clip=("clip", 0), positive="a cat walks on the grass", negative=""),
        "loader": node("UNETLoader", unet_name=DIT, weight_dtype="default"),
        "model": node("ModelSamplingSD3", model=("loader", 0), shift=SHIFT),
        "vae": node("VAELoader", vae_name=VAE),
        "latent": node("EmptyARVideoLatent", **size),
        "sampler": node("SamplerARVideo", num_frame_per_block=BLOCK),
        "sigmas": node("BasicScheduler", model=("model", 0), **sigmas),
        "run": node("SamplerCustom", model=("model", 0), **run, **links),
        "decode": node("VAEDecode", samples=("run", 0), vae=("vae", 0)),
        "video": node("CreateVideo", images=("decode", 0), fps=float(RATE)),
        "save": node("SaveVideo", video=("video", 0), filename_prefix="bench", format="auto", codec="auto"),
    }


def run(comfyui: Path, base: Path, prompts: list[dict]) -> tuple[Watch, float, float]:
    """The last of `prompts` on a new server, behind the others: what was seen of it, when it began and was done."""
    with Server(sys.executable, comfyui, base, cpu=not torch.cuda.is_available()) as server:
        client, watch = Client(server.url), Watch(server)
        for prompt in prompts[:-1]:
            client.run(prompt, timeout=3600)
        looking = threading.Thread(target=watch.look)
        looking.start()
        begun = time.perf_counter()
        try:
            client.run(prompts[-1], watch.hear, timeout=36000)
        finally:
            watch.over.set()
            looking.join()
        return watch, begun, time.perf_counter()


def by_length(lengths: Lengths, comfyui: Path, base: Path) -> list[list[str]]:
    """The rows of our videos of each length."""
    rows = []
    os.environ.update(GIVEN_BACK)
    for frames in lengths.frames:
        prompts = [ours(lengths.files, lengths.size, length) for length in (21, frames)]
        watch, begun, done = run(comfyui, base, prompts)
        ends = watch.block_at(100), watch.block_at(frames - NEAR)
        numbers = [watch.held / MIB, watch.used / MIB, watch.blocks[0] - begun, *ends, done - begun]
        title = f"{lengths.files['model']}, {lengths.size[0]}x{lengths.size[1]}"
        rows.append(["" if rows else title, str(frames), "Wan Stream", *(f"{number:.4g}" for number in numbers)])
        log.info("%s", rows[-1])
    for variable in GIVEN_BACK:
        del os.environ[variable]
    return rows


def side_by_side(case: Case, comfyui: Path, base: Path) -> list[list[str]]:
    """The rows of both paths on the same weights, in turns."""
    frames, size = case.length, (case.width, case.height)
    prompts = {
        "Wan Stream": [ours(FILES, size, length) for length in (21, frames)],
        "ComfyUI": [theirs(case, length) for length in (21, frames)],
    }
    seen = {name: [] for name in prompts}
    for _ in range(case.turns):
        for name, both in prompts.items():
            watch, begun, done = run(comfyui, base, both)
            seen[name].append((watch.held / MIB, watch.used / MIB, done - begun))
            log.info("%s: %s", name, seen[name][-1])
    rows = []
    for name, runs in seen.items():
        held, used, whole = (f"{statistics.median(values):.4g}" for values in zip(*runs, strict=True))
        rows.append(["" if rows else str(case), str(frames), name, held, used, "", "", "", whole])
    return rows


def main() -> None:
    """Run a preset and write its section."""
    options = bench.begin(bench.parser(__doc__))
    comfyui = host.locate(COMFYUI)
    with tempfile.TemporaryDirectory(prefix="wan-bench-") as folder:
        host.prepare_base(Path(folder))
        place, lengths = (comfyui.folder, Path(folder)), PRESETS[options.preset]
        write_causal(place[1] / "models", lengths.case)
        random_weights.write(place[1] / "models")
        rows = by_length(lengths, *place)
        if (comfyui.folder / "comfy_extras" / "nodes_ar_video.py").exists():
            rows += side_by_side(lengths.case, *place)
    versions = f"ComfyUI {comfyui.version}"
    bench.write(options, "A video of any length", versions, NOTE, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
