"""The estimate before a run: from a file, from a MODEL, for a card of a given size, and on the route."""

import asyncio
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import pytest
import torch
import writers
from aiohttp.test_utils import make_mocked_request
from safetensors.torch import load_file, save_file

T2V = "tiny_random_wan2.1_t2v.safetensors"
GIB = 2**30


@pytest.fixture(scope="module")
def estimate(room):
    return room("host.editor.estimate")


@pytest.fixture
def times(tmp_path, monkeypatch):
    """An empty user folder; the file that times are kept in."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    return tmp_path / "user" / "wan_stream_times.json"


@pytest.fixture
def big(estimate, room):
    """A 14B model in bfloat16."""
    sizes = dict(dim=5120, ffn_dim=13824, heads=40, layers=40, in_dim=16, out_dim=16, text_dim=4096)
    config = room("wan_model.dit.config").DiTConfig(variant="t2v", **sizes)
    return estimate.Part("wan_14B.safetensors", config, int(28.6e9), torch.bfloat16)


def card(estimate, gib, ram=64.0):
    return estimate.Place("a card", int(gib * GIB), int(ram * GIB), own_memory=True)


def ask(room, query):
    response = asyncio.run(room("host.editor.routes").answer(request(query)))
    return response.status, json.loads(response.text)


def request(query):
    return make_mocked_request("GET", f"/wan/estimate?{query}", match_info={"question": "estimate"})


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "fp8_e4m3fn"])
def test_a_file_takes_what_its_model_takes(estimate, room, models, dtype):
    loaded = estimate.part_of_model(room("host.model.loading").load(str(models / "diffusion_models" / T2V), dtype))
    assert estimate.part_of_file(T2V, dtype) == loaded


@pytest.mark.parametrize(("count", "keeps"), [(2, 22 / 40), (4, 12 / 40), (3, 16 / 40)])
def test_sharded_weights_are_those_that_a_card_keeps(count, keeps, estimate, big):
    blocks = int(28e9)
    part = dataclasses.replace(big, stacks=((40, blocks),))
    replica, sharded = (
        dataclasses.replace(card(estimate, 24), count=count, is_sharded=is_sharded) for is_sharded in (False, True)
    )
    assert part.held(replica) == big.weights
    assert part.held(sharded) == pytest.approx(big.weights - blocks + keeps * blocks, rel=1e-6)
    offloaded = [
        estimate.estimate([part], (1, 16, 13, 60, 104), 20, False, place)["offloaded"] for place in (replica, sharded)
    ]
    assert offloaded[0] > 0 == offloaded[1]


def test_cards_that_share_a_forward_have_a_part_of_its_activations(estimate, big):
    """A clip of 81 frames at 720p, for which one card of 12 GiB offloads weights and two do not."""
    shape, one = (1, 16, 21, 90, 160), card(estimate, 12)
    small = dataclasses.replace(big, weights=int(8.6e9))
    alone, shared = (
        estimate.estimate([small], shape, 4, False, dataclasses.replace(one, count=count)) for count in (1, 2)
    )
    assert alone["offloaded"] > 0 == shared["offloaded"]
    whole, half = (
        estimate.estimate([small], shape, 4, False, dataclasses.replace(card(estimate, 96), count=count))["models"][0]
        for count in (1, 2)
    )
    assert whole["chunk"] is half["chunk"] is None
    assert 0.45 * whole["activations"] < half["activations"] < 0.6 * whole["activations"]


def test_a_gguf_file_stays_as_large_as_it_is(estimate, golden, models):
    path = models / "diffusion_models" / "estimate.gguf"
    writers.write_gguf(path, golden("dit_t2v").weights(), "Q4_K")
    assert estimate.part_of_file(path.name).weights == path.stat().st_size
    path.unlink()


def test_what_does_not_fit_is_offloaded(estimate, big):
    shape = (1, 16, 21, 60, 104)  # 81 frames of 832x480
    large, small, least = (estimate.estimate([big], shape, 40, True, card(estimate, gib)) for gib in (80, 12, 1))
    assert large["tokens"] == 32760 and large["calls"] == 80
    assert large["offloaded"] == 0 and large["fits"] and large["ram"] == 0
    assert large["models"][0]["together"] and not small["models"][0]["together"]
    assert small["peak"] <= 12 * GIB and small["fits"]
    assert small["offloaded"] + small["models"][0]["resident"] == big.weights
    assert 16 * GIB < small["offloaded"] == small["ram"] < 20 * GIB
    assert not least["fits"] and "may not fit" in estimate.sentence(least)
    assert not estimate.estimate([big], shape, 40, True, card(estimate, 12, ram=8))["fits"]


def test_the_expert_that_waits_is_in_ram(estimate, big):
    shape = (1, 16, 21, 60, 104)
    found = estimate.estimate([big, big], shape, 40, True, card(estimate, 80))
    assert found["offloaded"] == 0 and found["ram"] == big.weights


def test_without_a_card_everything_is_in_ram(estimate, big):
    place = estimate.Place("cpu", 64 * GIB, 64 * GIB, own_memory=False)
    found = estimate.estimate([big], (1, 16, 21, 60, 104), 40, False, place)
    assert found["ram"] == found["peak"] > big.weights and found["offloaded"] == 0
    assert found["calls"] == found["steps"] == 40


def test_a_run_tells_the_time_of_the_next(estimate, t2v, sample, times, caplog):
    part, place = estimate.part_of_model(t2v), estimate.here()
    before = estimate.estimate([part], (1, 16, 3, 8, 10), 5, True, place)
    assert before["seconds"] is None and before["measured"] == ""
    with caplog.at_level("INFO"):
        sample(t2v, steps=3)
        sample(t2v, steps=3)
    lines = [line for line in caplog.messages if line.startswith("60 tokens, 3 steps of tiny_random_wan2.1_t2v")]
    assert len(lines) == 2 and "measured" not in lines[0] and "measured at this size" in lines[1]
    same = estimate.estimate([part], (1, 16, 3, 8, 10), 5, True, place)
    assert same["measured"] == "this size" and same["seconds"] == pytest.approx(5 * same["seconds_per_step"])
    twice = estimate.estimate([part], (2, 16, 3, 8, 10), 5, True, place)
    assert twice["seconds"] == pytest.approx(2 * same["seconds"])
    larger = estimate.estimate([part], (1, 16, 3, 16, 20), 5, True, place)
    assert larger["measured"] == "another size" and larger["seconds"] > 2 * same["seconds"]


def test_a_run_of_the_hosts_sampler_tells_it_too(estimate, t2v, prompts, times):
    import nodes

    latent = {"samples": torch.zeros(1, 16, 3, 8, 10)}
    nodes.KSampler().sample(t2v, 5, 3, 4.0, "euler", "simple", *prompts, latent)
    found = estimate.estimate([estimate.part_of_model(t2v)], (1, 16, 3, 8, 10), 5, True, estimate.here())
    assert found["measured"] == "this size"


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "\x00"])
def test_damaged_times_are_none(estimate, t2v, times, text):
    times.parent.mkdir()
    times.write_text(text)
    assert (
        estimate.estimate([estimate.part_of_model(t2v)], (1, 16, 3, 8, 10), 5, True, estimate.here())["seconds"] is None
    )


def test_times_that_cannot_be_kept_are_a_warning(t2v, sample, times, caplog):
    Path(times.parent).write_text("a file where the folder should be")
    sample(t2v, steps=1)
    assert any("could not be kept" in line for line in caplog.messages)


def test_the_work_of_a_forward_is_that_of_the_real_models(room, big):
    assert room("host.observe.timing").flops(big.config, 32760) == pytest.approx(1678e12, rel=0.02)
    assert room("host.observe.timing").flops(big.config, 75600) == pytest.approx(6523e12, rel=0.02)


def test_the_route(room, models, times):
    status, answer = ask(room, f"model={T2V}&width=96&height=64&length=9&steps=7&guidance=1")
    assert status == 200
    assert (answer["tokens"], answer["steps"], answer["calls"]) == (3 * 4 * 6, 7, 7)
    assert answer["models"][0]["weights"] > 0 and answer["fits"] is True
    high, low = (T2V.replace("2.1_t2v", f"2.2_t2v_{noise}_noise") for noise in ("high", "low"))
    status, answer = ask(room, f"model={high}&low_noise_model={low}&width=96&height=64&length=9")
    assert status == 200 and len(answer["models"]) == 2


@pytest.mark.parametrize(
    "preset, names, steps, prompts",
    [
        *(("none", "x_lightx2v_4steps", 30, 2), ("auto", "x%0Ax_lightx2v_4steps", 4, 1)),
        *(("auto", "x", 30, 2), ("causvid", "x", 9, 1)),
    ],
)
def test_the_route_counts_the_steps_of_a_preset(room, models, preset, names, steps, prompts):
    _, answer = ask(room, f"model={T2V}&width=96&height=64&length=9&preset={preset}&names={names}")
    assert (answer["steps"], answer["calls"]) == (steps, steps * prompts)


VAE = "tiny_random_wan{}_vae.safetensors"


def test_decoding_is_a_part_of_the_peak(estimate, room, models, times):
    size = f"model={T2V}&width=96&height=64&length=9"
    alone, both = (ask(room, query)[1] for query in (size, f"{size}&vae={VAE.format('2.1')}"))
    decoding = both.pop("decoding")
    assert alone.pop("decoding") is None and decoding["tiles"] == 1
    loaded = room("host.vae.vae").load(str(models / "vae" / VAE.format("2.1")))
    assert decoding["weights"] == loaded.patcher.model_size()
    assert decoding["activations"] == loaded.memory_used_decode((1, 16, 3, 8, 12), loaded.vae_dtype)
    assert both["peak"] == max(alone["peak"], decoding["peak"]) and both["fits"]


def test_decoding_is_cut_into_tiles_where_memory_is_short(estimate, room, models, monkeypatch):
    """With the header of a VAE of real width."""
    vae, shape = room("wan_model.vae"), (1, 16, 21, 60, 104)
    config = vae.VAEConfig("2.1", 16, 96, 96)
    real = vae.make_vae(config, device="meta").state_dict()
    monkeypatch.setattr(estimate.checkpoint, "expect", lambda *_: SimpleNamespace(tensors=real, config=config))
    whole = estimate.decoding(VAE.format("2.1"), shape, card(estimate, 80))
    tiles = [whole["tiles"]]
    for part in (0.9, 0.5):
        gib = (whole["weights"] + part * whole["activations"]) / GIB
        found = estimate.decoding(VAE.format("2.1"), shape, card(estimate, gib))
        assert found["peak"] == found["weights"] + found["activations"] < gib * GIB
        tiles.append(found["tiles"])
    assert tiles[0] == 1 < tiles[1] < tiles[2]


def test_a_file_of_vace_blocks_counts(estimate, models):
    """A text-to-video file with a file of blocks beside it takes what one file with all of it does."""
    whole = models / "diffusion_models" / "tiny_random_wan2.1_vace.safetensors"
    weights = load_file(whole)
    for name, chosen in (("module", True), ("plain", False)):
        part = {key: weight for key, weight in weights.items() if key.startswith("vace_") == chosen}
        save_file(part, whole.with_name(f"estimate_{name}.safetensors"))
    parts = estimate.part_of_file("estimate_plain.safetensors", "auto", "estimate_module.safetensors")
    one = estimate.part_of_file(whole.name)
    for name in ("module", "plain"):
        whole.with_name(f"estimate_{name}.safetensors").unlink()
    assert (parts.config, parts.weights, parts.dtype) == (one.config, one.weights, one.dtype)


@pytest.mark.parametrize(
    "query, sentence",
    [
        ("", "width is ''"),
        (f"model={T2V}&width=96&height=64", "length is ''"),
        (f"model={T2V}&width=nan&height=64&length=9", "width is 'nan'"),
        (f"model={T2V}&width=1e9&height=64&length=9", "from 16 to 8192"),
        (f"model={T2V}&width=96&height=64&length=9&weight_dtype=int3", "no weight_dtype 'int3'"),
        (f"model={T2V}&width=96&height=64&length=9&preset=fast", "no preset named 'fast'"),
        (f"model={T2V}&width=96&height=64&length=9&vae={VAE.format('2.2')}", "given 16-channel latents"),
        (f"model={T2V}&width=96&height=64&length=9&vae=/etc/passwd", "is not in the models/vae folder"),
        (f"model={T2V}&width=96&height=64&length=9&vace_name={T2V}", "vace_name of WanModelLoader"),
        ("model=../vae/x.safetensors&width=96&height=64&length=9", "is not in the models/diffusion_models folder"),
        ("model=/etc/passwd&width=96&height=64&length=9", "is not in the models/diffusion_models folder"),
    ],
)
def test_a_bad_question_gets_a_sentence(room, models, query, sentence):
    status, answer = ask(room, query)
    assert status == 400 and sentence in answer["error"]


@pytest.fixture
def causal(estimate, big, room):
    """The same as a causal model, in blocks of 3 frames and a window of 21."""
    config = dataclasses.replace(big.config, variant="causal")
    rollout = room("wan_model.variants.rollout").Rollout(block=3, window=21)
    return dataclasses.replace(big, config=config, rollout=rollout)


def test_a_causal_model_takes_a_block_and_its_window(estimate, causal, room):
    """However long the clip is: 3 frames of forward, 21 of keys and values, of both prompts with guidance."""
    frame, text = 2 * 40 * 5120 * 2 * 1560, 2 * 40 * 5120 * 2 * 512
    cost = room("wan_model.dit.cost").forward_bytes
    shapes = [(1, 16, frames, 60, 104) for frames in (21, 81, 801)]
    place = card(estimate, 140)
    found = [estimate.estimate([causal], shape, 4, False, place) for shape in shapes]
    block = cost(causal.config, (1, 16, 3, 60, 104), torch.bfloat16)
    assert [run["models"][0]["activations"] for run in found] == [block + 21 * frame + text] * 3
    assert [run["calls"] for run in found] == [7 * 5 - 1, 27 * 5 - 1, 267 * 5 - 1]
    guided = estimate.estimate([causal], shapes[0], 4, True, place)
    assert guided["calls"] == 2 * found[0]["calls"] and guided["models"][0]["together"]
    two = cost(causal.config, (2, 16, 3, 60, 104), torch.bfloat16)
    assert guided["models"][0]["activations"] == two + 2 * (21 * frame + text)


def test_the_cache_lies_in_ram_where_the_card_is_small(estimate, causal, monkeypatch):
    """A larger card offloads weights to make room for the cache; where that does not do, the cache goes to RAM."""
    monkeypatch.setattr(comfy.model_management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)  # as on NVIDIA's cards
    frame, text = 2 * 40 * 5120 * 2 * 1560, 2 * 40 * 5120 * 2 * 512
    whole, shape = 21 * frame + text, (1, 16, 81, 60, 104)  # 27.7 GB
    middle, small = (estimate.estimate([causal], shape, 4, False, card(estimate, gib)) for gib in (36, 16))
    (model,) = middle["models"]
    assert model["cache_in_ram"] == 0 and model["offloaded"] > 0.4 * causal.weights and middle["peak"] <= 36 * GIB
    (model,) = small["models"]
    assert model["cache_in_ram"] == whole and small["ram"] == model["offloaded"] + whole
    assert model["offloaded"] < 0.9 * causal.weights and small["peak"] <= 16 * GIB and small["fits"]


def test_a_file_tells_its_steps_and_guidance(estimate, room, golden, models, ask_of):
    told = {"solver": "unipc", "steps": 8, "shift": 3.0, "guidance": 2.5}
    header = {"config": json.dumps({"transformer": {"causal_ar": True}}), "sampling": json.dumps(told)}
    path = models / "diffusion_models" / "estimate_causal.safetensors"
    save_file(golden("dit_t2v").weights(), path, metadata=header | {"rollout": '{"block": 1, "window": 8}'})
    found = ask_of(path.name, preset="auto")
    assert found["steps"] == 8 and found["calls"] == 2 * (5 * 9 - 1)
    assert ask_of(path.name, preset="auto", causal="not causal")["calls"] == 2 * 8
    assert ask_of(path.name)["calls"] == 5 * 31 - 1
    path.unlink()


@pytest.fixture
def ask_of(estimate):
    def ask(name, **changes):
        given = {"model": name, "width": "64", "height": "64", "length": "17", "steps": "30", "guidance": "1"}
        return estimate.from_query(given | changes)

    return ask
