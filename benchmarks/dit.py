"""Our DiT beside ComfyUI's own and diffusers', in one run on the same random weights: `python3 dev.py bench dit`.

Without an option it takes some minutes on a CPU. --quick only shows that everything runs; --full is for a GPU.
The result goes into a section of its own in benchmarks/results.md.
"""

import functools
import importlib.metadata
import importlib.util
import math
import re
import time
from dataclasses import dataclass, replace
from itertools import product

import bench
import dit_contenders
import measure
import page
import recipe
import torch
from bench import DEVICE, log
from torch.utils.flop_counter import FlopCounterMode

from wan_model.dit.config import DiTConfig
from wan_model.dit.model import WanDiT

SMALL = DiTConfig("t2v", dim=1536, ffn_dim=8960, heads=12, layers=30, in_dim=16, out_dim=16, text_dim=4096)
LARGE = DiTConfig("t2v", dim=5120, ffn_dim=13824, heads=40, layers=40, in_dim=16, out_dim=16, text_dim=4096)
TINY = DiTConfig("t2v", dim=256, ffn_dim=512, heads=2, layers=2, in_dim=16, out_dim=16, text_dim=64)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
WORDS = 100  # tokens of the prompt
CPU_CHUNK = 512  # tokens, as in a run on a CPU
COUNTED = 2000  # tokens up to which the work of a block is counted: it takes as long again
CLOCK = time.process_time if DEVICE.type == "cpu" else time.perf_counter
OURS = "ours"
NOTE = """Random weights, the same for all, and for all blocks of a model; a prompt of 100 tokens, which the others
take padded to 512; torch's attention for all. Seconds: medians of runs that take turns; on a CPU, of processor time on
one thread, which other programs disturb least. Speed: times that of the fastest row that is not ours. Peak: the most
memory held besides weights and input, on a CPU in tensors. A block: operations that compute or copy, and what they read
and wrote, when nothing is done in parts. Error: relative, against ComfyUI's float32 result. "frames": a timestep for
each latent frame, which diffusers takes for each token, as the official code does. Time in: of a traced run, kinds of
operation above 5%. What is done once in a forward weighs more in few blocks than in 30 or 40."""
COLUMNS = ["case", "DiT", "seconds", "speed", "peak MiB", "kernels a block", "MiB a block", "error", "time in"]


@dataclass(frozen=True)
class Case:
    """One comparison. grid: frames, rows and columns of tokens. per_frame: a timestep for each latent frame."""

    config: DiTConfig
    grid: tuple[int, int, int]
    dtype: torch.dtype
    per_frame: bool = False

    def __str__(self) -> str:
        frames, rows, columns = self.grid
        text = f"{frames * rows * columns} tokens {str(self.dtype).removeprefix('torch.')}"
        return f"{text}, width {self.config.dim}, {self.config.layers} blocks" + (", frames" if self.per_frame else "")


@dataclass(frozen=True)
class Preset:
    """Cases, and how often each is timed: at most `rounds` times, none begun after `budget` seconds."""

    cases: tuple[Case, ...]
    rounds: int
    budget: float


def cases(config: DiTConfig, layers: int, grids, dtypes, per_frame: bool = False) -> tuple[Case, ...]:
    """A case for every grid and type, with so many blocks; with a timestep for each frame, a model for that."""
    config = replace(config, layers=layers)
    if per_frame:
        config = replace(config, variant="ti2v", in_dim=48, out_dim=48)
    return tuple(Case(config, grid, dtype, per_frame) for grid, dtype in product(grids, dtypes))


BOTH = (FLOAT32, BFLOAT16)
PRESETS = {
    "quick": Preset(cases(TINY, 2, [(3, 4, 6)], BOTH) + cases(TINY, 2, [(3, 4, 6)], BOTH, True), rounds=1, budget=0),
    "default": Preset(
        cases(SMALL, 2, [(5, 16, 16)], BOTH)
        + cases(SMALL, 2, [(5, 16, 16)], BOTH, True)
        + cases(SMALL, 1, [(5, 40, 40)], BOTH),
        rounds=5,
        budget=200,
    ),
    "full": Preset(
        cases(SMALL, 30, [(21, 30, 52)], [BFLOAT16])
        + cases(SMALL, 30, [(31, 22, 40)], [BFLOAT16], True)
        + cases(LARGE, 40, [(21, 30, 52), (21, 45, 80)], [BFLOAT16]),
        rounds=5,
        budget=120,
    ),
}


@functools.lru_cache(maxsize=1)
def stored(config: DiTConfig) -> dict[str, torch.Tensor]:
    """Random weights in official names, float32, the same in every run, of a model with one block."""
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in WanDiT(replace(config, layers=1)).state_dict().items()}
    return {name: x.to(DEVICE) for name, x in recipe.state_dict(shapes).items()}


