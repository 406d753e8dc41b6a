"""Tiles that leave no trace, the plan that says what they cost, and streams that survive running out of memory."""

import random
import weakref
from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from wan_model.vae import CPU, Runtime, VAEConfig, fit_decode, fit_encode, make_vae, plan_decode, plan_encode
from wan_model.vae.plan import even_tiles
from wan_model.vae.rect import Rect, Span
from wan_model.vae.tile_run import TileRun, block_rects
from wan_model.vae.tiling import MIN_TILE

CONFIGS = {"2.1": VAEConfig("2.1", 16, 96, 96), "2.2": VAEConfig("2.2", 48, 160, 256)}


def narrow(version):
    """A VAE of base width 4 in float64, in which only rounding separates two exact ways."""
    torch.manual_seed(0)
    return make_vae(VAEConfig(version, CONFIGS[version].latent_channels, 4, 4), dtype=torch.float64)


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def vae(request):
    return narrow(request.param)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latent_of(vae, frames, height, width, seed=0):
    return noise(1, vae.config.latent_channels, frames, height, width, seed=seed)


def difference(a, b):
    assert a.shape == b.shape
    assert b.abs().max() > 0.05
    return (a - b).abs().max().item()


@pytest.mark.parametrize("seed", range(3))
def test_tiles_of_any_size_give_the_untiled_result(seed, vae):
    draw = random.Random(seed)
    stride = vae.config.stride
    height, width = draw.randint(5, 8), draw.randint(5, 8)
    tile = draw.randint(32, height * stride), draw.randint(32, width * stride)
    latent = latent_of(vae, 2, height, width, seed)
    assert difference(vae.decode(latent, tile=tile), vae.decode(latent)) < 1e-12
    video = noise(1, 3, 5, height * stride, width * stride, seed=seed).clamp(-1, 1)
    assert difference(vae.encode(video, tile=tile), vae.encode(video)) < 1e-12


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_tiles_are_exact_at_real_width(version):
    torch.manual_seed(0)
    vae = make_vae(CONFIGS[version])
    stride = CONFIGS[version].stride
    sides, tile = ((32, 96), (32, 48)) if version == "2.1" else ((32, 64), (32, 32))
    latent = torch.randn(1, CONFIGS[version].latent_channels, 1, *(side // stride for side in sides))
    whole = vae.decode(latent)
    assert (vae.decode(latent, tile=tile) - whole).abs().max() < 1e-4 < whole.std()
    video = torch.rand(1, 3, 1, *sides) * 2 - 1
    latent = vae.encode(video)
    assert (vae.encode(video, tile=tile) - latent).abs().max() < 1e-4 < latent.std()


def run_once(blocks, out, x):
    run = TileRun(blocks, out, CPU)
    run.start(x, last=True)
    return run.run()


@pytest.mark.parametrize("encode", [False, True])
def test_the_halo_is_the_receptive_field(encode, vae):
    """A core depends on the outermost pixels that its tile reads, and on none beyond."""
    _, tiled, _ = vae.encode_blocks() if encode else vae.decode_blocks()
    unit, channels = (1, 3) if encode else (vae.config.stride, 4 * vae.config.dec_dim)
    frame = Rect.whole(32 * unit, 32 * unit)
    span = Span(14 * unit, 17 * unit, 32 * unit)
    core = Rect(span, span)
    needed, whole = block_rects(tiled, core)[0], block_rects(tiled, frame)[0]
    x = noise(1, channels, 1, whole.rows.size, whole.cols.size)
    shown = frame.crop(run_once(tiled, frame, x), core)
    for axis, read in ((-2, needed.rows), (-1, needed.cols)):
        for line, inside in ((read.lo - 1, False), (read.lo, True), (read.hi - 1, True), (read.hi, False)):
            changed = x.clone()
            changed.select(axis, line).add_(100)
            assert torch.equal(frame.crop(run_once(tiled, frame, changed), core), shown) != inside, (axis, line)


def test_half_the_halo_shows(vae):
    """A tile cut out with half its halo and decoded alone is wrong; with all of it, exact."""
    _, tiled, _ = vae.decode_blocks()
    unit, size = vae.config.stride, 30
    core = Rect(Span(14 * unit, 16 * unit, size * unit), Span(0, 2 * unit, 2 * unit))
    frame = Rect(Span(0, size * unit, size * unit), core.cols)
    x = noise(1, 4 * vae.config.dec_dim, 1, size, 2)
    expected = frame.crop(run_once(tiled, frame, x), core)
    needed = block_rects(tiled, core)[0].rows

    def error(halo):
        lo, hi = max(14 - halo, 0), min(16 + halo, size)
        alone = Rect(Span(0, (hi - lo) * unit, (hi - lo) * unit), core.cols)
        y = run_once(tiled, alone, x[..., lo:hi, :])[..., (14 - lo) * unit : (16 - lo) * unit, :]
        return ((y - expected).norm() / expected.norm()).item()

    halo = 14 - needed.lo
    assert error(halo) < 1e-12
    assert error(halo // 2) > 1e-6


class RunsOut(TorchFunctionMode):
    """Inside it whatever takes memory raises an out-of-memory error at random, `left` times in all."""

    TAKING = (functional.conv2d, functional.conv3d, torch.Tensor.to, torch.Tensor.clone, torch.cat, torch.empty)

    def __init__(self, times, rate, seed):
        super().__init__()
        self.left, self.rate, self.draw, self.hit = times, rate, random.Random(seed), set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.TAKING and self.left and self.draw.random() < self.rate:
            self.left -= 1
            self.hit.add(func)
            raise torch.OutOfMemoryError("out of memory")
        return func(*args, **(kwargs or {}))


def drain(stream, fault, on_error):
    """All chunks of a stream under `fault`, with `on_error` called after each failure."""
    chunks = []
    while True:
        try:
            with fault:
                for chunk in stream:
                    chunks.append(chunk)
            return torch.cat(chunks, dim=2)
        except torch.OutOfMemoryError:
            on_error()


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("splits", [0, 2])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_running_out_of_memory_ten_times_changes_nothing(version, tiled, splits, encode):
    vae = narrow(version)
    stride = vae.config.stride
    latent = latent_of(vae, 2, 4, 18)
    video = noise(1, 3, 5, 4 * stride, 18 * stride)
    tile = (4 * stride, 9 * stride) if tiled else None
    expected = vae.encode(video) if encode else vae.decode(latent)
    stream = vae.encode_stream(video.split(2, dim=2), tile=tile) if encode else vae.decode_stream(latent, tile=tile)
    fault = RunsOut(10, 0.3, seed=splits + 1)

    def on_error():
        if fault.left < splits - int(tiled):  # the last times, so that there are caches to cut
            stream.split()

    assert difference(drain(stream, fault, on_error), expected) < 1e-12
    assert fault.left == 0 and torch.Tensor.to in fault.hit and len(fault.hit) > 2


def test_a_tile_that_cannot_be_split_says_so(vae):
    stream = vae.decode_stream(latent_of(vae, 1, 4, 4), tile=(32, 32))
    with pytest.raises(ValueError, match="cannot be made smaller"):
        for _ in range(9):
            stream.split()


def test_cancelling_from_the_progress_call_leaves_the_stream_usable(vae):
    latent = latent_of(vae, 3, 4, 9)
    seen = []

    def on_step(done, total):
        seen.append((done, total))
        if len(seen) == 3:
            raise KeyboardInterrupt

    stream = vae.decode_stream(latent, tile=(64, 64), on_step=on_step)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert difference(torch.cat(list(stream), dim=2), vae.decode(latent)) < 1e-12
    assert all(a[0] < b[0] for a, b in pairwise(seen))
    assert seen[-1] == (pytest.approx(3), 3)


@pytest.mark.parametrize(
    ("version", "frame", "tile", "most"),
    [
        ("2.1", (480, 832), 256, 1.2),
        ("2.1", (480, 832), 512, 1.1),
        ("2.1", (720, 1280), 256, 1.2),
        ("2.2", (704, 1280), 512, 1.25),
    ],
)
def test_tiles_cost_little_more_than_whole_frames(version, frame, tile, most):
    config = CONFIGS[version]
    latent = (1, config.latent_channels, 21, frame[0] // config.stride, frame[1] // config.stride)
    assert 1 < plan_decode(config, latent, (tile, tile), 2).work_ratio < most


def test_the_plan_reads_as_a_sentence():
    plan = plan_decode(CONFIGS["2.1"], (1, 16, 21, 90, 160), (256, 256), torch.bfloat16)
    assert len(plan.cores) == 15
    assert plan.halo == (7, 7, 7, 7)
    assert str(plan).startswith(
        "15 tiles of up to 30x32 latent pixels, halo (7, 7, 7, 7), 21 latent frames at a time: 1.1"
    )
    assert plan_encode(CONFIGS["2.1"], (1, 3, 81, 720, 1280), (256, 256), 4).halo == (4, 5, 4, 5)


def test_work_of_whole_frames_is_the_published_one():
    """275 and 639 TFLOP for 81 frames, less what the phase convolutions save (4.6 %)."""
    for frame, tflop in (((480, 832), 275), ((720, 1280), 639)):
        plan = plan_decode(CONFIGS["2.1"], (1, 16, 21, frame[0] // 8, frame[1] // 8), None, 2)
        assert 2 * plan.work * 20.3 / 1e12 == pytest.approx(tflop * 0.954, rel=0.03)


def test_small_tiles_are_refused():
    with pytest.raises(ValueError, match=r"16x64 pixels is too small.*at least 32"):
        plan_decode(CONFIGS["2.1"], (1, 16, 21, 60, 104), (16, 64), 2)


def test_fit_takes_the_fewest_tiles_within_the_budget():
    config, shape = CONFIGS["2.1"], (1, 16, 21, 90, 160)
    whole = plan_decode(config, shape, None, 2).peak_bytes
    assert fit_decode(config, shape, whole, 2) is None
    last = 1
    for budget in (whole - 1, whole // 2, whole // 4):
        plan = plan_decode(config, shape, fit_decode(config, shape, budget, 2), 2)
        assert plan.peak_bytes <= budget
        assert len(plan.cores) > last or budget == whole - 1
        last = len(plan.cores)
    assert min(fit_decode(config, (1, 16, 21, 8, 8), 0, 2)) == 32
    video = (1, 3, 81, 720, 1280)
    assert plan_encode(config, video, fit_encode(config, video, 2 * 2**30, 2), 2).peak_bytes <= 2 * 2**30


class Traced(TorchDispatchMode):
    """Counts the bytes of all tensors alive, those `given` aside."""

    def __init__(self, given):
        super().__init__()
        self.given = [x.untyped_storage() for x in given]
        self.seen = weakref.WeakSet(self.given)
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x.untyped_storage() not in self.seen:
                storage = x.untyped_storage()
                self.seen.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.drop, storage.nbytes())
        return result

    def drop(self, nbytes):
        self.live -= nbytes


class WithoutScores(TorchFunctionMode):
    """Attention as backends do it: the meta device would hold all its scores."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def traced_peak(config, latent_shape, tile, encode=False):
    """Peak bytes of a stream in bfloat16 whose results are dropped, run without memory on the meta device."""
    vae = make_vae(config, dtype=torch.bfloat16, device="meta")
    latent = torch.empty(latent_shape, dtype=torch.bfloat16, device="meta")
    trace = Traced([*vae.parameters(), latent])
    with trace, WithoutScores():
        if encode:
            sides = [side * config.stride for side in latent_shape[3:]]
            pieces = (
                torch.empty(1, 3, 4 if k else 1, *sides, dtype=torch.bfloat16, device="meta")
                for k in range(latent_shape[2])
            )
            stream = vae.encode_stream(pieces, tile=tile)
        else:
            stream = vae.decode_stream(latent, tile=tile)
        for _ in stream:
            pass
    return trace.peak


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize(("version", "tile"), [("2.1", None), ("2.1", (512, 512)), ("2.2", None), ("2.2", (512, 512))])
def test_the_planned_peak_is_the_measured_one(version, tile, encode):
    config = CONFIGS[version]
    frames = 21 if tile else 4
    latent = (1, config.latent_channels, frames, 704 // config.stride, 1280 // config.stride)
    if encode:
        plan = plan_encode(config, (1, 3, 4 * frames - 3, 704, 1280), tile, 2)
    else:
        plan = plan_decode(config, latent, tile, 2)
    assert plan.peak_bytes == pytest.approx(traced_peak(config, latent, tile, encode), rel=0.25)


@pytest.mark.parametrize("latents", [1, 2, 5, 21])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize(("version", "width"), [("2.1", None), ("2.1", 4), ("2.2", None), ("2.2", 4)])
def test_the_planned_peak_follows_the_clips_length(version, width, encode, latents):
    config = CONFIGS[version]
    if width:
        config = VAEConfig(version, config.latent_channels, width, width)
    for side, tile in ((96, None), (192, (192, 96))):
        latent = (1, config.latent_channels, latents, side // config.stride, side // config.stride)
        if encode:
            plan = plan_encode(config, (1, 3, 4 * latents - 3, side, side), tile, 2)
        else:
            plan = plan_decode(config, latent, tile, 2)
        assert plan.peak_bytes == pytest.approx(traced_peak(config, latent, tile, encode), rel=0.25)


def test_a_clip_of_unknown_length_is_planned_as_a_long_one():
    for tile in (None, (256, 256)):
        unknown, long = (plan_encode(CONFIGS["2.1"], (1, 3, t, 480, 832), tile, 2) for t in (None, 401))
        assert unknown == long


def test_an_image_takes_no_memory_for_frames_that_never_come():
    """At most what ComfyUI's own VAE takes for the same: 98 MiB in float32."""
    assert traced_peak(CONFIGS["2.1"], (1, 16, 1, 32, 32), None) < 98 * 2**20 / 2


@pytest.mark.parametrize("last", [False, True])
def test_only_a_chunk_that_another_follows_leaves_caches(last, vae):
    whole, _, _ = vae.decode_blocks()
    run = TileRun(whole, Rect.whole(3, 4), CPU)
    run.start(latent_of(vae, 1, 3, 4), last)
    run.run()
    assert any(run.caches) != last


@pytest.mark.parametrize("choice", ["fold_pixels", "product_pixels"])
def test_a_small_frame_is_computed_the_plain_way_to_the_same_result(vae, choice):
    latent = latent_of(vae, 2, 4, 5)
    runtimes = (Runtime(**{choice: pixels}) for pixels in (0, 2**30))
    results = [torch.cat(list(vae.decode_stream(latent, runtime=runtime)), dim=2) for runtime in runtimes]
    assert not torch.equal(*results)
    assert difference(*results) < 1e-12


def test_a_720p_clip_decodes_in_1_3_gigabytes():
    assert traced_peak(CONFIGS["2.1"], (1, 16, 21, 90, 160), (256, 256)) < 1.3e9


@pytest.mark.parametrize(
    ("version", "encode", "frames"),
    [
        *((version, encode, 61) for version in ("2.1", "2.2") for encode in (False, True)),
        pytest.param("2.1", False, 401, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_length(version, encode, frames):
    config = VAEConfig(version, CONFIGS[version].latent_channels, 8, 8)
    shape = (1, config.latent_channels, 21, 4, 4)
    short = traced_peak(config, shape, None, encode)
    assert traced_peak(config, (*shape[:2], frames, *shape[3:]), None, encode) <= 1.02 * short


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_memory_does_not_grow_with_the_pieces_of_a_latent(version):
    config = VAEConfig(version, CONFIGS[version].latent_channels, 8, 8)
    vae = make_vae(config, dtype=torch.bfloat16, device="meta")
    peaks = []
    for count in (3, 30):
        trace = Traced(vae.parameters())
        with trace, WithoutScores():
            shape = (1, config.latent_channels, 3, 4, 4)
            pieces = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in range(count))
            for _ in vae.decode_stream(pieces):
                pass
        peaks.append(trace.peak)
    assert peaks[1] <= 1.02 * peaks[0]


@pytest.mark.parametrize("devices", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("frame", [(480, 832), (720, 1280), (272, 480)])
def test_even_tiles_give_each_device_as_many_and_are_cut_where_borders_are_short(devices, frame):
    config, counts, borders = CONFIGS["2.1"], [], []
    shape = (1, 16, 4, *(side // 8 for side in frame))
    for tile in even_tiles(frame, 8, devices):
        cores = plan_decode(config, shape, tile, 4).cores
        assert min(min(len(core.rows), len(core.cols)) for core in cores) >= MIN_TILE
        counts.append(len(cores))
        borders.append(sum(len(core.rows) + len(core.cols) for core in cores))
    assert counts[0] == devices and counts == sorted(set(counts)) and not any(count % devices for count in counts)
    assert borders[0] <= devices * min(frame) + max(frame)


def test_a_frame_that_gives_a_device_no_tile_has_no_even_tiles():
    assert list(even_tiles((48, 96), 16, 4)) == []
    assert len(list(even_tiles((48, 96), 16, 3))) == 1
