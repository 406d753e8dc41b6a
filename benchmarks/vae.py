"""Our VAE beside ComfyUI's own and diffusers', in one run on the same random weights: `python3 dev.py bench vae`.

Without an option it takes some minutes on a CPU. --quick only shows that everything runs; --full is for a GPU;
--only takes the cases whose names hold a text, such as "2.2 decode". The result goes into a section of its own in
benchmarks/results.md.
"""

import functools
import importlib.metadata
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import bench
import contenders
import measure
import page
import recipe
import torch
from bench import DEVICE, log

from wan_model.vae import TilePlan, VAEConfig, build_vae, make_vae, plan_decode, plan_encode

FULL_WIDTH = {"2.1": (96, 96), "2.2": (160, 256)}
CHANNELS = {"2.1": 16, "2.2": 48}
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
OURS = "ours"
NOTE = """Random weights, the same for all. Seconds: medians of runs that take turns. Speed: times that of the fastest
row that is not ours. Ours is the VAE object of the nodes, which also scales, clamps and moves the frames; the others
are networks alone. Peak: the most memory held besides weights and input, on a CPU in tensors; ours hands frames over
as they are done, the others hold the whole result. Estimate: what our plan says beforehand. Errors: against
ComfyUI's untiled float32 result, video clamped to [-1, 1]. Time in: of a traced run, kinds of operation above 5%."""
COLUMNS = ["case", "VAE", "seconds", "speed", "peak MiB", "estimate / peak", "max error", "relative error", "time in"]


