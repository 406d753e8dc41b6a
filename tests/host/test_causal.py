"""Causal models in the host: its sampler on our MODEL, and what it is refused for."""

import dataclasses
import functools
import json
import shutil

import comfy.model_base
import comfy.model_management
import comfy.utils
import pytest
import safetensors.torch
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from official import files, runner

import nodes

HOST_HAS_CAUSAL = hasattr(comfy.model_base, "WAN21_CausalAR")
needs_sampler = pytest.mark.skipif(not HOST_HAS_CAUSAL, reason="this ComfyUI has no sampler of causal models")


@pytest.fixture
def model(room, tmp_path):
    path = files.write_dit(tmp_path / "causal.safetensors", "causal")
    return room("host.model.loading").load(str(path), "float32")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(model, cfg=1.0, frames=3):
    """The latent of the host's sampler of causal models, framewise, in two steps."""
    runner.load_extra_nodes()
    text = [[random(1, 8, 4096), {}]]
    return runner.run_node(
        "SamplerCustom",
        model=model, add_noise=True, noise_seed=1, cfg=cfg, positive=text, negative=text,
        sampler=runner.run_node("SamplerARVideo", num_frame_per_block=1)[0], sigmas=torch.tensor([1.0, 0.8, 0.0]),
        latent_image={"samples": torch.zeros(1, 16, frames, 8, 8)},
    )[0]["samples"]  # fmt: skip


def rollout(room, model, noise, renoise, **options):
    """The latent of `wan_model` alone, as the host has it."""
    network = room("wan_model").build_dit(dict(model.model.diffusion_model.state_dict()))
    blocks = room("wan_model.causal").rollout(network, noise, random(1, 8, 4096), renoise=renoise, **options)
    return model.model.process_latent_out(torch.cat(list(blocks), dim=2))


@pytest.fixture
def wan_sampler(run_node):
    def run(model, frames, **changes):
        text, latent = [[random(1, 8, 4096), {}]], {"samples": torch.zeros(1, 16, frames, 8, 8)}
        widgets = {"seed": 1, "denoise": 1.0, "steps": 20, "guidance": 5.0, "shift": 8.0, "solver": "unipc"}
        inputs = {"model": model, "positive": text, "negative": text, "latent": latent, "preset": "self-forcing"}
        return run_node("WanSampler", **inputs | widgets | changes)[0]["samples"]

    return run


