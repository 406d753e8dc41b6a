"""What the choices inside our VAE are worth: `python3 dev.py bench vae_choices`.

Decodes and encodes with one choice undone at a time. The result goes into a section of its own in
benchmarks/results.md.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import bench
import measure
import page
import torch
from bench import DEVICE, log
from vae import Case, source, weights

from wan_model.vae import build_vae, causal, lane

ROUNDS, BUDGET = 7, 30
CASES = (
    Case("2.1", "decode", torch.float32, (96, 96, 9)),
    Case("2.1", "decode", torch.float32, (256, 256, 1)),
    Case("2.1", "encode", torch.float32, (96, 96, 9)),
    Case("2.2", "decode", torch.bfloat16, (96, 128, 5)),
)
NOTE = """Seconds with one choice undone, as a multiple of those with all of them: above 1 the choice pays. Medians of
runs that take turns; the last columns are the cases."""


@contextmanager
def undone(module, name: str, value: float) -> Iterator[None]:
    """A constant of a module with another value."""
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


CHOICES = {
    "upsampling folded into four small convolutions, from 512 pixels on: never": lambda: undone(
        causal, "WORTH_FOLDING", math.inf
    ),
    "the same: always": lambda: undone(causal, "WORTH_FOLDING", 0),
    "two frames at a time after the last doubling of time: all four": lambda: undone(lane, "STRIP", 4),
    "up to 400 pixels by one matrix product, on a CPU: never": lambda: undone(causal, "FEW", 0),
    "weights with their channels innermost in memory: as in the file": nullcontext,
}


def runs(case: Case) -> dict[str, measure.Run]:
    """What is timed: as it is, then with each choice undone."""
    state = {name: x.to(case.dtype) for name, x in weights(case.config).items()}
    vae, plain = build_vae(state), build_vae(state)
    for weight in plain.parameters():
        weight.data = weight.data.contiguous()
    x = source(case.shape).to(case.dtype)

    def run(choice, network):
        def once():
            with choice():
                getattr(network, case.task)(x)

        return once

    others = {name: run(choice, plain if choice is nullcontext else vae) for name, choice in CHOICES.items()}
    return {"": run(nullcontext, vae), **others}


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
