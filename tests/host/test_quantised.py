"""Files quantised by the host's own tools: the same weights as on the host's own class, and its answers to rounding."""

import importlib
import json
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import folder_paths
import pytest
import torch
import writers
from safetensors.torch import save_file

import nodes

FORMS = {  # what the marker says and how the host is asked to quantise
    "float8_e4m3fn": ({"format": "float8_e4m3fn"}, {"scale": "recalculate"}),
    "float8_e5m2": ({"format": "float8_e5m2"}, {"scale": "recalculate"}),
    "nvfp4": ({"format": "nvfp4"}, {}),
    "mxfp8": ({"format": "mxfp8"}, {}),
    "int8": ({"format": "int8_tensorwise"}, {}),
    "int8 per row": ({"format": "int8_tensorwise"}, {"per_channel": True}),
    "int8_convrot": (
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64},
        {"convrot": True, "convrot_groupsize": 64, "per_channel": True},
    ),
    "w4a4": ({"format": "convrot_w4a4", "convrot_groupsize": 64}, {"convrot_groupsize": 64}),
    "w4a8": (
        {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 64},
        {"group_size": 16, "convrot_groupsize": 64},
    ),
}
MOVES = (-1e-5, -5e-6, -2e-6, 2e-6, 5e-6, 1e-5)  # of the input, relative
KNOWN = {name for name, (form, _) in FORMS.items() if form["format"] in comfy.quant_ops.QUANT_ALGOS}
HAS_TOOLS = "nvfp4" in comfy.quant_ops.QUANT_ALGOS  # 0.3.75 can read one form and write none


@pytest.fixture(scope="module")
def case(golden):
    return golden("dit_t2v")


@pytest.fixture(scope="module")
def load(room):
    return room("host.model.loading").load


def answer(patcher, case, scale=1.0):
    """The network's velocity for the golden inputs, whichever class it is."""
    comfy.model_management.load_models_gpu([patcher])
    x, t, context = case.inputs["x"][None] * scale, case.inputs["t"], case.inputs["context"]
    context = torch.nn.functional.pad(context, (0, 0, 0, 512 - len(context)))[None]
    return patcher.model.diffusion_model(x, t, context)


def values(patcher):
    """Every parameter as plain numbers, by name."""
    tensors = ((name, parameter.data) for name, parameter in patcher.model.diffusion_model.named_parameters())
    return {name: (data.dequantize() if hasattr(data, "_qdata") else data).float() for name, data in tensors}


def write(path, weights, form, options):
    save_file(writers.quantise_by_host(weights, form, **options), path)
    return str(path)


@pytest.mark.skipif(not HAS_TOOLS, reason="this host has no tools to write them")
@pytest.mark.parametrize("name", FORMS)
def test_as_the_hosts_own_class(name, load, case, tmp_path, relative_error):
    """The answers differ by as much as the host's own do when its input moves by 2e-6: activations are rounded."""
    path = write(tmp_path / "a.safetensors", case.weights(), *FORMS[name])
    ours, theirs = load(path, "float32"), comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    mine, host = values(ours), values(theirs)
    assert mine.keys() == host.keys()
    assert all(torch.equal(mine[key], host[key]) for key in mine)
    expected = answer(theirs, case)
    own = max(relative_error(answer(theirs, case, 1 + move), expected) for move in MOVES)
    assert relative_error(answer(ours, case), expected) < max(1e-5, 4 * own)
    plain = answer(load(save(case.weights(), tmp_path / "plain.safetensors"), "float32"), case)
    assert 1e-4 < relative_error(expected, plain) < 0.6  # it is quantised, and still this model


def save(weights, path):
    save_file(weights, path)
    return str(path)