def host_noise(frames, block, steps):
    """The noise of a run from seed 1, and what is added after each step but the last: block by block."""
    noise = torch.randn((1, 16, frames, 8, 8), generator=torch.manual_seed(1))
    draw = default_noise_sampler(noise[:, :, :block], seed=1)
    blocks = [torch.stack([draw(None, None) for _ in range(steps - 1)]) for _ in range(frames // block)]
    return noise, torch.cat(blocks, dim=3)


def test_wan_sampler_makes_blocks(model, room, wan_sampler, relative_error):
    """Four steps, blocks of three frames; more frames than the window holds."""
    noise, renoise = host_noise(9, 3, 4)
    model = model.clone()
    settings = room("wan_model.variants.rollout").Rollout(block=3, window=6, sink=1)
    model.model_options["transformer_options"]["wan_rollout"] = settings
    sigmas = [1.0, 0.9375, 0.8333333, 0.625]
    expected = rollout(room, model, noise, renoise, sigmas=sigmas, blocks=3, window=6, sink=1)
    assert relative_error(wan_sampler(model, 9), expected) < 1e-4


def test_wan_sampler_goes_on_from_given_frames(model, room, wan_sampler, relative_error):
    given, model = random(1, 16, 1, 8, 8, seed=4), model.clone()
    model.model_options["transformer_options"]["ar_config"] = {"initial_latent": given}
    noise, renoise = host_noise(4, 3, 4)
    initial = model.model.process_latent_in(given)
    settings = {"sigmas": [1.0, 0.9375, 0.8333333, 0.625], "blocks": 3, "initial": initial}
    expected = rollout(room, model, noise[:, :, 1:], renoise, **settings)
    made = wan_sampler(model, 4)
    assert relative_error(made[:, :, 1:], expected) < 1e-4
    assert relative_error(made[:, :, :1], given) < 1e-6


def test_a_framewise_file_by_its_name(room, tmp_path, wan_sampler, relative_error):
    path = files.write_dit(tmp_path / "causal_forcing-framewise.safetensors", "causal")
    model = room("host.model.loading").load(str(path), "float32")
    noise, renoise = host_noise(2, 1, 4)
    expected = rollout(room, model, noise, renoise, sigmas=[1.0, 0.9375, 0.8333333, 0.625], blocks=1)
    assert relative_error(wan_sampler(model, 2), expected) < 1e-4


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_wan_sampler_with_a_solver_of_the_ode(solver, model, room, wan_sampler, relative_error):
    steps = {"solver": solver, "steps": 4, "shift": 3.0}
    made = wan_sampler(model, 6, preset="none", guidance=1.0, **steps)
    network = room("wan_model").build_dit(dict(model.model.diffusion_model.state_dict()))
    text, sigmas = random(1, 8, 4096), room("wan_model.solvers").flow_sigmas(4, 3.0, solver)
    settings = {"sigmas": sigmas, "guidance": 1.0, "blocks": 3, "solver": solver}
    blocks = room("wan_model.causal").guided(network, host_noise(6, 3, 2)[0], text, text, **settings)
    assert relative_error(made, model.model.process_latent_out(torch.cat(list(blocks), dim=2))) < 1e-4


@pytest.mark.parametrize("words", [8, 9], ids=["both prompts at once", "one after the other"])
def test_wan_sampler_with_guidance(words, model, room, wan_sampler, relative_error):
    """Each prompt has a cache of its own; more frames than the window holds."""
    model, negative = model.clone(), random(1, words, 4096, seed=7)
    settings = room("wan_model.variants.rollout").Rollout(block=3, window=6, sink=1)
    model.model_options["transformer_options"]["wan_rollout"] = settings
    steps = {"solver": "unipc", "steps": 4, "shift": 3.0}
    made = wan_sampler(model, 9, preset="none", guidance=3.0, negative=[[negative, {}]], **steps)
    network = room("wan_model").build_dit(dict(model.model.diffusion_model.state_dict()))
    sigmas = room("wan_model.solvers").flow_sigmas(4, 3.0, "unipc")
    settings = {"sigmas": sigmas, "guidance": 3.0, "blocks": 3, "window": 6, "sink": 1}
    noise = host_noise(9, 3, 2)[0]
    blocks = room("wan_model.causal").guided(network, noise, random(1, 8, 4096), negative, **settings)
    expected = model.model.process_latent_out(torch.cat(list(blocks), dim=2))
    assert relative_error(made, expected) < 1e-4
    without = wan_sampler(model, 9, preset="none", guidance=1.0, **steps)
    assert relative_error(without, expected) > 0.01


@pytest.fixture
def told(room, tmp_path):
    """A file whose header says how it is run: frame by frame, near its first one, after finished frames with noise."""
    rollout = {"block": 1, "window": 3, "sink": 1, "near_sink": True, "context_noise": 0.15}
    sampling = {"solver": "euler", "steps": 3, "shift": 3.0, "guidance": 2.0}
    path = files.write_dit(tmp_path / "told.safetensors", "causal")
    weights, header = safetensors.torch.load_file(path), {"config": json.dumps({"transformer": {"causal_ar": True}})}
    header |= {"rollout": json.dumps(rollout), "sampling": json.dumps(sampling)}
    safetensors.torch.save_file(weights, path, metadata=header)
    return room("host.model.loading").load(str(path), "float32")


def test_the_header_tells_how_it_is_run(told, room, wan_sampler, relative_error):
    network = room("wan_model").build_dit(dict(told.model.diffusion_model.state_dict()))
    negative, noise = random(1, 8, 4096, seed=7), host_noise(5, 1, 2)[0]
    settings = {"sigmas": room("wan_model.solvers").flow_sigmas(3, 3.0, "euler"), "guidance": 2.0, "solver": "euler"}
    settings |= {"blocks": 1, "window": 3, "sink": 1, "near_sink": True, "context_time": 150.0, "context_noise": noise}
    made = list(room("wan_model.causal").guided(network, noise, random(1, 8, 4096), negative, **settings))
    expected = told.model.process_latent_out(torch.cat(made, dim=2))
    assert relative_error(wan_sampler(told, 5, preset="auto", negative=[[negative, {}]]), expected) < 1e-4
    plain = told.clone()
    plain.model_options["transformer_options"]["wan_rollout"] = room("wan_model.variants.rollout").Rollout(1, 3, 1)
    assert relative_error(wan_sampler(plain, 5, preset="auto", negative=[[negative, {}]]), expected) > 1e-3


def test_auto_is_self_forcing_where_nothing_tells(model, wan_sampler, relative_error):
    assert relative_error(wan_sampler(model, 3, preset="auto", guidance=5.0), wan_sampler(model, 3)) < 1e-6


def test_a_cache_in_ram_makes_the_same(model, room, wan_sampler, relative_error, monkeypatch, caplog):
    """A card of which little is left: the run says where its cache lies. What is read from it is brought back."""
    made, estimate, seen = wan_sampler(model, 6), room("host.editor.estimate"), []
    monkeypatch.setattr(estimate, "here", lambda *_: estimate.Place("a card", 2**20, 2**34, own_memory=True))
    cache = room("wan_model.causal").Cache
    monkeypatch.setattr(cache, "__init__", functools.partialmethod(_noted, cache.__init__, seen))
    with caplog.at_level("INFO"):
        assert relative_error(wan_sampler(model, 6), made) < 1e-6
    assert "The keys and values of 21 latent frames lie in RAM" in caplog.text and set(seen) == {"cpu"}


def _noted(self, init, seen, capacity, sink=0, device=None):
    seen.append(device)
    init(self, capacity, sink, device)


def test_the_host_makes_room_for_a_block_and_the_window(model, room, wan_sampler, asked_memory):
    wan_sampler(model, 27)
    memory, config = room("host.model.memory"), model.model.diffusion_model.config
    shape, plain = (2, 16, 3, 8, 8), dataclasses.replace(config, variant="t2v")
    cache = room("wan_model.causal").cache_bytes(config, shape, 21, torch.float32)
    assert asked_memory[-1] == memory.needed(plain, shape, torch.float32) + cache


@pytest.mark.parametrize(("choice", "is_causal"), [("auto", False), ("causal", True), ("not causal", False)])
def test_the_loader_chooses(choice, is_causal, run_node, models, room):
    (model,) = run_node(
        "WanModelLoader",
        model_name="tiny_random_wan2.1_t2v.safetensors", weight_dtype="float32", causal=choice,
    )  # fmt: skip
    assert isinstance(model.model.diffusion_model, room("host.model.causal").CausalDiT) == is_causal


def test_what_cannot_be_causal(run_node, models):
    i2v = {"model_name": "tiny_random_wan2.1_i2v.safetensors", "weight_dtype": "float32", "causal": "causal"}
    with pytest.raises(ValueError, match="only text-to-video weights are run as a causal model"):
        run_node("WanModelLoader", **i2v)
    t2v = i2v | {"model_name": "tiny_random_wan2.1_t2v.safetensors"}
    with pytest.raises(ValueError, match="VACE blocks make a model that is not causal"):
        run_node("WanModelLoader", **t2v, vace_name="tiny_random_wan2.1_vace.safetensors")


def test_a_header_that_is_wrong_can_be_overruled(run_node, models):
    """Image-to-video weights whose header says that they are causal: refused by it, loaded when told not to."""
    path = models / "diffusion_models" / "told_causal_i2v.safetensors"
    weights = safetensors.torch.load_file(models / "diffusion_models" / "tiny_random_wan2.1_i2v.safetensors")
    header = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    safetensors.torch.save_file(weights, path, header)
    try:
        assert nodes.NODE_CLASS_MAPPINGS["WanModelLoader"].validate_inputs(model_name=path.name) is True
        with pytest.raises(ValueError, match="told_causal_i2v"):
            run_node("WanModelLoader", model_name=path.name, weight_dtype="float32")
        (model,) = run_node("WanModelLoader", model_name=path.name, weight_dtype="float32", causal="not causal")
        assert model.model.diffusion_model.config.variant == "i2v"
    finally:
        path.unlink()


def test_guidance_at_some_noise_levels_alone(model, room, wan_sampler, relative_error):
    """The negative prompt's cache gets each finished block, at whatever levels it is asked for."""
    settings, steps = room("host.sampling.guidance").Settings, {"solver": "euler", "steps": 4, "shift": 3.0}
    apply, guided = room("host.sampling.guidance").apply, {"preset": "none", "guidance": 3.0, **steps}
    negative = [[random(1, 8, 4096, seed=7), {}]]
    never = wan_sampler(apply(model, settings(0.001, 0.0005, False, 0)), 6, negative=negative, **guided)
    alone = wan_sampler(model, 6, preset="none", guidance=1.0, **steps)
    assert relative_error(never, alone) < 1e-5
    first = wan_sampler(apply(model, settings(1.0, 0.95, False, 0)), 6, negative=negative, **guided)
    always = wan_sampler(model, 6, negative=negative, **guided)
    assert relative_error(first, alone) > 1e-3 and relative_error(first, always) > 1e-3


def test_several_prompts_of_one_kind_are_refused(model, wan_sampler):
    """By time and by batch: the keys and values of the text are those of one prompt."""
    parts = {"start_percent": 0.0, "end_percent": 0.5}, {"start_percent": 0.5, "end_percent": 1.0}
    for options in (parts, ({}, {})):
        text = [[random(1, 8, 4096, seed=seed), part] for seed, part in enumerate(options)]
        with pytest.raises(ValueError, match="of one positive prompt, and the conditioning has several"):
            wan_sampler(model, 3, positive=text)


def test_cancel_and_progress(model, wan_sampler, monkeypatch):
    """Progress counts the steps of all blocks, and a cancelled run leaves nothing on the MODEL."""
    seen = []

    def update(bar, value, total=None, preview=None, **options):
        seen.append((value, total))
        if len(seen) == 6:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        wan_sampler(model, 9)
    assert seen == [(value, 12) for value in range(1, 7)]
    assert "ar_state" not in model.model_options["transformer_options"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 4}, "has 4 latent frames, and causal.safetensors makes blocks of 3: choose a length of 9"),
        ({"frames": 3, "end_step": 2}, "its run cannot be split"),
    ],
)
def test_what_wan_sampler_cannot_make(changes, words, model, wan_sampler):
    with pytest.raises(ValueError, match=words):
        wan_sampler(model, **changes)


