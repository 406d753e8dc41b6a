"""Runs that several processes share, on the CPU: real processes, each with its own ComfyUI."""

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import comfy.model_management
import comfy.samplers
import pytest
import torch
import writers
from comfy.patcher_extension import WrappersMP
from official import files
from safetensors.torch import load_file, save_file

import nodes

DEVICES = "cpu x2"


@pytest.fixture(scope="module", autouse=True)
def _end_the_group(room):
    yield
    for team in room("host.parallel.team")._running.values():
        team.close()


@pytest.fixture
def shared(run_node, t2v):
    """Function from devices and a MODEL, the tiny text-to-video one by default, to the MODEL that they share."""
    return lambda devices=DEVICES, model=None, share="auto", weights="replica": run_node(
        "WanParallel", model=model or t2v, devices=devices, share=share, weights=weights
    )[0]


@pytest.fixture
def team(room):
    """Function that returns the group that runs."""
    return lambda: next(iter(room("host.parallel.team")._running.values()))


@pytest.fixture(scope="module")
def deep(models, room):
    """A text-to-video MODEL of thirty blocks."""
    folder = models / "diffusion_models"
    tensors, generator = load_file(folder / "tiny_random_wan2.1_t2v.safetensors"), torch.Generator().manual_seed(7)
    block = {name: tensor for name, tensor in tensors.items() if name.startswith("blocks.0.")}
    for index in range(1, 30):
        for name, tensor in block.items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensors[name.replace("blocks.0.", f"blocks.{index}.")] = tensor + 0.02 * noise
    save_file(tensors, folder / "deep.safetensors")
    return room("host.model.loading").load(str(folder / "deep.safetensors"), "float32")


@pytest.fixture
def lora(t2v, models):
    """Name of a LoRA in the host's folder that changes a layer and a parameter outside of all layers."""
    generator = torch.Generator().manual_seed(5)
    weight = t2v.model.diffusion_model.blocks[0].self_attn.q.weight
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(weight.shape[0], 4, generator=generator),
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(4, weight.shape[1], generator=generator),
        "diffusion_model.blocks.1.modulation.diff": torch.randn(1, 6, weight.shape[1], generator=generator),
    }
    (models / "loras").mkdir(exist_ok=True)
    save_file(tensors, models / "loras" / "parallel.safetensors")
    return "parallel.safetensors"


