"""The memory that a forward is said to need, against what it takes, and what the host does with the number."""

import comfy.ops
import measure
import pytest
import torch
from comfy.patcher_extension import WrappersMP

VARIANTS = {  # channels in and out, and what else makes the variant
    "t2v": (16, 16, None),
    "i2v": (36, 16, ("clip", "ClipImages", 64)),
    "ti2v": (48, 48, None),
    "vace": (16, 16, ("vace", "Vace", (0, 1))),
}


@pytest.fixture(scope="module")
def memory(room):
    return room("host.model.memory")


@pytest.fixture(scope="module")
def build(room):
    def build(variant, ffn_dim, dtype):
        in_dim, out_dim, part = VARIANTS[variant]
        sizes = dict(dim=512, ffn_dim=ffn_dim, heads=4, layers=2, in_dim=in_dim, out_dim=out_dim, text_dim=64)
        parts = (getattr(room(f"wan_model.dit.parts.{part[0]}"), part[1])(part[2]),) if part else ()
        config = room("wan_model.dit.config").DiTConfig(variant=variant, parts=parts, **sizes)
        network = room("host.model.dit").HostDiT(config, ops=comfy.ops.manual_cast, dtype=dtype, device="cpu")
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.02)
        return network

    return build


@pytest.fixture
def set_free(monkeypatch):
    """Function (bytes): lets the host find so much free memory."""

    def set_free(free):
        def get(device=None, torch_free_too=False):
            return (free, free) if torch_free_too else free

        monkeypatch.setattr("comfy.model_management.get_free_memory", get)

    return set_free


def inputs(room, network, batch, grid, dtype):
    """A call of `network` for `grid` tokens, by torch's attention: the host's on a CPU takes whatever is free."""
    config, (frames, height, width) = network.config, grid
    x = torch.randn(batch, config.in_dim, frames, 2 * height, 2 * width, dtype=dtype)
    t = torch.full((batch, frames) if config.variant == "ti2v" else (batch,), 500.0)
    given = {"transformer_options": {"optimized_attention_override": room("host.model.attention").torch_sdpa}}
    if config.part("clip"):
        given["clip_fea"] = torch.randn(batch, 257, 64, dtype=dtype)
    if config.part("vace"):
        given["vace_context"] = torch.randn(batch, 1, 96, *x.shape[2:], dtype=dtype)
        given["vace_strength"] = [1.0]
    return (x, t, torch.randn(batch, 512, 64, dtype=dtype)), given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [None, 256])
@pytest.mark.parametrize("variant, ffn_dim, batch", [("t2v", 2048, 1), ("t2v", 1382, 2), ("i2v", 1382, 1)])
def test_the_formula_is_what_a_forward_takes(room, memory, build, monkeypatch, variant, ffn_dim, batch, dtype, chunk):
    network, grid = build(variant, ffn_dim, dtype), (5, 16, 16)
    monkeypatch.setattr(memory, "chunk_on", lambda *_, **__: chunk)
    arguments, given = inputs(room, network, batch, grid, dtype)
    peak = measure.traced(lambda: network(*arguments, **given)).peak
    needed = memory.forward_bytes(network.config, arguments[0].shape, dtype, chunk=chunk)
    assert 0.8 < needed / peak < 1.25


@pytest.mark.parametrize("variant, contexts", [("ti2v", 0), ("vace", 1)])
def test_the_formula_for_other_variants(room, memory, build, variant, contexts):
    network = build(variant, 2048, torch.float32)
    arguments, given = inputs(room, network, 1, (5, 16, 16), torch.float32)
    peak = measure.traced(lambda: network(*arguments, **given)).peak
    needed = memory.forward_bytes(
        network.config,
        arguments[0].shape,
        torch.float32,
        shapes={"vace_context": (1, contexts)},
        chunk=memory.IN_CACHES,
    )
    assert 0.8 < needed / peak < 1.25


def test_a_chunk_is_chosen_from_free_memory(memory, room):
    sizes = dict(dim=5120, ffn_dim=13824, heads=40, layers=40, in_dim=16, out_dim=16, text_dim=4096)
    config = room("wan_model.dit.config").DiTConfig(variant="t2v", **sizes)
    shape = (1, 16, 21, 90, 160)  # 75,600 tokens of 720p
    whole, least = (memory.forward_bytes(config, shape, torch.bfloat16, chunk=chunk) for chunk in (None, 4096))
    assert 1.2 < whole / least < 2
    choices = [memory.choose_chunk(config, shape, torch.bfloat16, free) for free in (2 * whole, whole, least, 0)]
    assert choices[0] is None and choices[-1] == choices[-2] == 4096
    assert 4096 < choices[1] < 75600


def test_parts_give_the_same_result(room, memory, build, monkeypatch, relative_error):
    network = build("ti2v", 2048, torch.float32)
    arguments, given = inputs(room, network, 2, (5, 8, 9), torch.float32)
    whole = network(*arguments, **given)
    for chunk in (150, 50):
        monkeypatch.setattr(memory, "IN_CACHES", chunk)
        assert relative_error(network(*arguments, **given), whole) < 1e-5


def test_a_card_gets_what_fits_and_a_cpu_what_its_caches_hold(memory, room, monkeypatch):
    config = room("wan_model.dit.config").DiTConfig(
        variant="t2v", dim=1536, ffn_dim=8960, heads=12, layers=30, in_dim=16, out_dim=16, text_dim=4096
    )
    asked, call = [], (config, (1, 16, 21, 60, 104), torch.bfloat16)
    monkeypatch.setattr(memory.compat, "free_memory", lambda device: asked.append(device) or 2**30)
    card = torch.device("cuda", 1)
    assert memory.chunk_on(card, *call) == memory.choose_chunk(*call, 2**30) < 32760
    assert memory.chunk_on(torch.device("cpu"), *call) == 512
    assert memory.chunk_on(torch.device("cpu"), *call, compiled=True) is None
    assert asked == [card]