def test_a_step_cache_is_refused(model, room, wan_sampler):
    step_cache = room("host.sampling.step_cache")
    cached = step_cache.apply(model, step_cache.Settings("easycache", 0.1, 0.1, 0.9))
    with pytest.raises(ValueError, match="step cache would reuse"):
        wan_sampler(cached, 3)


@needs_sampler
def test_it_is_the_authors_rollout(model, room, relative_error):
    """The host's sampler draws its noise itself; with the same noise it makes what our rollout does."""
    drawn = []

    def draw(like, generate=torch.randn_like):
        drawn.append(generate(like))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", draw)
        made = sample(model)
    noise = torch.randn((1, 16, 3, 8, 8), generator=torch.manual_seed(1))
    latent = rollout(room, model, noise, torch.cat(drawn, dim=2)[None], sigmas=[1.0, 0.8], blocks=1)
    assert relative_error(made, latent) < 1e-4


@needs_sampler
def test_guidance_is_refused(model):
    with pytest.raises(ValueError, match="set cfg to 1, or use WanSampler"):
        sample(model, cfg=2.0)


@needs_sampler
def test_an_altered_block_is_refused(model):
    model.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda x, *arguments, **options: x)
    with pytest.raises(ValueError, match="replaces parts of the network's blocks"):
        sample(model)