def ended(pids, within=10.0):
    """Whether none of these processes is left after so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def at_step(model, number, act):
    """A clone of `model` that calls `act` when the network is called for the `number`-th time."""
    calls = []

    def call(executor, *arguments, **options):
        calls.append(None)
        if len(calls) == number:
            act()
        return executor(*arguments, **options)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "act", call)
    return clone


def test_one_device_is_the_model_itself(shared, t2v):
    assert shared("auto") is t2v
    assert shared("cpu x1") is t2v


@pytest.mark.parametrize("share", ["auto", "tokens"])
def test_a_run_is_that_of_one_process(share, shared, sample, t2v, relative_error):
    assert relative_error(sample(shared(share=share), steps=3), sample(t2v, steps=3)) < 1e-5


def test_the_host_makes_room_for_a_part_of_the_activations(shared, sample, t2v, asked_memory):
    latent = {"samples": torch.zeros(1, 16, 9, 32, 32)}
    for model in (t2v, shared()):
        sample(model, steps=1, latent=latent)
    whole, part = asked_memory
    assert part < 0.8 * whole
    assert t2v.model.memory_required((2, 16, 9, 32, 32)) == whole


def test_loras_of_both_loaders_reach_every_process(shared, sample, t2v, lora, run_node, relative_error):
    plain, changed = sample(t2v, steps=2), {"lora_1": lora, "strength_1": 0.7}
    slots = {f"lora_{i}": "none" for i in (2, 3, 4)} | {f"strength_{i}": 1.0 for i in (2, 3, 4)}
    (ours,) = run_node("WanLoraLoader", model=t2v, **changed, **slots)
    (theirs,) = nodes.LoraLoaderModelOnly().load_lora_model_only(t2v, lora, 0.7)
    for model in (ours, theirs, t2v):
        alone = sample(model, steps=2)
        assert relative_error(sample(shared(model=model), steps=2), alone) < 1e-5
        assert model is t2v or relative_error(alone, plain) > 1e-3


@pytest.mark.parametrize("weights", ["replica", "sharded"])
def test_the_hosts_sampler_and_the_step_cache_work_on_it(weights, shared, t2v, prompts, run_node, relative_error):
    def ksampler(model):
        latent = {"samples": torch.zeros(1, 16, 3, 8, 10)}
        return nodes.KSampler().sample(model, 3, 4, 4.0, "euler", "simple", *prompts, latent, 1.0)[0]["samples"]

    cache = {"criterion": "easycache", "budget": 100.0, "start_percent": 0.0, "end_percent": 1.0}
    devices = shared(weights=weights)
    assert relative_error(ksampler(devices), ksampler(t2v)) < 1e-5
    (alone,), (both,) = (run_node("WanStepCache", model=model, **cache) for model in (t2v, devices))
    assert relative_error(ksampler(both), ksampler(alone)) < 1e-5


@pytest.mark.parametrize(
    ("guidance", "chosen", "weights"),
    [(1.0, None, "replica"), (3.0, None, "replica"), (1.0, True, "replica"), (3.0, None, "sharded")],
)
def test_a_causal_model_keeps_its_caches_in_every_process(
    guidance, chosen, weights, shared, models, room, run_node, relative_error
):
    """The file says that it is causal, or the loader does."""
    path = models / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors"
    if chosen is None:
        path = files.write_dit(models / "diffusion_models" / "causal.safetensors", "causal")
    model = room("host.model.loading").load(str(path), "float32", causal=chosen)
    generator = torch.Generator().manual_seed(0)
    width = model.model.diffusion_model.config.text_dim
    positive, negative = ([[torch.randn(1, 8, width, generator=generator), {}]] for _ in range(2))
    inputs = {"positive": positive, "negative": negative, "latent": {"samples": torch.zeros(1, 16, 6, 8, 8)}}
    inputs |= {"seed": 1, "denoise": 1.0, "steps": 2, "guidance": guidance, "shift": 8.0, "solver": "unipc"}
    both = shared(model=model, weights=weights)
    alone, both = (run_node("WanSampler", model=m, **inputs)[0]["samples"] for m in (model, both))
    assert relative_error(both, alone) < 1e-5


@pytest.mark.parametrize("weights", ["replica", "sharded"])
def test_two_experts_are_shared_in_turn(weights, shared, models, room, sample, relative_error):
    load = room("host.model.loading").load
    paths = [models / "diffusion_models" / f"parallel_{noise}_noise.safetensors" for noise in ("high", "low")]
    for path in paths:
        shutil.copy(models / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors", path)
    high, low = (load(str(path), "float32") for path in paths)
    low.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.01)
    run = {"steps": 4, "boundary": 0.9}
    alone = sample(high, low_noise_model=low, **run)
    both = [shared(model=model, weights=weights) for model in (high, low)]
    assert relative_error(sample(both[0], low_noise_model=both[1], **run), alone) < 1e-5
    assert relative_error(sample(high, steps=4), alone) > 1e-3


def test_cancelling_leaves_the_group_as_it_is(shared, sample, t2v, team, relative_error):
    def cancel():
        threading.Timer(0.0, comfy.model_management.interrupt_current_processing).start()

    sample(shared(), steps=1)
    before = team()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(at_step(shared(), 2, cancel), steps=200)
    assert relative_error(sample(shared(), steps=2), sample(t2v, steps=2)) < 1e-5
    assert team() is before and before.is_open


def test_inputs_that_do_not_fit_leave_the_group_as_it_is(shared, sample, t2v, team, prompts, relative_error):
    sample(shared(), steps=1)
    before = team()
    wide = [[torch.cat((prompts[0][0][0],) * 2, dim=-1), {}]]
    with pytest.raises(ValueError, match="text embedding has"):
        nodes.KSampler().sample(
            shared(), 3, 4, 1.0, "euler", "simple", wide, wide, {"samples": torch.zeros(1, 16, 3, 8, 10)}
        )
    assert relative_error(sample(shared(), steps=2), sample(t2v, steps=2)) < 1e-5
    assert team() is before and before.is_open


@pytest.mark.parametrize(
    "name, sentence",
    [("SIGKILL", "A process of Wan Parallel has ended"), ("SIGSTOP", "Process 1 .* no sign of life for 7 seconds")],
)
def test_a_process_that_fails_is_said_and_the_next_run_is_right(
    name, sentence, shared, sample, t2v, team, relative_error
):
    sample(shared(), steps=1)
    first = team()
    pids, struck = [*first.launch.pids, first.launch.agent.pid], []

    def strike():
        os.kill(pids[0], getattr(signal, name))
        struck.append(time.monotonic())

    with pytest.raises(RuntimeError, match=sentence):
        sample(at_step(shared(), 3, strike), steps=50)
    assert time.monotonic() - struck[0] < 15
    assert ended(pids) and not Path(first.launch.folder.name).exists()
    assert relative_error(sample(shared(), steps=2), sample(t2v, steps=2)) < 1e-5


def test_another_version_of_the_pack_is_refused(shared, sample, team, room, monkeypatch):
    sample(shared(), steps=1)
    team().close()
    monkeypatch.setattr(room("host.parallel.version"), "LOADED", "another")
    with pytest.raises(RuntimeError, match=r"Process 1 has another version of Wan Stream .* restart ComfyUI"):
        sample(shared(), steps=1)


@pytest.mark.parametrize(
    "devices, sentence",
    [
        ("cpu x99", "choose 1 to 16"),
        ("0,1", "ComfyUI runs on cpu"),
        ("host:2", r"devices is 'host:2': write auto.* \+ 192\.168\.1\.5: 0,1 for each other machine"),
        ("cpu x1 + host", "devices has 'host' for another machine: write its address and its cards"),
        ("cpu x1 + host: 0", "devices has 0 on host and cpu here"),
        ("cpu x1 + host: cpu x99", "devices has 'cpu x99' on host: name 1 to 16"),
        ("cpu x1 + host: cpu x1 + host: cpu x1", "name each machine once"),
    ],
)
def test_devices_that_are_not_there_are_refused(devices, sentence, shared):
    with pytest.raises(ValueError, match=sentence):
        shared(devices)


def test_a_port_for_other_machines_that_is_taken_is_said(shared, sample, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("WAN_PARALLEL_PORT", str(port := taken.getsockname()[1]))
        with pytest.raises(ValueError, match=rf"Port {port} of 127\.0\.0\.1, where other machines .* is taken"):
            sample(shared("cpu x1 + 127.0.0.1: cpu x1"), steps=1)


def test_what_cannot_travel_is_refused_by_name(shared, t2v, sample):
    attention, patched, compiled = t2v.clone(), t2v.clone(), t2v.clone()
    attention.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    patched.set_model_double_block_patch(lambda arguments: arguments)
    compiled.add_object_patch("diffusion_model.blocks.0", torch.nn.Identity())
    for model, sentence in ((attention, "replaces the attention"), (patched, r"works inside the network \(double_")):
        with pytest.raises(ValueError, match=sentence):
            sample(shared(model=model), steps=1)
    with pytest.raises(ValueError, match=r"replaces blocks\.0, which cannot be sent"):
        shared(model=compiled)


@pytest.mark.parametrize(("devices", "share"), [("cpu x2", "auto"), ("cpu x2", "tokens"), ("cpu x3", "auto")])
def test_weights_are_sharded_and_the_result_is_that_of_replicas(devices, share, shared, sample, deep, relative_error):
    """And the MODEL itself is whole afterwards."""
    alone = sample(deep, steps=2)
    sharded, replicas = (sample(shared(devices, deep, share, weights), steps=2) for weights in ("sharded", "replica"))
    assert torch.equal(sharded, replicas)
    assert relative_error(sharded, alone) < 1e-5
    assert torch.equal(sample(deep, steps=2), alone)


def test_sharded_weights_take_half_of_the_memory(shared, sample, deep, caplog):
    """That is the part that the host loads and the buffers, in both processes; the model itself is whole afterwards."""
    size, loaded = comfy.model_management.module_size, []
    whole, model = size(deep.model), shared(model=deep, weights="sharded")
    caplog.set_level("INFO")
    sample(at_step(model, 1, lambda: loaded.append(size(deep.model))), steps=1)
    ((said, held),) = (record.args for record in caplog.records if "buffers included" in record.message)
    block = size(deep.model.diffusion_model.blocks[0])
    assert said == whole // 2**20 and held == [(loaded[0] + 2 * block) // 2**20] * 2
    assert max(held) < 0.6 * said
    assert size(deep.model) == whole


def test_sharded_weights_have_patches_of_every_kind(shared, sample, deep, models, run_node, relative_error):
    """A LoRA on all blocks, and parameters that take another's place, of this process's blocks and of the other's."""
    tensors, generator = {}, torch.Generator().manual_seed(5)
    for index in range(30):
        name = f"diffusion_model.blocks.{index}.ffn.0"
        out, into = deep.model.diffusion_model.blocks[index].ffn[0].weight.shape
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, into, generator=generator)
    (models / "loras").mkdir(exist_ok=True)
    save_file(tensors, models / "loras" / "all_blocks.safetensors")
    plain = sample(deep, steps=2)
    assert sample(shared(model=deep, weights="sharded"), steps=2).shape == plain.shape
    for _ in range(2):  # the second time the other process has it, and this one's part is loaded
        (changed,) = nodes.LoraLoaderModelOnly().load_lora_model_only(deep, "all_blocks.safetensors", 0.1)
        for index in (4, 5):
            name = f"diffusion_model.blocks.{index}.modulation"
            changed.add_object_patch(name, torch.nn.Parameter(2 * deep.get_model_object(name), False))
        sharded, replicas = (sample(shared(model=changed, weights=w), steps=2) for w in ("sharded", "replica"))
        assert torch.equal(sharded, replicas)
        alone = sample(changed, steps=2)
        assert relative_error(sharded, alone) < 1e-5 < 1e-3 < relative_error(alone, plain)
        assert torch.equal(sample(deep, steps=2), plain)


