"""From a prompt to frames with one process and with two, of one thread each: `python3 dev.py bench parallel_whole`.

On a CPU with two cores and more, which nothing else may use. --quick only shows that everything runs. The result goes
into a section of its own in benchmarks/results.md.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench
import end_to_end
import page
import torch
from bench import COMFYUI, log
from end_to_end import Case, Clock, node

from devtools import host
from devtools.client import Client
from devtools.server import Server

PROMPTS = 4  # on each server; the first loads models and starts processes, and is left out
CASES = {
    "quick": Case("1.3B", 1, torch.float32, 64, 64, 5, 1, turns=1),
    "default": Case("1.3B", 4, torch.float32, 320, 256, 9, 4, turns=1),
    "full": Case("1.3B", 30, torch.float32, 832, 480, 17, 4, turns=1),
}
NOTE = """Random weights; a server for each row, with one thread a process, and prompts of other seeds on it, of which
the first is left out: it loads models and starts processes. Medians. A step predicts both prompts."""
COLUMNS = ["case", "processes", "s a step", "decode s", "whole s", "speed"]


def prompt(case: Case, seed: int, devices: str | None) -> dict[str, dict]:
    """The prompt, shared by `devices` where these are given."""
    nodes = end_to_end.ours(case)
    nodes["sampler"]["inputs"]["seed"] = seed
    if devices:
        nodes["parallel"] = node("WanParallel", model=("model", 0), devices=devices, share="auto")
        nodes["sampler"]["inputs"]["model"] = ["parallel", 0]
        nodes["parallel_vae"] = node("WanParallelVAE", vae=("vae", 0), devices=devices)
        nodes["decode"]["inputs"]["vae"] = ["parallel_vae", 0]
    return nodes


def run(case: Case, comfyui: Path, base: Path, devices: str | None) -> dict[str, float]:
    """Medians of the prompts of a new server: seconds of a step, of decoding, and from queueing to the end."""
    taken = []
    with Server(sys.executable, comfyui, base, cpu=True) as server:
        for seed in range(PROMPTS):
            clock, start = Clock(), time.perf_counter()
            Client(server.url).run(prompt(case, seed, devices), clock.hear, timeout=3600)
            whole = time.perf_counter() - start
            taken.append({"step": clock.took("sampler") / case.steps, "decode": clock.took("decode"), "whole": whole})
            log.info("%s: %s", devices or "one process", {name: round(value, 2) for name, value in taken[-1].items()})
    return {name: statistics.median(times[name] for times in taken[1:]) for name in taken[0]}


def main() -> None:
    """Run a preset and write its section."""
    options = bench.begin(bench.parser(__doc__))
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    case, comfyui, rows = CASES[options.preset], host.locate(COMFYUI), []
    with tempfile.TemporaryDirectory(prefix="wan-bench-") as folder:
        host.prepare_base(Path(folder))
        end_to_end.write_models(Path(folder) / "models", case)
        alone, both = (run(case, comfyui.folder, Path(folder), devices) for devices in (None, "cpu x2"))
    for count, times in (("1", alone), ("2", both)):
        seconds = [f"{times[name]:.3g}" for name in ("step", "decode", "whole")]
        rows.append([str(case) if count == "1" else "", count, *seconds, f"{alone['whole'] / times['whole']:.2f}"])
    versions = f"ComfyUI {comfyui.version}"
    bench.write(options, "From prompt to frames, several processes", versions, NOTE, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
