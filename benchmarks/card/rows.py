"""Rows of measurements, in order of value: ours, the host's own and diffusers in turns, each with its error.

A row yields one dictionary for each contender; `report.COLUMNS` says what its keys mean.
"""

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import contenders
import dit
import dit_contenders
import torch
from measure import synchronize

from .items import BFLOAT16, FLOAT32, ROWS, Here, Wrong, below, item, random_weights, relative
from .models import config_of, peak, vae_weights
from .profiles import profile
from wan_model.dit.config import DiTConfig
from wan_model.dit.cost import forward_bytes
from wan_model.dit.model import WanDiT
from wan_model.vae import TilePlan

P480, P720, P704 = (480, 832, 81), (720, 1280, 81), (704, 1280, 121)  # height, width, frames
SIZES = {
    "1.3B": dit.SMALL,
    "5B": replace(dit.SMALL, variant="ti2v", dim=3072, ffn_dim=14336, heads=24, in_dim=48, out_dim=48),
    "14B": dit.LARGE,
}
GRIDS = {32760: (21, 30, 52), 27280: (31, 22, 40), 75600: (21, 45, 80)}
BLOCKS = (1, 3)  # a block's time is the difference of two depths
AGREE = 5e-2  # bfloat16 results of two implementations on random weights
TILE = (256, 256)
OURS, THEIRS = "ours", "ComfyUI"


@dataclass(frozen=True)
class Timed:
    """A contender's runs. seconds: median. peak: bytes beside what was there before. failed: why there are none."""

    seconds: float = 0.0
    peak: int = 0
    failed: str = ""


