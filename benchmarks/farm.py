"""The tables of the plan of many cards in benchmarks/parallel.md: `python3 dev.py bench farm`.

Bytes are counted between real processes at small sizes, checked against formulas, and the formulas are evaluated at
720p. No clock is read, so that any machine makes the same page. --quick counts fewer cases and writes nothing.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import bench
import dit as forwards
import measure
import page
import recipe
import torch
import traffic
from bench import log

from wan_model.dit import cost
from wan_model.dit.config import DiTConfig
from wan_model.dit.model import WanDiT, build_dit
from wan_model.parallel import layout
from wan_model.vae import VAEConfig, make_vae, plan_decode
from wan_model.vae.tile_run import block_rects
from wan_model.vae.tiling import TilePlan, run_costs

PAGE = Path(__file__).with_name("parallel.md")
CARDS = (2, 4, 8, 64)
MOST = 64
BF16 = 2  # bytes
PEAK = measure.MATRIX_PEAK["H100"] * 1e12
REACHED = {"DiT": 0.5, "VAE": 0.3}  # of that peak
LINKS = {"PCIe 4 x16": 32e9, "NVLink 4": 450e9, "200 Gb Ethernet": 25e9}  # bytes a second of a card, one way
USED = 0.8  # of a link's rate
MIDDLE = DiTConfig("ti2v", dim=3072, ffn_dim=14336, heads=24, layers=30, in_dim=48, out_dim=48, text_dim=4096)
VAE = VAEConfig("2.1", 16, 96, 96)
LATENT = (1, 16, 21, 90, 160)  # of 720x1280, 81 frames
FRAMES = 81
COUNTED = (  # heads, processes, rows (samples), and frames, rows and columns of tokens
    (2, 2, 1, (3, 4, 6)),
    (4, 4, 1, (3, 4, 6)),
    (8, 8, 1, (2, 4, 6)),
    (3, 4, 1, (3, 5, 3)),  # heads and tokens that do not divide
    (4, 8, 1, (2, 4, 4)),  # more processes than heads
    (4, 4, 2, (3, 4, 6)),
    (4, 16, 1, (1, 4, 5)),
)
SMALL_CLIP = (21, 30, 52)  # tokens of 480x832, 81 frames
STORED = {"bf16": 2, "fp8": 1}  # bytes of a weight
TILES = {2: (1, 2), 4: (2, 2), 8: (2, 4), 64: (8, 8)}  # rows and columns


@dataclass(frozen=True)
class Model:
    """A model at its size. grid: frames, rows and columns of tokens."""

    name: str
    config: DiTConfig
    grid: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Of one sample."""
        return math.prod(self.grid)

    @property
    def groups(self) -> tuple[int, ...]:
        """Tokens of each frame."""
        return (self.tokens // self.grid[0],) * self.grid[0]

    def sent(self, size: int) -> int:
        """Bytes that the device which sends most sends in a forward."""
        return max(traffic.sent_in_forward(self.config, self.groups, size, BF16))

    def compute(self, size: int, shares_heads: bool = True) -> float:
        """Seconds that the device which computes most computes in a forward.

        shares_heads: whether attention is shared by heads, else by tokens.
        """
        of = self.config
        whole, twice, none = (cost.flops(of, count) for count in (self.tokens, 2 * self.tokens, 0))
        square = (twice - 2 * whole + none) / 2  # what grows with the square of the tokens: the attention between them
        tokens = max(sum(layout.held(self.groups, rank, size)) for rank in range(size)) / self.tokens
        spans = [layout.heads_of(of.heads, rank, size) for rank in range(size)]
        heads = max(stop - start for start, stop, _ in spans) / of.heads
        share = heads if shares_heads else tokens
        return (square * share + (whole - square - none) * tokens + none) / (PEAK * REACHED["DiT"])


MODELS = (
    Model("1.3B", forwards.SMALL, (21, 45, 80)),
    Model("5B", MIDDLE, (31, 22, 40)),
    Model("14B", forwards.LARGE, (21, 45, 80)),
)
LARGE = MODELS[-1]


def seconds(sent: float, link: str) -> float:
    """Seconds in which a card sends so many bytes."""
    return sent / (LINKS[link] * USED)


def gathered(model: Model, size: int, of_token: int) -> float:
    """Bytes that a device sends in a forward whose tokens, of so many numbers, all get in each block."""
    return model.config.layers * BF16 * of_token * model.tokens / size * (size - 1)


def step(model: Model, size: int, link: str, scheme: str) -> float:
    """Seconds of a forward on `size` cards by a scheme of `SCHEMES`."""
    dim, layers = model.config.dim, model.config.layers
    if size == 1:
        return model.compute(1)
    if scheme == "Ulysses":
        return model.compute(size) + seconds(model.sent(size), link)
    compute = model.compute(size, shares_heads=False)
    if scheme == "keys and values":
        return compute + seconds(gathered(model, size, 2 * dim), link)
    if scheme == "ring, hidden":
        return max(compute, seconds(gathered(model, size, 2 * dim), link))
    again = 4 * model.tokens * (1 - 1 / size) * dim**2 * layers  # keys and values of others' tokens
    return compute + again / (PEAK * REACHED["DiT"]) + seconds(gathered(model, size, dim), link)


FORWARD = ("processes", "rows", "heads", "tokens", "most bytes sent", "formula", "fewest bytes sent")
DECODE = ("processes", "first sends", "formula", "second sends", "formula")
CHUNK = 4096  # tokens: the smallest chunk, which a card takes that has little memory left
SCHEMES = ("Ulysses", "keys and values", "tokens", "ring, hidden")


def most_cards(model: Model, link: str, scheme: str) -> int:
    """Most cards up to `MOST` of which each does at least half of what one card alone does."""
    alone = step(model, 1, link, scheme)
    return max(size for size in range(1, MOST + 1) if alone / step(model, size, link, scheme) >= size / 2)


def gib(count: float) -> str:
    """Bytes as text."""
    return f"{count / 2**30:.3g}"


def counted_rows(preset: str) -> list[list[str]]:
    """Forwards between real processes: what was counted, and what the formula says."""
    rows = []
    for heads, size, lines, grid in COUNTED[: 1 if preset == "quick" else None]:
        config = replace(forwards.TINY, dim=128 * heads, ffn_dim=128, heads=heads, layers=2)
        frames, high, wide = grid
        model = build_dit(forwards.weights(config))
        x = recipe.tensor("x", (lines, 16, frames, 2 * high, 2 * wide))
        given = (x, torch.full((lines,), 700.0), recipe.tensor("context", (lines, 8, config.text_dim)))
        counted, error = traffic.counted_forward(model, given, lines, size)
        groups = (high * wide,) * frames
        expected = (
            traffic.sent_in_forward(config, groups, size, 4)
            if lines == 1
            else traffic.sent_by_rows(config, groups, x[0].numel(), lines, size, 4)
        )
        log.info("%d devices, %d heads: %s, error %.1e", size, heads, counted, error)
        if counted != expected:
            raise RuntimeError(f"Counted {counted}, the formula says {expected}.")
        rows.append([str(size), str(lines), str(heads), str(sum(groups)), f"{max(counted):,}", f"{max(expected):,}",
                     f"{min(counted):,}", f"{error:.0e}"])  # fmt: skip
    return rows


def counted_tiles(preset: str) -> list[list[str]]:
    """Decodes whose tiles are dealt to real processes, counted."""
    rows = []
    for size in (2,) if preset == "quick" else (2, 4, 8):
        vae = make_vae(VAEConfig("2.1", 16, 16, 16))
        vae.load_state_dict(recipe.state_dict({name: tuple(x.shape) for name, x in vae.state_dict().items()}))
        latent = recipe.tensor("latent", (1, 16, 2, 8, 16))
        high, wide = TILES[size]
        tile = 64 // high, 128 // wide
        counted, error = traffic.counted_decode(vae, latent, tile, size)
        plan = plan_decode(vae.config, tuple(latent.shape), tile, 4)
        expected = traffic.sent_in_decode(latent.numel(), plan, 5, size, 4)
        log.info("%d tiles: %s, error %.1e", size, counted, error)
        if counted != expected:
            raise RuntimeError(f"Counted {counted}, the formula says {expected}.")
        rows.append([str(size), f"{counted[0]:,}", f"{expected[0]:,}", f"{counted[1]:,}", f"{expected[1]:,}",
                     f"{error:.0e}"])  # fmt: skip
    return rows


def step_rows() -> list[list[str]]:
    """One forward at 720p by what is built: bytes, seconds, and speed on each link."""
    rows = []
    for model in MODELS:
        for size in CARDS:
            sent, compute = model.sent(size), model.compute(size)
            speeds = [f"{model.compute(1) / step(model, size, link, 'Ulysses'):.1f}" for link in LINKS]
            sending = [f"{seconds(sent, link):.2g}" for link in LINKS]
            if size > 8:
                sending[0] = speeds[0] = ""  # no machine has so many cards on PCIe
            values = (f"{model.name}, {model.tokens:,} tokens", str(size), f"{compute:.3g}", gib(sent))
            rows.append([*values, *(f"{s} ({v})" if s else "" for s, v in zip(sending, speeds, strict=True))])
    return rows


def scheme_rows() -> list[list[str]]:
    """Return rows of the bytes that a card sends in a forward of 14B, and the seconds of one, by scheme and link."""
    dim, rows = LARGE.config.dim, []
    for size in CARDS:
        sent = dict.fromkeys(SCHEMES, gathered(LARGE, size, 2 * dim))
        sent |= {"Ulysses": LARGE.sent(size), "tokens": gathered(LARGE, size, dim)}
        cells = []
        for scheme in SCHEMES:
            times = [f"{step(LARGE, size, link, scheme):.2g}" for link in LINKS]
            cells.append(f"{gib(sent[scheme])}: {' / '.join(times if size <= 8 else times[1:])}")
        rows.append([str(size), *cells])
    return rows


def limit_rows() -> list[list[str]]:
    """Most cards that pay, by model, link and scheme."""
    return [
        [model.name, link, *(str(most_cards(model, link, scheme)) for scheme in SCHEMES)]
        for model in MODELS
        for link in LINKS
    ]


def guidance_rows() -> list[list[str]]:
    """A step with guidance: both prompts by all cards, or each by half of them."""
    rows = []
    for size in CARDS:
        both = [f"{2 * step(LARGE, size, link, 'Ulysses'):.3g}" for link in LINKS]
        halves = [f"{step(LARGE, size // 2, link, 'Ulysses'):.3g}" for link in LINKS]
        pairs = [f"{a} / {b}" for a, b in zip(both, halves, strict=True)]
        rows.append([str(size), *([""] if size > 8 else pairs[:1]), *pairs[1:]])
    return rows


def weight_rows() -> list[list[str]]:
    """Return rows of the bytes that a card keeps and receives with sharded weights of 14B, and of the seconds."""
    network = WanDiT(LARGE.config, device="meta")
    counts = [sum(weight.numel() for weight in module.parameters()) for module in (network.blocks[0], network)]
    clips, rows = (replace(LARGE, grid=SMALL_CLIP), LARGE), []
    for stored, itemsize in STORED.items():
        block, whole = (itemsize * count for count in counts)
        for size in (2, 4, 8):
            own = -(-LARGE.config.layers // size)
            held = whole - (LARGE.config.layers - own - 2) * block
            received = (LARGE.config.layers - LARGE.config.layers // size) * block
            cells = []
            for link in LINKS:
                plain = [step(clip, size, link, "Ulysses") for clip in clips]
                more = [max(0.0, seconds(received, link) - clip.compute(size)) for clip in clips]
                times = [f"{time:.3g} + {extra:.2g}" for time, extra in zip(plain, more, strict=True)]
                cells.append(f"{seconds(received, link):.2g}: {' / '.join(times)}")
            rows.append([stored, str(size), f"{gib(held)} ({held / whole:.2f})", gib(received), *cells])
    return rows


def memory_rows() -> list[list[str]]:
    """Return rows of the bytes of a forward on a card besides weights, and their part of what one card needs."""
    rows = []
    for model in MODELS:
        frames, height, width = model.grid
        shape = (1, model.config.out_dim, frames, 2 * height, 2 * width)
        taken = [
            cost.forward_bytes(model.config, shape, torch.bfloat16, chunk=CHUNK, devices=size) for size in (1, *CARDS)
        ]
        rows.append([f"{model.name}, {model.tokens:,} tokens", *(f"{gib(n)} ({n / taken[0]:.2f})" for n in taken)])
    return rows


def device_work(plan: TilePlan) -> int:
    """Multiplications per latent frame of the device whose tile takes most, which runs the first blocks itself."""
    before, tiled, _ = plan.blocks
    last = plan.chunks[-1:]
    first = run_costs(before, block_rects(tiled, plan.grid.frame)[0], last, plan.runtime)[0].work
    return first + max(run_costs(tiled, core, last, plan.runtime)[0].work for core in plan.cores)


def tile_rows() -> list[list[str]]:
    """The decode of a 720p clip in one tile a card."""
    rows = []
    for size in CARDS:
        tile = tuple(-(-side // count) * 8 for side, count in zip(LATENT[3:], TILES[size], strict=True))
        plan = plan_decode(VAE, LATENT, tile, BF16)
        sent = traffic.sent_in_decode(math.prod(LATENT), plan, FRAMES, len(plan.cores), BF16)
        rate = PEAK * REACHED["VAE"] / (2 * LATENT[2])
        compute, alone = device_work(plan) / rate, plan.untiled_work / rate
        received = sum(sent[1:])  # by ComfyUI's card, over its one link
        times = [compute + seconds(received, link) for link in LINKS]
        cells = [f"{seconds(received, link):.2g} ({alone / time:.1f})" for link, time in zip(LINKS, times, strict=True)]
        most = max(sent[1:])
        rows.append([f"{len(plan.cores)} of {tile[0]}x{tile[1]}", f"{compute:.3g}", f"{most / 2**20:.0f}",
                     gib(received), *([""] if size > 8 else cells[:1]), *cells[1:]])  # fmt: skip
    return rows


def tables(preset: str) -> dict[str, str]:
    """Every table of the page by its name there."""
    links = list(LINKS)
    return {
        "counted": page.table([*FORWARD, "difference"], counted_rows(preset)),
        "tiles_counted": page.table([*DECODE, "difference"], counted_tiles(preset)),
        "steps": page.table(["model", "cards", "compute s", "a card sends GiB", *links], step_rows()),
        "schemes": page.table(["cards", *SCHEMES], scheme_rows()),
        "limits": page.table(["model", "link", *SCHEMES], limit_rows()),
        "guidance": page.table(["cards", *links], guidance_rows()),
        "weights": page.table(["weights", "cards", "a card keeps GiB", "receives GiB", *links], weight_rows()),
        "memory": page.table(["model", *(str(size) for size in (1, *CARDS))], memory_rows()),
        "tiles": page.table(["tiles", "compute s", "a tile MiB", "all GiB", *links], tile_rows()),
    }  # fmt: skip


def main() -> None:
    """Count, and write the page."""
    options = bench.begin(bench.parser(__doc__))
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    made = tables(options.preset)
    if options.page is not None:
        for name, table in made.items():
            page.replace(PAGE if options.page == page.PAGE else options.page, name, f"{table}\n")


if __name__ == "__main__":
    main()
