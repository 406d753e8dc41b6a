"""LoRAs of every style change the model by the product that they hold, on plain, quantised and GGUF weights."""

import comfy.model_management
import pytest
import torch
import writers
from safetensors.torch import save_file

from wan_model.weights import layouts

PLACES = ("blocks.0.self_attn.q", "blocks.1.cross_attn.k", "blocks.1.ffn.0", "head.head")
RANK, ALPHA = 4, 2.0


def velocity(patcher, case):
    """The network's answer to the golden inputs with the model loaded as for sampling."""
    comfy.model_management.load_models_gpu([patcher])
    inputs = case.inputs
    return patcher.model.diffusion_model(inputs["x"][None], inputs["t"], inputs["context"][None])


@pytest.fixture(scope="module")
def case(golden):
    return golden("dit_t2v")


@pytest.fixture(scope="module")
def weights(case):
    return case.weights()


@pytest.fixture(scope="module")
def host_lora(room):
    return room("host.model.lora")


@pytest.fixture(scope="module")
def load(room, tmp_path_factory):
    """Function that writes weights to a new file and loads it."""

    def write(weights, metadata=None, dtype="float32"):
        path = tmp_path_factory.mktemp("model") / "model.safetensors"
        save_file(weights, path, metadata=metadata)
        return room("host.model.loading").load(str(path), dtype)

    return write


@pytest.fixture(scope="module")
def base(load, weights):
    return load(weights)


@pytest.fixture
def save(tmp_path):
    """Function that writes a LoRA and gives its path."""

    def write(tensors):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
        return str(tmp_path / "a.safetensors")

    return write


def factors(weights):
    """place -> (up, down) with an effect that is easily seen."""
    generator = torch.Generator().manual_seed(5)
    pairs = {}
    for place in PLACES:
        rows, columns = weights[f"{place}.weight"].shape
        sides = ((rows, RANK), (RANK, columns))
        pairs[place] = tuple(0.15 * torch.randn(side, generator=generator) for side in sides)
    return pairs


def foreign(path):
    return layouts.rename([path], layouts.inverse(layouts.DIT_DIFFUSERS))[path]


STYLES = {
    "comfy": lambda path: (f"diffusion_model.{path}.lora_B.weight", f"diffusion_model.{path}.lora_A.weight"),
    "kohya": lambda path: tuple(f"lora_unet_{path.replace('.', '_')}.lora_{side}.weight" for side in ("up", "down")),
    "peft": lambda path: tuple(f"base_model.model.{foreign(path)}.lora_{side}.weight" for side in "BA"),
    "diffusers": lambda path: tuple(f"transformer.{foreign(path)}.lora_{side}.weight" for side in "BA"),
    "DiffSynth": lambda path: tuple(f"pipe.dit.{path}.lora_{side}.default.weight" for side in "BA"),
    "bare": lambda path: tuple(f"{path}.lora_{side}.default.weight" for side in "BA"),
}


def with_products(weights, pairs, strength):
    """`weights` with the LoRA added by hand."""
    added = {f"{place}.weight": strength * ALPHA / RANK * up @ down for place, (up, down) in pairs.items()}
    return {name: weight + added[name] if name in added else weight for name, weight in weights.items()}


def in_style(style, pairs):
    tensors = {}
    for place, (up, down) in pairs.items():
        names = STYLES[style](place)
        tensors |= dict(zip(names, (up, down), strict=True))
        tensors[names[0].split(".lora_")[0] + ".alpha"] = torch.tensor(ALPHA)
    return tensors


@pytest.mark.parametrize("style", STYLES)
def test_the_change_is_the_product(style, host_lora, load, base, weights, case, save, relative_error):
    pairs = factors(weights)
    expected = velocity(load(with_products(weights, pairs, 0.7)), case)
    untouched = velocity(base, case)
    assert relative_error(expected, untouched) > 0.02
    patched, report = host_lora.apply(base, save(in_style(style, pairs) | {"text.lora_A.weight": torch.ones(1)}), 0.7)
    assert relative_error(velocity(patched, case), expected) < 1e-5
    assert (report.matched, report.unmatched) == (3 * len(PLACES), ["text.lora_A.weight"])
    assert "12 of 13 keys matched, not text.lora_A.weight" in str(report)
    assert torch.equal(velocity(base, case), untouched)