def test_cancelling_and_a_lost_process_with_sharded_weights(shared, sample, deep, team, relative_error):
    def cancel():
        threading.Timer(0.0, comfy.model_management.interrupt_current_processing).start()

    sharded, alone = shared(model=deep, weights="sharded"), sample(deep, steps=2)
    first = sample(sharded, steps=2)
    before = team()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(at_step(sharded, 2, cancel), steps=200)
    assert torch.equal(sample(deep, steps=2), alone)
    assert torch.equal(sample(sharded, steps=2), first)
    assert team() is before and before.is_open
    with pytest.raises(RuntimeError, match="A process of Wan Parallel has ended"):
        sample(at_step(sharded, 3, lambda: os.kill(before.launch.pids[0], signal.SIGKILL)), steps=50)
    assert torch.equal(sample(deep, steps=2), alone)
    assert torch.equal(sample(sharded, steps=2), first)


def test_control_blocks_are_sharded_too(shared, sample, models, room, relative_error):
    model = room("host.model.loading").load(
        str(models / "diffusion_models" / "tiny_random_wan2.1_vace.safetensors"), "float32"
    )
    alone, latent = sample(model, steps=2), {"samples": torch.zeros(1, 16, 3, 2, 2)}
    sharded, replicas = (sample(shared(model=model, weights=weights), steps=2) for weights in ("sharded", "replica"))
    assert torch.equal(sharded, replicas) and relative_error(sharded, alone) < 1e-5
    with pytest.raises(ValueError, match=r"A frame has 1 tokens, too few for 2 devices .* or replica as weights"):
        sample(shared(model=model, share="tokens", weights="sharded"), steps=1, latent=latent)
    assert torch.equal(sample(model, steps=2), alone)