@needs_sampler
def test_the_hosts_inner_calls(model, room, relative_error):
    """`forward_block` with the caches of `init_kv_caches`; a reset forgets all frames."""
    network = model.model.diffusion_model
    x, t, text = random(1, 16, 2, 8, 8), torch.full((1, 2), 600.0), random(1, 8, 4096)
    caches, texts = network.init_kv_caches(1, 64, "cpu", torch.float32), network.init_crossattn_caches(1, "cpu", None)
    first = network.forward_block(x, t, text, 0, caches, texts)
    assert [cache["end"] for cache in caches] == [32]
    second = network.forward_block(x, t, text, 2, caches, texts)
    assert [cache["end"] for cache in caches] == [64]
    network.reset_kv_caches(caches)
    assert relative_error(second, first) > 1e-3
    assert relative_error(network.forward_block(x, t, text, 0, caches, texts), first) < 1e-6
    network.reset_crossattn_caches(texts)
    other = network.forward_block(x, t, random(1, 8, 4096, seed=9), 0, caches, texts)
    assert relative_error(other, first) > 1e-3


def test_the_host_makes_room_for_the_cache(model, room):
    """As long as the clip where it is the host's own; the estimate of ours counts the window and one block."""
    config, shape = model.model.diffusion_model.config, (1, 16, 81, 60, 104)
    plain = dataclasses.replace(config, variant="t2v")
    frame = 2 * config.layers * config.dim * 4 * 30 * 52
    text = 2 * config.layers * config.dim * 4 * 512
    needed = room("host.model.memory").needed(plain, shape, torch.float32)
    assert model.model.memory_required(shape) == needed + 81 * frame + text

    estimate = room("host.editor.estimate")
    part, place = estimate.part_of_model(model), estimate.here()
    parts = [part, dataclasses.replace(part, config=plain, rollout=None)]
    counted, without = (estimate.estimate([one], shape, 4, False, place)["models"][0]["activations"] for one in parts)
    cost, one = room("wan_model.dit.cost").forward_bytes, (*shape[:2], 3, *shape[3:])
    block, whole = (cost(config, size, torch.float32, chunk=512) for size in (one, shape))
    assert counted == block + 21 * frame + text and without == whole


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_compiled_blocks(room, tmp_path, wan_sampler, relative_error):
    path = str(files.write_dit(tmp_path / "framewise.safetensors", "causal"))
    load = room("host.model.loading").load
    made, compiled = (wan_sampler(load(path, "float32", compile_blocks=on), 3) for on in (False, True))
    assert relative_error(compiled, made) < 1e-4
