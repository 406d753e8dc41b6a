"""A device that is too small, simulated through the host's own figures: weights stay out and come layer by layer."""

import gzip
import json
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.sd
import pytest
import torch
import writers
from safetensors.torch import save_file

from devtools.environment import ROOT

SHARE = 0.1  # of the weights that find room on the device
TINY = "tiny_random_wan2.1_t2v.safetensors"


@pytest.fixture
def small_device(monkeypatch):
    """Function (model): from now on the device has room for a `share` of its weights and the least for a forward.

    On a CPU the host does not limit itself, so it is told that this is no CPU, and how much is free.
    """

    def limit(model, share=SHARE):
        management = comfy.model_management
        monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
        monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        room = share * model.model_size() + management.minimum_inference_memory()

        def free(device=None, torch_free_too=False):
            left = room - model.loaded_size()
            return (left, left) if torch_free_too else left

        monkeypatch.setattr(management, "get_free_memory", free)

    yield limit
    comfy.model_management.unload_all_models()


@pytest.fixture
def brought(monkeypatch):
    """Bytes of weights that came from outside, one number for every layer that was run so."""
    sizes, cast = [], comfy.ops.cast_bias_weight

    def count(layer, *arguments, **options):
        sizes.append(layer.weight.nbytes)
        return cast(layer, *arguments, **options)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", count)
    return sizes


@pytest.fixture
def load(room, models):
    """Function (file of the tiny models) -> its MODEL in float32."""
    return lambda name=TINY: room("host.model.loading").load(str(models / "diffusion_models" / name), "float32")


def with_lora(model):
    """The MODEL with a LoRA on one layer of each block."""
    lora, generator = {}, torch.Generator().manual_seed(2)
    for block in (0, 1):
        name = f"diffusion_model.blocks.{block}.ffn.0"
        out_dim, in_dim = model.model.diffusion_model.blocks[block].ffn[0].weight.shape
        lora[f"{name}.lora_A.weight"] = torch.randn(4, in_dim, generator=generator)
        lora[f"{name}.lora_B.weight"] = 0.1 * torch.randn(out_dim, 4, generator=generator)
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "lora"])
def test_ten_percent_of_the_weights_give_the_same_clip(load, small_device, brought, sample, relative_error, patched):
    model = with_lora(load()) if patched else load()
    whole = sample(model, steps=2)
    assert model.loaded_size() == model.model_size() and not brought
    comfy.model_management.unload_all_models()
    small_device(model)
    limited = sample(model, steps=2)
    assert model.loaded_size() <= SHARE * model.model_size()
    assert sum(brought) > 2 * (1 - SHARE) * 0.9 * model.model_size()  # all of them in each of two forwards
    assert relative_error(limited, whole) < 1e-5


def test_experts_on_a_small_device(load, small_device, brought, sample, relative_error):
    names = [f"tiny_random_wan2.2_t2v_{noise}_noise.safetensors" for noise in ("high", "low")]
    high, low = (load(name) for name in names)
    whole = sample(high, low_noise_model=low, steps=4)
    comfy.model_management.unload_all_models()
    small_device(high)
    assert relative_error(sample(high, low_noise_model=low, steps=4), whole) < 1e-5
    assert len(brought) > 100


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "lora"])
def test_weights_go_home_to_their_file(load, small_device, patched):
    model = with_lora(load()) if patched else load()
    network = model.model.diffusion_model
    home = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    assert len(model.model.mapped) == len(home)
    small_device(model, share=10)
    comfy.model_management.load_models_gpu([model])
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()  # as moving to a device does
    comfy.model_management.unload_all_models()
    assert all(parameter.data_ptr() == home[name] for name, parameter in network.named_parameters())


@pytest.mark.slow
def test_two_gigabytes_on_a_small_device(room, prompts, small_device, brought, sample, tmp_path, relative_error):
    """The 1.3B model with 10 of its 30 blocks in float32, of random weights."""
    with gzip.open(ROOT / "tests" / "golden" / "checkpoints.json.gz") as file:
        shapes = json.load(file)["official/wan2.1_t2v_1.3B"]
    generator, weights = torch.Generator().manual_seed(5), {}
    for name, shape in shapes.items():
        if not name.startswith("blocks.") or int(name.split(".")[1]) < 10:
            values = torch.empty(shape).uniform_(-0.03, 0.03, generator=generator)
            weights[name] = values + 1 if "norm" in name and name.endswith("weight") else values
    save_file(weights, tmp_path / "large.safetensors")
    del weights
    model = room("host.model.loading").load(str(tmp_path / "large.safetensors"), "float32")
    assert 1.9e9 < model.model_size() < 2.2e9
    text = [[[torch.randn(1, 64, 4096, generator=generator), {}]] for _ in range(2)]
    inputs = {"positive": text[0], "negative": text[1], "steps": 1}
    whole = sample(model, **inputs)
    comfy.model_management.unload_all_models()
    small_device(model)
    brought.clear()
    limited = sample(model, **inputs)
    assert 0.05 * model.model_size() < model.loaded_size() <= SHARE * model.model_size()
    assert sum(brought) > (1 - SHARE) * 0.98 * model.model_size()
    assert relative_error(limited, whole) < 1e-5


def test_a_packed_layer_is_one_object_to_the_host(room, golden_weights, tmp_path, small_device, monkeypatch):
    """By identity it sees to it that its two streams do not both take a buffer for the largest weight."""
    path, seen, cast = tmp_path / "wan.gguf", [], comfy.ops.cast_bias_weight
    writers.write_gguf(path, golden_weights("dit_t2v"), "Q8_0")
    model = room("host.model.loading").load(str(path), "float32")

    def watch(layer, *arguments, **options):
        if isinstance(layer, SimpleNamespace):
            seen.append(layer)
        return cast(layer, *arguments, **options)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", watch)
    small_device(model)
    comfy.model_management.load_models_gpu([model])
    layer = model.model.diffusion_model.blocks[0].ffn[0]
    first, again = layer(torch.ones(1, 3, layer.in_features)), layer(torch.ones(1, 3, layer.in_features))
    assert torch.equal(first, again) and first.any()
    assert len(seen) == 2 and seen[0] is seen[1] and not vars(seen[0])