def timed(here: Here, runs: dict[str, Callable], rounds: int) -> dict[str, Timed]:
    """Time the runs in turns, after one that warms up and is measured for memory. Others than ours may fail."""
    taken: dict[str, list[float]] = {}
    peaks, failed = {}, {}
    for name, run in runs.items():
        try:
            peaks[name], taken[name] = peak(here, run), []
        except RuntimeError as error:
            if name == OURS:
                raise
            failed[name] = Timed(failed=str(error).splitlines()[0][:100])
    for _, (name, times) in itertools.product(range(rounds), taken.items()):
        synchronize()
        start = time.perf_counter()
        runs[name]()
        synchronize()
        times.append(time.perf_counter() - start)
    if not all(min(times) > 0 for times in taken.values()):
        raise Wrong("a run took no time")
    return {name: Timed(sorted(times)[len(times) // 2], peaks[name]) for name, times in taken.items()} | failed


@functools.cache
def ceiling(device: torch.device, size: int) -> float:
    """Return the bf16 TFLOP/s of a product of two square matrices, measured here."""
    a, b = (torch.randn(size, size, device=device, dtype=BFLOAT16) for _ in range(2))
    if not bool(((a[:8].float() @ b.float()) - (a[:8] @ b).float()).abs().max() < size**0.5):
        raise Wrong("the product of two matrices is wrong on this device")
    best = float("inf")
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        synchronize()
        best = min(best, (time.perf_counter() - start) / 5)
    return 2 * size**3 / best / 1e12


def matrix_peak(here: Here) -> float:
    """Return `ceiling` of this device."""
    return ceiling(here.device, here.size(8192, 256))


def agree(error: float) -> float:
    """Return the error of ours against the host's own. Raise Wrong if they do not agree."""
    return below(error, AGREE, "the error of ours against ComfyUI's")


def rows_of(here: Here, found: dict[str, Timed], work: float, error: float, estimate: float | None) -> Iterator[dict]:
    """Yield the results. work: multiplications and additions of one run. estimate: bytes that ours expects."""
    limit = matrix_peak(here)
    for name, run in found.items():
        if run.failed:
            yield {"who": name, "note": run.failed}
            continue
        rate = work / run.seconds / 1e12
        row = {
            "who": name,
            "seconds": run.seconds,
            "tflops": rate,
            "of_peak": rate / limit,
            "peak_mib": run.peak / 2**20,
        }
        if THEIRS in found and not found[THEIRS].failed:
            row["speed"] = found[THEIRS].seconds / run.seconds
        if name.startswith(OURS):
            row["error"] = error
            if estimate is not None:
                row["estimate"] = estimate / run.peak
        yield row


# The VAE


def peers(here: Here, config, state: dict, encode: bool) -> dict[str, Callable]:
    """Return the other VAEs as functions of latent or images in RAM, by name: the host's VAE object and networks."""
    import comfy.sd

    method = "encode" if encode else "decode"
    found = {}
    if config.version == "2.1" or not here.dry:  # the host knows its 2.2 VAE in one width alone
        loaded = comfy.sd.VAE(sd={name: x.cpu() for name, x in state.items()}, dtype=BFLOAT16)
        found[THEIRS] = getattr(loaded, method)
    networks = {"ComfyUI's network": contenders.comfyui}
    if importlib.util.find_spec("diffusers"):
        networks["diffusers' network"] = contenders.diffusers
    for name, make in networks.items():
        found[name] = functools.partial(_alone, getattr(make(config, state), method), here, encode)
    return found


def _alone(run: Callable, here: Here, encode: bool, x: torch.Tensor) -> torch.Tensor:
    """Run a network on what the VAE objects take, in RAM, and return what they return."""
    x = x.movedim(-1, 0)[None] * 2 - 1 if encode else x  # (T, H, W, 3) -> (1, 3, T, H, W)
    result = run(x.to(here.device, BFLOAT16)).float()
    return result if encode else result.add_(1).div_(2).clamp_(0, 1).movedim(1, -1).cpu()


def vae_row(here: Here, version: str, size: tuple, encode: bool = False, tile: tuple | None = None) -> Iterator[dict]:
    """Yield the results of a decode or an encode by the VAE objects, from and to RAM."""
    host = here.room("host.vae.vae")
    config, (height, width, frames) = config_of(here, version), here.size(size, (64, 96, 5))
    state, stride = vae_weights(config, BFLOAT16, here.device), config.stride
    ours = host.HostVAE({name: x.cpu() for name, x in state.items()}, BFLOAT16, BFLOAT16)
    generator, latents = torch.Generator().manual_seed(0), (frames - 1) // 4 + 1
    if encode:
        x = torch.rand(frames, height, width, 3, generator=generator)
        shape = (1, 3, frames, height, width)
    else:
        shape = (1, config.latent_channels, latents, height // stride, width // stride)
        x = torch.randn(shape, generator=generator)
    tile = here.size(tile, (32, 32)) if tile else (height, width)
    runs = {OURS: functools.partial(ours.encode if encode else ours.decode, tile=tile)}
    runs |= {} if tile != (height, width) else peers(here, config, state, encode)
    short = x[: 4 * 2 - 3] if encode else x[:, :, :2]
    other = runs[THEIRS] if THEIRS in runs else peers(here, config, state, encode)["ComfyUI's network"]
    error = agree(relative(runs[OURS](short).float().cpu(), other(short).float().cpu()))
    found = timed(here, {name: functools.partial(run, x) for name, run in runs.items()}, 1)
    room = here.room("wan_model.vae")
    plan: TilePlan = ours.plan(room.plan_encode if encode else room.plan_decode, shape, tile, BFLOAT16)
    yield from rows_of(here, found, 2 * plan.work * max(1, latents - 1), error, plan.peak_bytes + plan.parked_bytes)
    yield {"who": OURS, "profile": profile(here, lambda: runs[OURS](short))}


@item("vae 2.1 decode 480x832x81", ROWS, seconds=30)
def decode21_480(here: Here):
    """The 2.1 VAE at 480p."""
    yield from vae_row(here, "2.1", P480)


@item("block 1.3B 32760 tokens", ROWS, seconds=15)
def block_1b(here: Here):
    """A block of the 1.3B at 480p."""
    yield from block_row(here, "1.3B", 32760)


@item("block 14B 75600 tokens", ROWS, seconds=25)
def block_14b(here: Here):
    """A block of the 14B at 720p."""
    yield from block_row(here, "14B", 75600)


@item("vae 2.2 decode 704x1280x121", ROWS, seconds=50)
def decode22(here: Here):
    """The 2.2 VAE at 704p."""
    yield from vae_row(here, "2.2", P704)


@item("vae 2.1 decode 720x1280x81", ROWS, seconds=50)
def decode21_720(here: Here):
    """The 2.1 VAE at 720p."""
    yield from vae_row(here, "2.1", P720)


@item("vae 2.1 decode 720x1280x81 in tiles", ROWS, seconds=30)
def decode21_tiles(here: Here):
    """The 2.1 VAE at 720p in tiles of 256 pixels."""
    yield from vae_row(here, "2.1", P720, tile=TILE)


@item("block 5B 27280 tokens", ROWS, seconds=15)
def block_5b(here: Here):
    """A block of the 5B at 704p, with a timestep for each latent frame."""
    yield from block_row(here, "5B", 27280)


@item("vae 2.1 encode 480x832x81", ROWS, seconds=20)
def encode21(here: Here):
    """The 2.1 encoder at 480p."""
    yield from vae_row(here, "2.1", P480, encode=True)


# The DiT


def block_weights(config: DiTConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random weights of so many blocks, which share one block's."""
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in WanDiT(replace(config, layers=1)).state_dict().items()}
    one = random_weights(shapes, FLOAT32, device)
    blocks = [
        {name.replace("blocks.0.", f"blocks.{i}."): x for name, x in one.items() if name.startswith("blocks.")}
        for i in range(config.layers)
    ]
    return functools.reduce(dict.__or__, blocks, {n: x for n, x in one.items() if not n.startswith("blocks.")})


def forwards(state: dict, config: DiTConfig) -> dict[str, Callable]:
    """Return every DiT of a comparison by name, all with torch's attention."""
    made = {
        OURS: dit_contenders.ours(state, BFLOAT16, None),
        THEIRS: dit_contenders.comfyui(config, state, BFLOAT16),
    }
    if importlib.util.find_spec("diffusers"):
        made["diffusers"] = dit_contenders.diffusers(config, state, BFLOAT16)
    return made


def block_row(here: Here, name: str, tokens: int) -> Iterator[dict]:
    """Yield the results of one block: the difference between models of `BLOCKS` blocks."""
    config, grid = here.size((SIZES[name], GRIDS[tokens]), (small(SIZES[name]), (3, 4, 6)))
    per_frame = config.variant == "ti2v"
    found, error, estimate = [], 0.0, 0
    for layers in BLOCKS:
        deep = replace(config, layers=layers)
        x, t, context = dit.inputs(dit.Case(deep, grid, BFLOAT16, per_frame))
        given = x.to(BFLOAT16), t, context.to(BFLOAT16)
        made = forwards(block_weights(deep, here.device), deep)
        runs = {who: functools.partial(forward, *given) for who, forward in made.items()}
        error = agree(relative(runs[OURS]().float(), runs[THEIRS]().float()))
        found.append(timed(here, runs, here.size(3, 1)))
        estimate = forward_bytes(deep, x.shape, BFLOAT16)
    spread = BLOCKS[1] - BLOCKS[0]
    block = {
        who: replace(deep, seconds=max(1e-9, (deep.seconds - found[0][who].seconds) / spread))
        for who, deep in found[1].items()
    }
    yield from rows_of(here, block, block_work(config, grid), error, estimate)
    yield {"who": OURS, "profile": profile(here, runs[OURS])}


def small(config: DiTConfig) -> DiTConfig:
    """Return a config of the same variant for a dry run."""
    return replace(config, dim=256, ffn_dim=512, heads=2, text_dim=64)


def block_work(config: DiTConfig, grid: tuple[int, int, int]) -> float:
    """Return the multiplications and additions of a block."""
    tokens, dim = grid[0] * grid[1] * grid[2], config.dim
    return 2 * tokens * (6 * dim**2 + 2 * dim * config.ffn_dim) + 4 * tokens * (tokens + 512) * dim


@item("attention 14B 75600 tokens", ROWS, seconds=15)
def attention(here: Here):
    """Yield the results of each of torch's kernels for self-attention, laid out as the DiTs lay it out."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    heads, tokens = here.size((40, 75600), (2, 64))
    shape = 1, tokens, heads, 128
    q, k, v = (torch.randn(shape, device=here.device, dtype=BFLOAT16).transpose(1, 2) for _ in range(3))
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    expected = reference_attention(q, k, v)
    for backend in (None, *backends):

        def run(backend=backend):
            with sdpa_kernel(backend) if backend else sdpa_kernel([*backends, SDPBackend.MATH]):
                return scaled_dot_product_attention(q, k, v)

        name = "as torch chooses" if backend is None else backend.name.lower()
        try:
            error = below(relative(run()[:, :1, :64].float(), expected), AGREE)
        except RuntimeError as reason:
            yield {"who": name, "note": str(reason).splitlines()[0][:100]}
            continue
        found = {name: timed(here, {name: run}, here.size(3, 1))[name]}
        yield from ({**row, "error": error} for row in rows_of(here, found, 4 * tokens**2 * heads * 128, error, None))


def reference_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the attention of the first head's first 64 queries in float32, by its definition."""
    q, k, v = (x[:, :1].float() for x in (q[:, :, :64], k, v))
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3) @ v


@item("block 14B 32760 tokens", ROWS, seconds=15)
def block_14b_480(here: Here):
    """A block of the 14B at 480p."""
    yield from block_row(here, "14B", 32760)


@item("end to end 1.3B 832x480x81", ROWS, seconds=100)
def end_to_end(here: Here):
    """Yield seconds of a whole prompt on a new server, by our nodes and by the host's."""
    import bench
    import end_to_end

    from devtools import host

    case = here.size(
        end_to_end.Case("1.3B", 30, BFLOAT16, 832, 480, 81, 4, turns=1),
        end_to_end.Case("1.3B", 1, FLOAT32, 64, 64, 5, 2, turns=1),
    )
    base, front = here.folder / "end", here.folder / "front"
    host.prepare_base(base)
    front.mkdir()
    (front / "index.html").write_text("<html></html>", encoding="utf-8")  # no editor is needed
    end_to_end.write_models(base / "models", case)
    options, rows = [*case.options, "--front-end-root", str(front)], {}
    for name, prompt in end_to_end.CONTENDERS.items():
        rows[name] = end_to_end.run(host.locate(bench.COMFYUI).folder, base, prompt(case), options)
    for name, found in rows.items():
        detail = ", ".join(f"{key} {found[key]:.2f} s" for key in ("loading", "first", "step", "decode"))
        whole, speed = found["whole"], rows[THEIRS]["whole"] / found["whole"]
        yield {"who": name, "seconds": whole, "speed": speed, "peak_mib": 1024 * found["memory"], "note": detail}