def test_both_prompts_are_batched_where_memory_allows(t2v, sample, set_free):
    batches, model = [], t2v.clone()

    def count(executor, x, *arguments, **options):
        batches.append(len(x))
        return executor(x, *arguments, **options)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    one = t2v.model.memory_required((1, 16, 3, 8, 10))
    for free, expected in ((4 * one, 2), (1.4 * one, 1)):
        batches.clear()
        set_free(free)
        sample(model, steps=1)
        assert set(batches) == {expected}


def test_the_host_asks_for_what_the_formula_says(t2v, memory):
    config, shape = t2v.model.diffusion_model.config, (2, 16, 21, 60, 104)
    largest = 4 * config.dim * config.ffn_dim
    assert t2v.model.memory_required(shape) - largest == memory.forward_bytes(
        config, shape, torch.float32, chunk=memory.PREFERRED
    )
    longer = {"time_dim_concat": [(1, 16, 2, 60, 104)]}
    assert t2v.model.memory_required(shape, cond_shapes=longer) == t2v.model.memory_required((2, 16, 23, 60, 104))


def test_the_host_makes_room_for_vace_contexts(room, models, prompts):
    """The host asks for memory before a run, from the conditionings alone."""
    from comfy.sampler_helpers import estimate_memory

    model = room("host.model.loading").load(str(models / "diffusion_models" / "tiny_random_wan2.1_vace.safetensors"))
    frames = [torch.zeros(1, 32, 21, 60, 104)] * 2
    conds = [
        estimate_memory(model, [1, 16, 21, 60, 104], {"positive": [cond]}) for cond in ({}, {"vace_frames": frames})
    ]
    shape = (2, 16, 21, 60, 104)
    one, two = (model.model.memory_required(shape, {"vace_context": [(1, n)]}) for n in (1, 2))
    assert [asked for asked, _ in conds] == [one, two] and one < two


@pytest.mark.parametrize(("window", "near_sink"), [(21, False), (6, True)])
def test_the_formula_is_what_a_causal_run_holds_on_a_card(room, window, near_sink):
    """The 1.3B model at 832x480 in bfloat16, blocks of three latent frames until frames are dropped.

    Traced without values, with an attention that takes no memory of its own, as flash attention on a card.
    """
    causal, cost = room("wan_model.causal"), room("wan_model.dit.cost")
    sizes = dict(dim=1536, ffn_dim=8960, heads=12, layers=30, in_dim=16, out_dim=16, text_dim=4096)
    config = room("wan_model.dit.config").DiTConfig(variant="causal", **sizes)
    options = {"dtype": torch.bfloat16, "device": "meta"}
    with torch.device("meta"):
        network = room("wan_model.dit.model").WanDiT(config).to(torch.bfloat16)
    runtime = room("wan_model.dit.runtime").Runtime(attention=lambda q, *_: torch.empty_like(q))
    cache = causal.Cache(window, sink=1)

    def run():
        history = causal.History(network, torch.empty(1, 512, 4096, **options), cache, runtime, near_sink)
        for _ in range(window // 3 + 1):
            history.keep(torch.empty(1, 16, 3, 60, 104, **options))

    with torch.inference_mode():
        peak = measure.traced(run).peak
    shape = (1, 16, 3, 60, 104)
    formula = cost.forward_bytes(config, shape, torch.bfloat16)
    formula += causal.cache_bytes(config, shape, window, torch.bfloat16)
    assert 0.95 < formula / peak < 1.05


class Still:
    """A backend of torch between `size` processes that brings nothing: on the meta device there are no values."""

    def __init__(self, rank, size):
        self.rank, self.size = lambda: rank, lambda: size

    def alltoall_base(self, *_):
        return self

    def wait(self):
        pass


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("chunk", [None, 4096])
@pytest.mark.parametrize(("dim", "ffn_dim", "sides"), [(1536, 8960, (60, 104)), (5120, 13824, (90, 160))])
def test_the_formula_is_what_each_of_several_cards_takes(room, size, chunk, dim, ffn_dim, sides):
    """81 frames by the 1.3B model at 480p, and by the 14B model at 720p, traced without values."""
    sizes = dict(dim=dim, ffn_dim=ffn_dim, heads=dim // 128, layers=2, in_dim=16, out_dim=16, text_dim=4096)
    config = room("wan_model.dit.config").DiTConfig(variant="t2v", **sizes)
    options, shape = {"dtype": torch.bfloat16, "device": "meta"}, (1, 16, 21, *sides)
    with torch.device("meta"):
        network = room("wan_model.dit.model").WanDiT(config).to(torch.bfloat16)
    alone = room("wan_model.dit.runtime").Runtime(attention=lambda q, *_: torch.empty_like(q), chunk=chunk)
    parallel, cost = room("wan_model.parallel"), room("wan_model.dit.cost").forward_bytes

    def peak(runtime):
        x, text = torch.empty(shape, **options), torch.empty(1, 512, 4096, **options)
        with torch.inference_mode():
            return measure.traced(lambda: network(x, torch.empty(1, device="meta"), text, runtime=runtime)).peak

    ranks = [parallel.spread(alone, parallel.Group(Still(rank, size))) for rank in (0, size - 1)]
    most, whole = max(map(peak, ranks)), peak(alone)
    assert 0.95 < cost(config, shape, torch.bfloat16, chunk=chunk, devices=size) / most < 1.05
    assert 0.98 < cost(config, shape, torch.bfloat16, chunk=chunk) / whole < 1.02
    assert most < {2: 0.6, 3: 0.46, 8: 0.3}[size] * whole
