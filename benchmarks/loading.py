"""Loading time and peak memory of a synthetic 1.3B checkpoint (2.8 GB), beside ComfyUI's own loader.

    WAN_COMFYUI=<folder of ComfyUI> python benchmarks/loading.py

Writes the file to a temporary folder, then loads it with each loader in a process of its own, in turns, with the file
in the page cache. "load" is the loader's call, "ready" adds one read of every page of every weight, "peak" is how much
the process grew.
"""

import asyncio
import gzip
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = "official/wan2.1_t2v_1.3B"
LOADERS = ("this pack", "ComfyUI")
TURNS = 3


def write(path: Path) -> None:
    """A bfloat16 checkpoint of the real names and shapes."""
    with gzip.open(ROOT / "tests" / "golden" / "checkpoints.json.gz") as file:
        shapes = json.load(file)[LAYOUT]
    save_file({name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)


def start_host() -> None:
    """Import the host on the CPU."""
    sys.path.insert(0, os.environ["WAN_COMFYUI"])
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")
    importlib.import_module("nodes")
    sys.argv = arguments


def load_with(loader: str, path: str):
    """The MODEL of `path` by one of `LOADERS`, after everything that is not loading has been imported."""
    if loader == "ComfyUI":
        import comfy.sd

        options = {"dtype": torch.bfloat16}
        return lambda: comfy.sd.load_diffusion_model(path, model_options=options)
    nodes = importlib.import_module("nodes")
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "the pack could not be loaded"
    pack = importlib.import_module(f"{str(ROOT).replace('.', '_x_')}.host.model.loading")
    return lambda: pack.load(path, "bfloat16")


def peak_memory() -> int:
    """The most bytes that this process has had resident (Linux; unlike getrusage's, not those of its parent)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(loader: str, path: str) -> dict[str, float]:
    """Seconds to load and to be ready, and growth of the process in bytes."""
    start_host()
    call = load_with(loader, path)
    before, start = peak_memory(), time.perf_counter()
    model = call()
    loaded = time.perf_counter()
    for parameter in model.model.diffusion_model.parameters():
        parameter.flatten()[:: 4096 // parameter.element_size()].sum()
    ready = time.perf_counter()
    return {"load": loaded - start, "ready": ready - start, "peak": peak_memory() - before}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if len(sys.argv) == 3:
        logging.info("%s", json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    with tempfile.TemporaryDirectory(prefix="wan-loading-") as folder:
        path = Path(folder) / "wan2.1_t2v_1.3B_bf16.safetensors"
        write(path)
        size, results = path.stat().st_size, {loader: [] for loader in LOADERS}
        path.read_bytes()
        for _ in range(TURNS):
            for loader in LOADERS:
                command = [sys.executable, __file__, loader, str(path)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results[loader].append(json.loads(output.splitlines()[-1]))
    for loader, runs in results.items():
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        logging.info(
            "%-10s load %.2f s, ready %.2f s, peak %.2f of the file's %.2f GB",
            *(loader, best["load"], best["ready"], best["peak"] / size, size / 1e9),
        )


if __name__ == "__main__":
    main()