FORMS = {  # of a file: how it is written, and the loader's dtype
    "fp8": (lambda path, weights: save_file(weights, path), "fp8_e4m3fn"),
    "scaled": (lambda path, weights: save_scaled(path, weights), "float32"),
    "gguf": (lambda path, weights: writers.write_gguf(path, weights, "Q8_0"), "float32"),
}


def save_scaled(path, weights):
    tensors, metadata, _ = writers.fp8_scaled(weights, "new")
    save_file(tensors, path, metadata=metadata)


@pytest.fixture
def in_form(models, room):
    """Function from one of `FORMS` to the tiny text-to-video MODEL in it."""
    folder = models / "diffusion_models"

    def load(form):
        write, dtype = FORMS[form]
        suffix = "gguf" if form == "gguf" else "safetensors"
        weights = load_file(folder / "tiny_random_wan2.1_t2v.safetensors")
        write(folder / f"{form}.{suffix}", {name: weight.float() for name, weight in weights.items()})
        return room("host.model.loading").load(str(folder / f"{form}.{suffix}"), dtype)

    return load


@pytest.mark.parametrize("form", FORMS)
def test_quantised_weights_are_sent_as_they_are_stored(form, in_form, shared, sample, lora):
    """With a LoRA on blocks of both processes: packed weights get it where they are unpacked."""
    plain = in_form(form)
    (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(plain, lora, 0.7)
    sharded, replicas = (sample(shared(model=model, weights=weights), steps=2) for weights in ("sharded", "replica"))
    assert torch.equal(sharded, replicas)
    assert not torch.equal(sharded, sample(shared(model=plain, weights="sharded"), steps=2))


@pytest.mark.parametrize("form", [None, *FORMS])
def test_weights_that_the_host_makes_for_each_use_are_lent_as_it_makes_them(
    form, t2v, in_form, lora, room, relative_error
):
    """Where a model does not fit, the host keeps it elsewhere and its patches as functions."""
    sharding, packed, key = room("host.parallel.sharding"), room("host.model.packed"), "blocks.0.self_attn.q"
    model = in_form(form) if form else t2v
    (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, lora, 0.7)
    layer = model.model.diffusion_model.get_submodule(key)

    def given():
        for each in model.model.diffusion_model.blocks[0].modules():
            with sharding.values(each, torch.device("cpu")) as values:
                assert values.keys() >= dict(each.named_parameters(recurse=False)).keys()
        with sharding.values(layer, torch.device("cpu")) as values:
            weight = values["weight"]
            if packed.is_packed_layer(layer):
                return layer.unpack(weight, torch.float32)
            return (weight.data.dequantize() if hasattr(weight.data, "dequantize") else weight).float().clone()

    try:
        model.patch_model(torch.device("cpu"), lowvram_model_memory=1)
        assert layer.weight_function
        in_parts = given()
        model.unpatch_model(torch.device("cpu"))
        unpatched = given()
        model.patch_model(torch.device("cpu"))
        loaded = given()
    finally:
        model.unpatch_model(torch.device("cpu"))
    assert relative_error(in_parts, loaded) < {None: 1e-5, "gguf": 1e-6}.get(form, 0.1)  # the host rounds by chance
    assert torch.equal(loaded, unpatched) if form == "gguf" else relative_error(unpatched, loaded) > 0.5
