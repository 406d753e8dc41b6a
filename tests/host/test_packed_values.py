"""Weights that the host reads other than by running the layer: GGUF and scaled fp8 files give the right values."""

import functools
import importlib
from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
import writers
from safetensors.torch import load_file, save_file

FORMS = ("gguf", "gguf_k", "fp8", "plain")
PLACES = ("blocks.0.self_attn.q", "blocks.1.ffn.0")


@pytest.fixture(scope="module")
def case(golden):
    return golden("dit_t2v")


@pytest.fixture(scope="module")
def files(case, tmp_path_factory):
    """Function (form, seed) -> (path of a model, what its weights mean in float32)."""
    folder = tmp_path_factory.mktemp("forms")

    @functools.cache
    def write(form, seed=None):
        weights, path = case.weights(seed), folder / f"{form}_{seed}"
        if form == "plain":
            save_file(weights, path)
            return str(path), weights
        if form == "fp8":
            tensors, metadata, meaning = writers.fp8_scaled(weights, "new")
            save_file(tensors, path, metadata=metadata)
            return str(path), meaning
        return str(path), writers.write_gguf(path, weights, {"gguf": "Q8_0", "gguf_k": "Q4_K"}[form])

    return write


@pytest.fixture(scope="module")
def load(room):
    return lambda path: room("host.model.loading").load(path, "float32")


@pytest.fixture(scope="module")
def load_plain(load, tmp_path_factory):
    """Function from weights to the MODEL of them as a plain file."""

    def write(weights):
        path = tmp_path_factory.mktemp("plain") / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        return load(str(path))

    return write


def answer(patcher, case):
    comfy.model_management.load_models_gpu([patcher])
    x, t, context = case.inputs["x"][None], case.inputs["t"], case.inputs["context"][None]
    return patcher.model.diffusion_model(x, t, context)


def lora_of(case):
    """A LoRA file's tensors, and the differences that they are."""
    generator, weights = torch.Generator().manual_seed(5), case.weights()
    tensors, added = {}, {}
    for place in PLACES:
        rows, columns = weights[f"{place}.weight"].shape
        up, down = (0.15 * torch.randn(shape, generator=generator) for shape in ((rows, 4), (4, columns)))
        tensors |= {f"diffusion_model.{place}.lora_up.weight": up, f"diffusion_model.{place}.lora_down.weight": down}
        added[f"{place}.weight"] = up @ down
    return tensors, added


def merging():
    return importlib.import_module("comfy_extras.nodes_model_merging")


def with_lora(model, case):
    return comfy.sd.load_lora_for_models(model, None, lora_of(case)[0], 1.0, 0)[0]


def add(weights, added, strength=1.0):
    return {name: w + strength * added[name] if name in added else w for name, w in weights.items()}


@pytest.mark.parametrize("patched", [False, True], ids=["", "with a LoRA"])
@pytest.mark.parametrize("form", ["gguf", "gguf_k", "fp8"])
def test_model_save(form, patched, files, load, load_plain, case, relative_error):
    """fp8 with a LoRA is rounded to fp8 again where the host writes fp8."""
    path, meaning = files(form)
    model = with_lora(load(path), case) if patched else load(path)
    merging().ModelSave().save(model, f"packed/{form}{patched}")
    saved = sorted(Path(folder_paths.get_output_directory()).glob(f"packed/{form}{patched}_*.safetensors"))[-1]
    expected = answer(load_plain(add(meaning, lora_of(case)[1]) if patched else meaning), case)
    bar = 0.03 if form == "fp8" and patched else 1e-5
    assert relative_error(answer(load(str(saved)), case), expected) < bar
    if form != "fp8":  # any loader reads the file
        assert all(tensor.is_floating_point() for tensor in load_file(saved).values())


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_model_merge(first, second, files, load, load_plain, case, relative_error):
    one, two = files(first), files(second, 5)
    merged = merging().ModelMergeSimple().merge(load(one[0]), load(two[0]), 0.7)[0]
    mixed = {name: 0.7 * one[1][name] + 0.3 * two[1][name] for name in one[1] if "modulation" not in name}
    expected = answer(
        load_plain(one[1] | mixed), case
    )  # the host's merging passes over modulations, on its own class too
    bar = 0.03 if first == "fp8" else 1e-5  # the first model's fp8 weights are rounded to fp8 again by the host
    assert relative_error(answer(merged, case), expected) < bar


@pytest.mark.parametrize("form", ["gguf", "fp8"])
def test_subtract_and_add_give_back_a_difference(form, files, load, load_plain, case, relative_error):
    base, other = files("plain", 5), files(form)
    difference = merging().ModelSubtract().merge(load(other[0]), load(base[0]), 1.0)[0]
    third = files("plain", 9)
    total = merging().ModelAdd().merge(load(third[0]), difference)[0]
    names = [name for name in base[1] if "modulation" not in name]
    weights = third[1] | {name: third[1][name] + other[1][name] - base[1][name] for name in names}
    assert relative_error(answer(total, case), answer(load_plain(weights), case)) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_lora_hooks(form, files, load, load_plain, case, relative_error):
    """Twice, since the host keeps what it made, and gone after."""
    path, meaning = files(form)
    tensors, added = lora_of(case)
    base = load(path)
    before = answer(base, case)
    groups = {strength: comfy.hooks.create_hook_lora(tensors, strength, 0.0) for strength in (0.5, 1.0)}
    model, target = base.clone(), comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    comfy.model_management.load_models_gpu([model])
    model.register_all_hook_patches(groups[0.5].clone_and_combine(groups[1.0]), target)
    expected = {s: answer(load_plain(add(meaning, added, s)), case) for s in (0.0, 0.5, 1.0)}
    for strength in (1.0, 0.5, 1.0, 0.0, 1.0):
        model.patch_hooks(groups.get(strength))
        x, t, context = case.inputs["x"][None], case.inputs["t"], case.inputs["context"][None]
        assert relative_error(model.model.diffusion_model(x, t, context), expected[strength]) < 1e-5
    model.patch_hooks(None)
    assert relative_error(answer(base, case), before) < 1e-6


@pytest.mark.parametrize("form", ["gguf", "fp8", "plain"])
def test_lora_extraction(form, files, load, load_plain, case, relative_error):
    """The LoRA of a model with a LoRA, less the model, is that LoRA."""
    extract = importlib.import_module("comfy_extras.nodes_lora_extract")
    path, added = files(form)[0], lora_of(case)[1]
    difference = merging().ModelSubtract().merge(with_lora(load(path), case), load(path), 1.0)[0]
    kind = extract.LORAType.FULL_DIFF
    found = extract.calc_lora_model(difference, 4, "diffusion_model.", "diffusion_model.", {}, kind, bias_diff=False)
    for place in PLACES:
        assert relative_error(found[f"diffusion_model.{place}.diff"].float(), added[f"{place}.weight"]) < 0.04


@pytest.mark.parametrize("form", ["gguf", "gguf_k"])
def test_state_dict(form, files, load, case):
    path, meaning = files(form)
    model = load(path)
    state_dict = model.model_state_dict("diffusion_model.")
    for place in PLACES:
        assert torch.equal(state_dict[f"diffusion_model.{place}.weight"], meaning[f"{place}.weight"])
    assert model.model_size() < 0.8 * sum(tensor.nbytes for tensor in meaning.values())
