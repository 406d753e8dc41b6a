"""Every form of file makes the same model: layouts and parts bit for bit, quantised ones as plainly dequantised."""

import functools
import itertools

import comfy.model_management
import pytest
import torch
import writers
from safetensors.torch import save_file

from wan_model.weights import layouts


def velocity(patcher, case):
    """The network's answer to the golden inputs with the model loaded as for sampling; float32."""
    comfy.model_management.load_models_gpu([patcher])
    inputs = case.inputs
    x = torch.cat([inputs["x"], inputs["y"]]) if "y" in inputs else inputs["x"]
    return patcher.model.diffusion_model(x[None], inputs["t"], inputs["context"][None], clip_fea=inputs.get("clip_fea"))


def aligned(patcher):
    """`patcher` with its weights out of the mapped file: the last bit of a product depends on their alignment."""
    for parameter in patcher.model.diffusion_model.parameters():
        parameter.data = parameter.data.clone()
    return patcher


@pytest.fixture(scope="module")
def weights_of(golden):
    """Function from the name of a golden case to its weights."""
    return functools.lru_cache(lambda name: golden(name).weights())


@pytest.fixture(scope="module")
def host_model(room):
    return room("host.model.loading")


@pytest.fixture
def load(host_model, tmp_path):
    """Function that writes weights to a file and loads it."""

    numbers = itertools.count()

    def write(weights, dtype="float32", metadata=None):
        path = tmp_path / f"{next(numbers)}.safetensors"  # a new file each: the models before stay mapped in theirs
        save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata=metadata)
        return host_model.load(str(path), dtype)

    return write


@pytest.mark.parametrize("case_name", ["dit_t2v", "dit_i2v"])
def test_every_layout_gives_the_same_bits(load, host_model, golden, weights_of, tmp_path, case_name):
    case = golden(case_name)
    weights = weights_of(case_name)
    expected = velocity(aligned(load(weights)), case)
    names = layouts.rename(weights, layouts.inverse(layouts.DIT_DIFFUSERS))
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    files = {
        "diffusers": load({names[name]: tensor for name, tensor in weights.items()}),
        "checkpoint": load({f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}),
        "DiffSynth": load({f"model.{name}": tensor for name, tensor in weights.items()}),
        "parts": host_model.load(str(writers.write_parts(tmp_path / "parts.safetensors", weights)), "float32"),
        "pth": host_model.load(str(tmp_path / "model.pth"), "float32"),
    }
    for layout, patcher in files.items():
        assert torch.equal(velocity(aligned(patcher), case), expected), layout


def test_plain_fp8_is_what_its_values_say(load, golden, weights_of, relative_error):
    case, weights = golden("dit_t2v"), weights_of("dit_t2v")
    for dtype, choice in ((torch.float8_e4m3fn, "fp8_e4m3fn"), (torch.float8_e5m2, "fp8_e5m2")):
        stored = {
            name: tensor.to(dtype) if tensor.ndim == 2 and name.startswith("blocks") else tensor
            for name, tensor in weights.items()
        }
        expected = velocity(load({name: tensor.float() for name, tensor in stored.items()}), case)
        patcher = load(stored, dtype=choice)
        parameters = dict(patcher.model.diffusion_model.named_parameters())
        assert parameters["blocks.0.self_attn.q.weight"].dtype == dtype
        assert parameters["blocks.0.self_attn.norm_q.weight"].dtype.itemsize > 1
        assert parameters["head.head.weight"].dtype == parameters["blocks.0.modulation"].dtype == torch.float32
        assert relative_error(velocity(patcher, case), expected) < (0.1 if dtype == torch.float8_e4m3fn else 0.2)


@pytest.mark.parametrize("form", ["old", "new", "header"])
@pytest.mark.parametrize("case_name, diffusers", [("dit_t2v", False), ("dit_i2v", True)])
def test_scaled_fp8_is_its_plain_dequantisation(load, golden, weights_of, relative_error, form, case_name, diffusers):
    case = golden(case_name)
    tensors, metadata, meaning = writers.fp8_scaled(weights_of(case_name), form)
    expected = velocity(load(meaning), case)
    if diffusers and form != "header":
        names = layouts.rename(tensors, layouts.inverse(layouts.DIT_DIFFUSERS))
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    patcher = load(tensors, dtype="auto", metadata=metadata)
    layer = patcher.model.diffusion_model.blocks[0].self_attn.q
    assert type(layer.weight.data).__name__ == "QuantizedTensor" or type(layer.weight).__name__ == "QuantizedTensor"
    assert patcher.model.diffusion_model.head.head.weight.dtype == torch.float32
    assert relative_error(velocity(patcher, case), expected) < 1e-5
    assert patcher.model_size() < 0.8 * sum(tensor.nbytes for tensor in meaning.values())


def test_a_quantised_file_is_not_quantised_again(load, weights_of):
    tensors, metadata, _ = writers.fp8_scaled(weights_of("dit_t2v"), "new")
    with pytest.raises(ValueError, match="quantised already"):
        load(tensors, dtype="fp8_e4m3fn", metadata=metadata)
    tensors["blocks.0.self_attn.q.comfy_quant"] = torch.tensor(list(b'{"format": "int3"}'), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"quantised as int3, this ComfyUI reads .*float8_e4m3fn"):
        load(tensors)


KINDS = ["Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K", "F16", "BF16"]


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_is_its_plain_dequantisation(load, host_model, golden, weights_of, relative_error, tmp_path, kind):
    case = golden("dit_t2v")
    meaning = writers.write_gguf(tmp_path / "model.gguf", weights_of("dit_t2v"), kind)
    expected = velocity(load(meaning), case)
    patcher = host_model.load(str(tmp_path / "model.gguf"), "float32")
    assert relative_error(velocity(patcher, case), expected) < 1e-5
    layer = patcher.model.diffusion_model.blocks[0].self_attn.q
    assert layer.weight.dtype == (torch.float32 if kind in ("F16", "BF16") else torch.uint8)


@pytest.mark.parametrize(
    "kind, bf16, expected",
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float16, True, torch.float16),
        (torch.float32, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float16),
    ],
)
def test_auto_keeps_the_half_precision_of_the_file(room, monkeypatch, kind, bf16, expected):
    """On a card that has both, or float16 alone; a float32 file is computed in Wan's own bfloat16."""
    management = comfy.model_management
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: True)
    monkeypatch.setattr(management, "should_use_bf16", lambda *_, **__: bf16)
    weights = {"blocks.0.ffn.0.weight": torch.empty(8, 8, dtype=kind, device="meta")}
    config = room("host.model.classes").config_class("t2v")
    assert room("host.model.precision").dtypes(config, weights, "auto", False) == (expected, None)
    assert room("host.model.precision").dtypes(config, weights, "auto", True) == (
        None,
        torch.bfloat16 if bf16 else torch.float16,
    )
