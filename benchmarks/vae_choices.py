"""Gain of the choices inside our VAE: `python3 dev.py bench vae_choices`.

Decodes and encodes with one choice undone at a time. The result goes into a section of its own in
benchmarks/results.md.
"""

import math
from dataclasses import replace

import bench
import measure
import page
import torch
from bench import DEVICE, log
from vae import Case, source, weights

from wan_model.kernels.fused import vae_runtime
from wan_model.vae import build_vae

ROUNDS, BUDGET = 7, 30
CASES = (
    Case("2.1", "decode", torch.float32, (96, 96, 9)),
    Case("2.1", "decode", torch.float32, (256, 256, 1)),
    Case("2.1", "encode", torch.float32, (96, 96, 9)),
    Case("2.2", "decode", torch.bfloat16, (96, 128, 5)),
)
NOTE = """Seconds with one choice undone, as a multiple of those with all of them: above 1 the choice pays. Medians of
runs that take turns; the last columns are the cases."""


CHOICES = {  # what is undone in the runtime
    "upsampling folded into four small convolutions, from 512 pixels on: never": {"fold_pixels": math.inf},
    "the same: always": {"fold_pixels": 0},
    "two frames at a time after the last doubling of time: all four": {"subchunk": 4},
    "up to 400 pixels by one matrix product, on a CPU: never": {"product_pixels": 0},
    "weights with their channels innermost in memory: as in the file": {},
}


def runs(case: Case) -> dict[str, measure.Run]:
    """Return the runs to time: as it is, then with each choice undone."""
    state = {name: x.to(case.dtype) for name, x in weights(case.config).items()}
    vae, plain = build_vae(state), build_vae(state)
    for weight in plain.parameters():
        weight.data = weight.data.contiguous()
    x = source(case.shape).to(case.dtype)
    best = vae_runtime(DEVICE)

    def run(network, runtime):
        stream = network.encode_stream if case.task == "encode" else network.decode_stream
        given = [x] if case.task == "encode" else x
        return lambda: torch.cat(list(stream(given, runtime=runtime)), dim=2)

    others = {name: run(vae if undo else plain, replace(best, **undo)) for name, undo in CHOICES.items()}
    return {"": run(vae, best), **others}


def main() -> None:
    """Measure all and write the section."""
    options = bench.begin(bench.parser(__doc__))
    rows = {name: [name] for name in CHOICES}
    with torch.inference_mode():
        for case in CASES:
            seconds, _ = measure.median_seconds(runs(case), ROUNDS, BUDGET)
            for name, row in rows.items():
                row.append(f"{seconds[name] / seconds['']:.2f}")
            log.info("%s: %s", case, [row[-1] for row in rows.values()])
    columns = ["choice: undone", *map(str, CASES)]
    bench.write(options, "VAE choices", f"our VAE alone, {DEVICE.type}", NOTE, page.table(columns, list(rows.values())))


if __name__ == "__main__":
    main()
