"""Loading where a newer host brings each weight to the device when it is used: its default on an NVIDIA card."""

import comfy.model_patcher
import pytest
import torch
import writers
from safetensors.torch import save_file

T2V = "tiny_random_wan2.1_t2v.safetensors"


@pytest.fixture
def dynamic(monkeypatch):
    """The host's linear layers have no weight before they are loaded, as with its dynamic patcher."""
    memory = pytest.importorskip("comfy.memory_management", reason="a host before dynamic loading")
    monkeypatch.setattr(memory, "aimdo_enabled", True)


def types(patcher):
    """Name of each weight -> its type now, and the one that the host brings it to the device in."""
    found = {}
    for place, module in patcher.model.diffusion_model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            found[f"{place}.{name}"] = weight.dtype, getattr(module, f"{name}_comfy_model_dtype")
    return found


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "fp8_e4m3fn", "fp8_e4m3fn_fast"])
def test_every_weight_has_the_type_that_it_has_without(room, models, request, dtype):
    path = str(models / "diffusion_models" / T2V)
    without = room("host.model.loading").load(path, dtype)
    request.getfixturevalue("dynamic")
    found = types(room("host.model.loading").load(path, dtype))
    assert found.keys() == {name for name, _ in without.model.diffusion_model.named_parameters()}
    for name, weight in without.model.diffusion_model.named_parameters():
        assert found[name] == (weight.dtype, weight.dtype), name
    assert found["head.head.weight"][1] == found["time_embedding.0.weight"][1] == torch.float32
    assert (found["blocks.0.ffn.0.weight"][1].itemsize == 1) == dtype.startswith("fp8")


def test_a_quantised_file_keeps_its_float32_parts(room, golden, dynamic, tmp_path):
    tensors, metadata, _ = writers.fp8_scaled(golden("dit_t2v").weights(), "new")
    save_file(tensors, tmp_path / "wan.safetensors", metadata=metadata)
    network = room("host.model.loading").load(str(tmp_path / "wan.safetensors"), "bfloat16").model.diffusion_model
    for layer in (network.time_embedding[0], network.time_projection[1]):
        assert layer.weight.dtype == layer.weight_comfy_model_dtype == torch.float32
    assert network.blocks[0].modulation_comfy_model_dtype == torch.float32


def test_the_host_makes_a_copy_without_it(room, t2v, sample):
    """As its compile node and its hooks ask for."""
    make, arguments = t2v.cached_patcher_init
    again = make(*arguments, disable_dynamic=True)
    assert again.model is not t2v.model
    assert torch.equal(sample(again, steps=2), sample(t2v, steps=2))


def test_the_vae_keeps_the_layout_of_its_weights(room, models, monkeypatch):
    """A dynamic patcher brings a weight to the device in the shape of its file, and convolutions would copy it."""
    memory = pytest.importorskip("comfy.memory_management", reason="a host before dynamic loading")
    weight = torch.rand(4, 3, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    (brought,) = memory.interpret_gathered_like([weight], torch.empty(8 * weight.nbytes, dtype=torch.uint8))
    assert brought.is_contiguous() and not weight.is_contiguous()

    class Dynamic(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    vae = room("host.vae.vae").load(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors"))
    assert not isinstance(vae.patcher, Dynamic)
    assert isinstance(room("host.model.loading").load(str(models / "diffusion_models" / T2V)), Dynamic)
    for weight in vae.first_stage_model.parameters():
        assert weight.ndim < 5 or weight.stride(1) == 1
