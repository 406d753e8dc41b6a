"""A forward, and a decode, by two processes of one thread beside one of one thread: `python3 dev.py bench parallel`.

On a CPU with two cores and more, which nothing else may use. --quick only shows that everything runs. The result goes
into a section of its own in benchmarks/results.md.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import bench
import dit as forwards
import measure
import page
import torch
import vae as decodes
from bench import log
from torch.distributed import FileStore, ProcessGroupGloo

from wan_model.dit.runtime import Runtime
from wan_model.parallel import Deal, Group, spread
from wan_model.vae import CPU, build_vae
from wan_model.vae.plan import even_tiles

RANK = "RANK"  # variable of the second process
STORE = "RANKS_STORE"  # variable: the file in which both meet
SIZE = 2
GRIDS = {"quick": (3, 4, 6), "default": (5, 40, 40), "full": (5, 40, 40)}  # 8,000 tokens
LAYERS = 2
ROUNDS = {"quick": 1, "default": 5, "full": 15}
CLIPS = {  # that are decoded
    "quick": decodes.Case("2.1", "decode", torch.float32, (64, 128, 5), width=8),
    "default": decodes.Case("2.1", "decode", torch.float32, (480, 832, 5), width=32),
    "full": decodes.Case("2.1", "decode", torch.float32, (480, 832, 9)),
}
DECODES = {"quick": 1, "default": 3, "full": 3}  # rounds
Run = Callable[[Group | None], torch.Tensor | None]
NOTE = """Random weights; gloo between two processes of one thread each, on one machine. Seconds: medians of runs that
take turns, by the clock. Speed: times that of one process of one thread. Memory: the most that a process held besides
weights and input, in tensors, as part of what one process alone holds. Difference: relative, to one process; it decodes
whole frames."""
COLUMNS = ["case", "processes", "seconds", "speed", "memory", "of one", "difference"]


def forward(preset: str, dtype: torch.dtype) -> tuple[Run, str]:
    """A function of a runtime that runs the network of a preset, and the name of the case."""
    case = forwards.Case(replace(forwards.SMALL, layers=LAYERS), GRIDS[preset], dtype)
    if preset == "quick":
        case = replace(case, config=forwards.TINY)
    model = forwards.dit_contenders.build_dit(forwards.weights(case.config), dtype=dtype)
    x, t, context = forwards.inputs(case)
    runtime = Runtime(chunk=forwards.CPU_CHUNK)

    def run(group: Group | None = None) -> torch.Tensor:
        return model(x.to(dtype), t, context.to(dtype), runtime=spread(runtime, group) if group else runtime)

    return run, str(case)


def decode(preset: str) -> tuple[Run, str]:
    """A function that decodes a clip, with a group in a tile for each process, and the name of the case."""
    case = CLIPS[preset]
    vae, latent = build_vae(decodes.state_dict(case)), decodes.source(case.shape)
    tile = next(even_tiles(case.size[:2], case.config.decoded_stride, SIZE))

    def run(group: Group | None = None) -> torch.Tensor | None:
        if group is None:
            return vae.decode(latent)
        chunks = list(vae.decode_stream(latent, tile=tile, runtime=replace(CPU, share=Deal(group))))
        return torch.cat(chunks, dim=2) if chunks else None

    return run, str(case)


def cases(preset: str) -> Iterator[tuple[Run, str, int]]:
    """A function of a group, its name and the number of rounds."""
    for dtype in forwards.BOTH:
        yield *forward(preset, dtype), ROUNDS[preset]
    yield *decode(preset), DECODES[preset]


def connect(rank: int) -> Group:
    """The group of both processes, seen from `rank`."""
    return Group(ProcessGroupGloo(FileStore(os.environ[STORE], SIZE), rank, SIZE, timedelta(hours=1)))


def follow(preset: str) -> None:
    """The second process: it takes part in all that the first does together with it."""
    group = connect(int(os.environ[RANK]))
    for run, _, rounds in cases(preset):
        for _ in range(2 + rounds):
            group.sum(torch.ones(1))
            run(group)


def lead(preset: str) -> list[list[str]]:
    """The rows of the table."""
    group, rows = connect(0), []
    for run, case, rounds in cases(preset):

        def together(run=run) -> torch.Tensor:
            group.sum(torch.ones(1))  # the other begins now, too
            return run(group)

        whole, part = measure.traced(run), measure.traced(together)
        together()
        seconds, _ = measure.median_seconds({"1": run, "2": together}, rounds, float("inf"), time.perf_counter)
        difference = measure.errors(part.result, whole.result)[1]
        for name, trace in (("1", whole), ("2", part)):
            rows.append(
                [
                    case if name == "1" else "",
                    name,
                    f"{seconds[name]:.3g}",
                    f"{seconds['1'] / seconds[name]:.2f}",
                    f"{trace.peak / 2**20:.0f} MiB",
                    f"{trace.peak / whole.peak:.2f}",
                    "" if name == "1" else f"{difference:.1e}",
                ]
            )
            log.info("%s", " | ".join(rows[-1]))
    return rows


def main() -> None:
    """Run a preset and write its section."""
    options = bench.begin(bench.parser(__doc__))
    bench.start_comfyui()
    torch.set_num_threads(1)
    with torch.no_grad():
        if RANK in os.environ:
            return follow(options.preset)
        with tempfile.TemporaryDirectory() as folder:
            os.environ[STORE] = str(Path(folder) / "store")
            command = [sys.executable, *sys.argv, "--page", os.devnull]
            other = subprocess.Popen(command, env=os.environ | {RANK: "1", "OMP_NUM_THREADS": "1"})
            rows = lead(options.preset)
            other.wait()
    bench.write(options, "Several processes", f"{SIZE} processes", NOTE, page.table(COLUMNS, rows))
    return None


if __name__ == "__main__":
    main()