def test_lycoris_and_differences(host_lora, load, base, weights, case, save, relative_error):
    generator = torch.Generator().manual_seed(6)

    def random(*shape):
        return 0.2 * torch.randn(shape, generator=generator)

    w1, w2, a1, b1, a2, b2 = random(2, 2), random(128, 128), *(random(*s) for s in ((256, 4), (4, 256)) * 2)
    bias, modulation, norm = random(256), random(1, 6, 256), random(256)
    changed = dict(weights)
    changed["blocks.0.self_attn.k.weight"] = weights["blocks.0.self_attn.k.weight"] + torch.kron(w1, w2)
    changed["blocks.0.self_attn.v.weight"] = weights["blocks.0.self_attn.v.weight"] + (a1 @ b1) * (a2 @ b2)
    changed["blocks.0.self_attn.o.bias"] = weights["blocks.0.self_attn.o.bias"] + bias
    changed["blocks.0.modulation"] = weights["blocks.0.modulation"] + modulation
    changed["blocks.1.norm3.weight"] = weights["blocks.1.norm3.weight"] + norm
    file = {
        "lycoris_blocks_0_attn1_to_k.lokr_w1": w1,
        "lycoris_blocks_0_attn1_to_k.lokr_w2": w2,
        "lycoris_blocks_0_attn1_to_v.hada_w1_a": a1,
        "lycoris_blocks_0_attn1_to_v.hada_w1_b": b1,
        "lycoris_blocks_0_attn1_to_v.hada_w2_a": a2,
        "lycoris_blocks_0_attn1_to_v.hada_w2_b": b2,
        "diffusion_model.blocks.0.self_attn.o.diff_b": bias,
        "diffusion_model.blocks.0.diff_m": modulation,
        "diffusion_model.blocks.1.norm3.diff": norm,
    }
    untouched = velocity(base, case)
    patched, report = host_lora.apply(base, save(file), 1.0)
    assert (report.matched, report.unmatched) == (9, [])
    assert relative_error(velocity(patched, case), velocity(load(changed), case)) < 1e-5
    assert torch.equal(velocity(base, case), untouched)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_on_gguf_weights(kind, room, host_lora, load, weights, case, save, relative_error, tmp_path):
    meaning = writers.write_gguf(tmp_path / "model.gguf", weights, kind)
    base = room("host.model.loading").load(str(tmp_path / "model.gguf"), "float32")
    untouched, pairs = velocity(base, case), factors(weights)
    expected = velocity(load(with_products(meaning, pairs, 1.0)), case)
    patched, _ = host_lora.apply(base, save(in_style("comfy", pairs)), 1.0)
    for _ in range(2):
        assert relative_error(velocity(patched, case), expected) < 1e-5
        assert torch.equal(velocity(base, case), untouched)
    comfy.model_management.load_models_gpu([patched])
    patched.load(patched.load_device, full_load=True)  # as before each run of a model that is partly on the device
    assert relative_error(velocity(patched, case), expected) < 1e-5
    patched.partially_unload(patched.offload_device, 10**12)  # all layers: their patches must not be added twice
    assert relative_error(velocity(patched, case), expected) < 1e-5
    assert patched.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == torch.uint8


def test_on_scaled_fp8_weights(host_lora, load, weights, case, save, relative_error):
    tensors, metadata, meaning = writers.fp8_scaled(weights, "new")
    base, pairs = load(tensors, metadata, "auto"), factors(weights)
    untouched = velocity(base, case)
    expected = velocity(load(with_products(meaning, pairs, 1.0)), case)
    patched, _ = host_lora.apply(base, save(in_style("comfy", pairs)), 1.0)
    assert relative_error(velocity(patched, case), expected) < 0.03 < relative_error(untouched, expected)
    assert torch.equal(velocity(base, case), untouched)


def test_another_size_is_named(host_lora, base, save):
    other = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 5120),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(5120, 4),
    }
    with pytest.raises(ValueError, match=r"for a Wan model of width 5120 \(14B\), this one has width 256"):
        host_lora.apply(base, save(other), 1.0)


@pytest.mark.parametrize("name", ["transformer.single_blocks.0.lora_A.weight", "blocks.0.self_attn.q.lora_A.weight"])
def test_nothing_matched_is_an_error(name, host_lora, base, save):
    with pytest.raises(ValueError, match="has no key of this Wan model"):
        host_lora.apply(base, save({name: torch.ones(4, 256)}), 1.0)


def test_the_node(run_node, base, weights, case, models, host_lora):
    folder = models / "loras"
    folder.mkdir(exist_ok=True)
    save_file(in_style("comfy", factors(weights)), folder / "some_lora.safetensors")
    slots = {f"lora_{slot}": "none" for slot in range(1, 5)} | {f"strength_{slot}": 1.0 for slot in range(1, 5)}
    (same,) = run_node("WanLoraLoader", model=base, **slots | {"lora_2": "some_lora.safetensors", "strength_2": 0.0})
    assert torch.equal(velocity(same, case), velocity(base, case))
    (once,) = run_node("WanLoraLoader", model=base, **slots | {"lora_2": "some_lora.safetensors", "strength_2": 1.0})
    halves = {
        f"{key}_{slot}": value
        for slot in (1, 3)
        for key, value in (("lora", "some_lora.safetensors"), ("strength", 0.5))
    }
    (twice,) = run_node("WanLoraLoader", model=base, **slots | halves)
    assert torch.allclose(velocity(once, case), velocity(twice, case), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(velocity(once, case), velocity(base, case), rtol=1e-2)