@dataclass(frozen=True)
class Case:
    """One comparison. task: "encode", "decode" or "tiles" (decoding in tiles). size: (height, width, frames) in pixels.

    width: the base width of both halves, or None for the real ones.
    """

    version: str
    task: str
    dtype: torch.dtype
    size: tuple[int, int, int]
    width: int | None = None

    @property
    def config(self) -> VAEConfig:
        """The VAE that is run."""
        widths = (self.width, self.width) if self.width else FULL_WIDTH[self.version]
        return VAEConfig(self.version, CHANNELS[self.version], *widths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what goes in: a video, or a latent."""
        height, width, frames = self.size
        if self.task == "encode":
            return 1, 3, frames, height, width
        stride = self.config.stride
        return 1, CHANNELS[self.version], (frames - 1) // 4 + 1, height // stride, width // stride

    def __str__(self) -> str:
        height, width, frames = self.size
        narrow = f", base width {self.width}" if self.width else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.version} {self.task} {height}x{width}x{frames} {dtype}{narrow}"


@dataclass(frozen=True)
class Preset:
    """Cases, and how often each is timed: at most `rounds` times, none begun after `budget` seconds."""

    cases: tuple[Case, ...]
    rounds: int
    budget: float


def grid(versions, tasks, dtypes, sizes, width=None) -> tuple[Case, ...]:
    """A case for every combination."""
    return tuple(Case(*choice, width) for choice in product(versions, tasks, dtypes, sizes))


BOTH, TASKS, DTYPES = ("2.1", "2.2"), ("decode", "encode"), (FLOAT32, BFLOAT16)
PRESETS = {
    "quick": Preset(
        grid(BOTH, TASKS, DTYPES, [(32, 64, 5)], width=8)
        + grid(["2.1"], ["tiles"], [FLOAT32], [(280, 560, 1)], width=4),
        rounds=1,
        budget=0,
    ),
    "default": Preset(
        grid(["2.1"], TASKS, DTYPES, [(96, 96, 9), (256, 256, 1)])
        + grid(["2.1"], ["tiles"], [FLOAT32], [(480, 832, 5)], width=32)
        + grid(["2.2"], TASKS, DTYPES, [(192, 256, 5)]),
        rounds=5,
        budget=90,
    ),
    "full": Preset(
        grid(BOTH, TASKS, [BFLOAT16], [(480, 832, 81), (720, 1280, 81)])
        + grid(["2.1"], ["tiles"], [BFLOAT16], [(480, 832, 81)]),
        rounds=3,
        budget=60,
    ),
}


@functools.lru_cache(maxsize=1)
def weights(config: VAEConfig) -> dict[str, torch.Tensor]:
    """Random weights in official names, float32; the same in every run."""
    shapes = {name: tuple(x.shape) for name, x in make_vae(config, device="meta").state_dict().items()}
    return {name: x.to(DEVICE) for name, x in recipe.state_dict(shapes).items()}


def source(shape: tuple[int, ...]) -> torch.Tensor:
    """Return the input, float32: noise, within [-1, 1] for a video."""
    x = recipe.tensor("source", shape).to(DEVICE)
    return x.clamp_(-1, 1) if shape[1] == 3 else x


@functools.lru_cache(maxsize=4)
def reference(config: VAEConfig, encode: bool, shape: tuple[int, ...]) -> torch.Tensor:
    """The host's own untiled result in float32, on the CPU."""
    vae = contenders.comfyui(config, weights(config))
    return (vae.encode if encode else vae.decode)(source(shape)).cpu()


def errors(case: Case, result: torch.Tensor) -> tuple[float, float]:
    """Largest and relative error against the reference; video is clamped first, as diffusers' always is."""
    encode = case.task == "encode"
    expected = reference(case.config, encode, case.shape)
    return measure.errors(*((result, expected) if encode else (result.clamp(-1, 1), expected.clamp(-1, 1))))


@dataclass(frozen=True)
class Entrant:
    """One row of the table. run: what is timed. watched: what is traced. plan: what our VAE says it will take."""

    run: measure.Run
    watched: measure.Run
    plan: TilePlan | None = None


def our_entrant(case: Case, host_vae: ModuleType, x: torch.Tensor, tile: tuple[int, int] | None = None) -> Entrant:
    """Our VAE; for the memory it hands its chunks over as they are done, as it does to the nodes."""
    vae, encode = contenders.Ours(host_vae, state_dict(case), case.dtype, tile), case.task == "encode"
    plan = (plan_encode if encode else plan_decode)(case.config, x.shape, tile, x.dtype)
    stream = vae.encode_stream if encode else vae.decode_stream
    result = torch.empty_like(reference(case.config, encode, case.shape))

    def streamed() -> torch.Tensor:
        done = 0
        for chunk in stream(x):
            result[:, :, done : done + chunk.shape[2]] = chunk
            done += chunk.shape[2]
            del chunk
        return result

    return Entrant(lambda: (vae.encode if encode else vae.decode)(x), streamed, plan)


def state_dict(case: Case) -> dict[str, torch.Tensor]:
    """The weights of a case in its dtype."""
    return {name: x.to(case.dtype) for name, x in weights(case.config).items()}


def entrants(case: Case, host_vae: ModuleType) -> dict[str, Entrant]:
    """Every VAE, or tile scheme, of a case, by the name it has in the table."""
    state = state_dict(case)
    x, stride = source(case.shape).to(case.dtype), case.config.stride
    host = contenders.comfyui(case.config, state)
    if case.task != "tiles":
        found = {OURS: our_entrant(case, host_vae, x)}
        peers = {"ComfyUI": host, "diffusers": contenders.diffusers(case.config, state)}
        peers = {name: getattr(peer, case.task) for name, peer in peers.items()}
    else:
        found = {f"{OURS}, 256": our_entrant(case, host_vae, x, (256, 256))}
        found |= {f"{OURS}, untiled": our_entrant(case, host_vae, x)}
        alone = build_vae(state)
        peers = {
            "WanVideoWrapper's scheme, 272": contenders.wrapper_tiled(alone.decode, stride),
            "ComfyUI, 512": contenders.comfyui_tiled(host.decode, stride, 512, 64, 16, 2),
            "ComfyUI out of memory, 256": contenders.comfyui_tiled(host.decode, stride, 256, 64, 999, 1),
            "diffusers, 256": contenders.diffusers(case.config, state, tiled=True).decode,
        }
    for name, method in peers.items():
        run = functools.partial(method, x)
        found[name] = Entrant(run, run)
    return found


def measured(case: Case, host_vae: ModuleType, rounds: int, budget: float) -> list[list[str]]:
    """The rows of a case."""
    running, rows = entrants(case, host_vae), []
    traces = {}
    for name, entrant in running.items():
        trace = measure.traced(entrant.watched)
        traces[name] = trace, errors(case, trace.result)
        log.info("%s: %s traced", case, name)
    seconds, done = measure.median_seconds({name: entrant.run for name, entrant in running.items()}, rounds, budget)
    fastest = min(taken for name, taken in seconds.items() if not name.startswith(OURS))
    for name, entrant in running.items():
        trace, (largest, relative) = traces[name]
        rows.append(
            [
                "" if rows else f"{case} (median of {done})",
                name,
                f"{seconds[name]:.3g}",
                f"{fastest / seconds[name]:.2f}",
                f"{trace.peak / 2**20:.0f}",
                f"{held(entrant.plan) / trace.peak:.2f}" if entrant.plan else "",
                f"{largest:.1e}",
                f"{relative:.1e}",
                limits(entrant.plan, trace.shares, case.shape, seconds[name]),
            ]
        )
        log.info("%s", " | ".join(rows[-1][1:]))
    return rows


def held(plan: TilePlan) -> int:
    """Bytes that a plan expects on the device, with the waiting caches there too."""
    return plan.peak_bytes + plan.parked_bytes


def limits(plan: TilePlan | None, shares: dict[str, float], shape: tuple[int, ...], seconds: float) -> str:
    """Where the time goes; on a GPU also how much of its matrix peak the convolutions' arithmetic comes to."""
    text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.05)
    if plan and DEVICE.type == "cuda":
        later = shape[2] // 4 if shape[1] == 3 else shape[2] - 1  # latent frames but the first, which costs less
        rate = 2 * plan.work * later / seconds / 1e12
        text += f"; {rate:.0f} TFLOP/s"
        text += measure.fraction_of_peak(rate)
    return text


def main() -> None:
    """Run a preset and write its section."""
    parser = bench.parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this text in their names")
    options = bench.begin(parser)
    preset, version, rows = PRESETS[options.preset], bench.start_comfyui(), []
    versions = f"ComfyUI {version}, diffusers {importlib.metadata.version('diffusers')}"
    host_vae = bench.load_pack()("host.vae.vae")
    with torch.inference_mode():
        for case in preset.cases:
            if options.only in str(case):
                rows += measured(case, host_vae, preset.rounds, preset.budget)
                bench.write(options, "VAE", versions, NOTE, page.table(COLUMNS, rows))  # what a cut long run leaves


if __name__ == "__main__":
    main()