@pytest.mark.skipif(not HAS_TOOLS, reason="this host has no tools to write them")
@pytest.mark.parametrize("name", FORMS)
def test_saved_and_loaded_again(name, load, case, tmp_path):
    patcher = load(write(tmp_path / "a.safetensors", case.weights(), *FORMS[name]), "float32")
    before = values(patcher)
    back = load(saved(patcher, f"again/{name.replace(' ', '_')}"), "float32")
    after = values(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def saved(patcher, prefix):
    """The path of what the host's ModelSave makes of `patcher`."""
    importlib.import_module("comfy_extras.nodes_model_merging").ModelSave().save(patcher, prefix)
    return str(sorted(Path(folder_paths.get_output_directory()).glob(f"{prefix}_*.safetensors"))[-1])


@pytest.mark.parametrize("name", [name for name in FORMS if name not in KNOWN and not name.startswith("float8")])
def test_a_form_that_this_host_does_not_know_is_named_by_check_and_run(name, load, case, models, run_node, room):
    """On 0.3.75, all but fp8."""
    form = FORMS[name][0]
    tensors = dict(case.weights())
    for layer in ("blocks.0.self_attn.q", "blocks.1.ffn.0"):
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.int8)
        tensors[f"{layer}.weight_scale"] = torch.ones(())
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
    path = models / "diffusion_models" / "unknown_form.safetensors"
    save_file(tensors, path)
    sentence = rf"quantised as {form['format']}, this ComfyUI reads .*: update ComfyUI, or choose another file"
    with pytest.raises(ValueError, match=sentence):
        load(str(path))
    valid = nodes.NODE_CLASS_MAPPINGS["WanModelLoader"].validate_inputs(model_name=path.name)
    assert valid is not True and form["format"] in valid
    path.unlink()


def test_int8_without_a_mark_is_named_as_what_it_is(load, room, case, tmp_path):
    tensors = dict(case.weights())
    for name in [name for name in tensors if name.endswith(writers.BULK)]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 127
        tensors |= {name: (tensors[name] / scale).round().to(torch.int8), name + "_scale": scale}
    path = save(tensors, tmp_path / "a.safetensors")
    for ask in (load, room("wan_model.checkpoint").inspect):
        with pytest.raises(ValueError, match=r"are int8 numbers without a mark of their format"):
            ask(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["old", "new", "header"])
def test_scaled_fp8_of_both_types(dtype, form, load, case, tmp_path, relative_error):
    """As the plain dequantisation, loaded and saved again, on both hosts."""
    tensors, metadata, meaning = writers.fp8_scaled(case.weights(), form, dtype)
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    expected = answer(load(save(meaning, tmp_path / "plain.safetensors"), "float32"), case)
    patcher = load(str(tmp_path / "a.safetensors"), "float32")
    assert relative_error(answer(patcher, case), expected) < 1e-5
    back = load(saved(patcher, f"fp8/{form}_{str(dtype)[6:]}"), "float32")
    assert relative_error(answer(back, case), expected) < 1e-5


def test_the_scale_of_a_plain_layer_is_multiplied_in(load, case, tmp_path, relative_error):
    weights = case.weights()
    name = "blocks.0.self_attn.q"
    scaled = weights | {f"{name}.scale_weight": torch.tensor(4.0), f"{name}.weight": weights[f"{name}.weight"] / 4}
    path = save(scaled | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    expected = answer(load(save(weights, tmp_path / "plain.safetensors"), "float32"), case)
    assert relative_error(answer(load(path, "float32"), case), expected) < 1e-6


PACKINGS = ("gguf", "scaled fp8", "plain")


def packed_file(packing, weights, path):
    """(the file, what it means in float32)."""
    if packing == "gguf":
        return str(path) + ".gguf", writers.write_gguf(Path(f"{path}.gguf"), weights, "Q8_0")
    if packing == "plain":
        return save(weights, f"{path}.safetensors"), weights
    tensors, metadata, meaning = writers.fp8_scaled(weights, "old")
    save_file(tensors, f"{path}.safetensors", metadata=metadata)
    return f"{path}.safetensors", meaning


@pytest.mark.parametrize("module", PACKINGS)
@pytest.mark.parametrize("base", PACKINGS)
def test_a_vace_module_of_another_packing(base, module, load, golden, tmp_path, relative_error):
    case = golden("dit_vace")
    weights = case.weights()
    blocks = {name: tensor for name, tensor in weights.items() if name.startswith("vace_")}
    base_path, base_means = packed_file(base, {n: t for n, t in weights.items() if n not in blocks}, tmp_path / "base")
    path, means = packed_file(module, blocks, tmp_path / "module")
    both = base_means | means
    save_file({name: tensor.contiguous() for name, tensor in both.items()}, tmp_path / "plain.safetensors")

    def velocity(patcher):
        comfy.model_management.load_models_gpu([patcher])
        i = case.inputs
        context = {"context": i["context"][None], "vace_context": i["vace_context"][None, None], "vace_strength": [0.8]}
        return patcher.model.diffusion_model(i["x"][None], i["t"], **context)

    expected = velocity(load(str(tmp_path / "plain.safetensors"), "float32"))
    got = velocity(load(base_path, "float32", vace_path=path))
    assert relative_error(got, expected) < 1e-5