def weights(config: DiTConfig) -> dict[str, torch.Tensor]:
    """Those of `stored` with the block's for every block, so that a deep model takes little memory."""
    one = stored(replace(config, layers=1))
    deep = {name: x for name, x in one.items() if not name.startswith("blocks.")}
    for i, (name, x) in product(range(config.layers), one.items()):
        if name.startswith("blocks."):
            deep[re.sub(r"^blocks\.0", f"blocks.{i}", name)] = x
    return deep


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latent, timesteps and text embeddings, float32; the first frame has no noise if each has a timestep."""
    frames, rows, columns = case.grid
    x = recipe.tensor("x", (1, case.config.in_dim, frames, 2 * rows, 2 * columns))
    t = torch.full((1, frames), 700.0) if case.per_frame else torch.tensor([700.0])
    if case.per_frame:
        t[:, 0] = 0
    return x.to(DEVICE), t.to(DEVICE), recipe.tensor("context", (1, WORDS, case.config.text_dim)).to(DEVICE)


@functools.lru_cache(maxsize=1)
def reference(config: DiTConfig, grid: tuple[int, int, int], per_frame: bool) -> torch.Tensor:
    """The host's own result in float32, on the CPU."""
    case = Case(config, grid, FLOAT32, per_frame)
    return dit_contenders.comfyui(config, weights(config), FLOAT32)(*inputs(case)).cpu()


def entrants(case: Case, layers: int, chunk: int | None) -> dict[str, measure.Run]:
    """Every DiT of a case with so many blocks, by the name it has in the table."""
    config = replace(case.config, layers=layers)
    state = weights(config)
    x, t, context = inputs(case)
    given = (x.to(case.dtype), t, context.to(case.dtype))
    forwards = {
        OURS: dit_contenders.ours(state, case.dtype, chunk),
        "ComfyUI": dit_contenders.comfyui(config, state, case.dtype),
        "diffusers": dit_contenders.diffusers(config, state, case.dtype),
    }
    if DEVICE.type == "cuda" and importlib.util.find_spec("sageattention"):
        forwards[f"{OURS}, SageAttention"] = dit_contenders.ours(state, case.dtype, chunk, dit_contenders.sage)
    return {name: functools.partial(forward, *given) for name, forward in forwards.items()}


def of_a_block(case: Case) -> dict[str, tuple[str, str]]:
    """Kernels and MiB that one more block takes, of every DiT, when nothing is done in parts; blank for many tokens."""
    if math.prod(case.grid) > COUNTED:
        return {}
    one, two = (entrants(case, layers, None) for layers in (1, 2))
    found = {}
    for name in one:
        less, more = measure.traced(one[name]), measure.traced(two[name])
        found[name] = (str(more.kernels - less.kernels), f"{(more.moved - less.moved) / 2**20:.0f}")
    return found


def measured(case: Case, rounds: int, budget: float) -> list[list[str]]:
    """The rows of a case."""
    chunk = CPU_CHUNK if DEVICE.type == "cpu" else None
    running, blocks, rows = entrants(case, case.config.layers, chunk), of_a_block(case), []
    expected = reference(case.config, case.grid, case.per_frame)
    traces = {name: measure.traced(run) for name, run in running.items()}
    log.info("%s: traced", case)
    seconds, done = measure.median_seconds(running, rounds, budget, CLOCK)
    fastest = min(taken for name, taken in seconds.items() if not name.startswith(OURS))
    for name, trace in traces.items():
        rows.append(
            [
                "" if rows else f"{case} (median of {done})",
                name,
                f"{seconds[name]:.3g}",
                f"{fastest / seconds[name]:.2f}",
                f"{trace.peak / 2**20:.0f}",
                *blocks.get(name, ("", "")),
                f"{measure.errors(trace.result, expected)[1]:.1e}",
                limits(trace.shares, running[name], seconds[name]),
            ]
        )
        log.info("%s", " | ".join(rows[-1]))
    return rows


def limits(shares: dict[str, float], run: measure.Run, seconds: float) -> str:
    """Where the time goes; on a GPU also how much of its matrix peak the arithmetic comes to."""
    text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.05)
    if DEVICE.type == "cuda":
        with FlopCounterMode(display=False) as counter:
            run()
        rate = counter.get_total_flops() / seconds / 1e12
        text += f"; {rate:.0f} TFLOP/s{measure.fraction_of_peak(rate)}"
    return text


def main() -> None:
    """Run a preset and write its section."""
    options = bench.begin(bench.parser(__doc__))
    preset, version, rows = PRESETS[options.preset], bench.start_comfyui("--use-pytorch-cross-attention"), []
    versions = f"ComfyUI {version}, diffusers {importlib.metadata.version('diffusers')}"
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    with torch.no_grad():  # not inference_mode: that hides the parts of an operation from the tracer
        for case in preset.cases:
            rows += measured(case, preset.rounds, preset.budget)
            bench.write(options, "DiT", versions, NOTE, page.table(COLUMNS, rows))  # what a cut long run leaves


if __name__ == "__main__":
    main()
