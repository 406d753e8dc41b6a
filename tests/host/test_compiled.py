"""The compile switch of the loader: one graph for all blocks, steps, sizes and LoRA strengths, to the same result."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def compiled(run_node, models, monkeypatch):
    """(MODEL whose blocks are compiled, list that gets every graph): by torch's own tracer, but run as it is."""
    graphs = []

    def keep(module, inputs):
        graphs.append(module)
        return module.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: original(model, **options | {"backend": keep}))
    torch._dynamo.reset()
    name = "tiny_random_wan2.1_t2v.safetensors"
    given = {"weight_dtype": "float32", "attention": "sdpa", "compile_blocks": True}
    yield run_node("WanModelLoader", model_name=name, **given)[0], graphs
    torch._dynamo.reset()


def test_steps_sizes_and_loras_compile_nothing_anew(compiled, t2v, sample, run_node, models, relative_error):
    model, graphs = compiled
    assert relative_error(sample(model, steps=3), sample(t2v, steps=3)) < 1e-5
    assert len(graphs) == 1
    larger = {"samples": torch.zeros(1, 16, 5, 24, 20)}  # 600 tokens, more than a CPU projects at once otherwise
    assert relative_error(sample(model, steps=3, latent=larger), sample(t2v, steps=3, latent=larger)) < 1e-5
    generator = torch.Generator().manual_seed(0)
    name = "diffusion_model.blocks.0.self_attn.q"
    lora = {f"{name}.lora_down.weight": torch.randn(4, 256, generator=generator)}
    lora[f"{name}.lora_up.weight"] = torch.randn(256, 4, generator=generator)
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / "compiled.safetensors")
    results, unused = (
        [],
        {f"lora_{slot}": "none" for slot in (2, 3, 4)} | {f"strength_{slot}": 1.0 for slot in (2, 3, 4)},
    )
    for strength in (0.2, 0.4):
        given = {"lora_1": "compiled.safetensors", "strength_1": strength, **unused}
        loaded, plain = (run_node("WanLoraLoader", model=base, **given)[0] for base in (model, t2v))
        results.append(sample(loaded, steps=3))
        assert relative_error(results[-1], sample(plain, steps=3)) < 1e-5
    assert relative_error(*results) > 1e-3
    assert len(graphs) == 1


def test_without_a_compiler_the_log_says_so(run_node, models, monkeypatch, caplog, sample, t2v):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    name = "tiny_random_wan2.1_t2v.safetensors"
    with caplog.at_level(logging.WARNING):
        (model,) = run_node("WanModelLoader", model_name=name, weight_dtype="float32", compile_blocks=True)
    assert "not compiled: torch.compile needs a C++ compiler" in caplog.text
    assert torch.equal(sample(model, steps=2), sample(t2v, steps=2))


@pytest.mark.slow
def test_compiled_code_gives_the_same(run_node, models, sample, t2v, relative_error):
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    name = "tiny_random_wan2.1_t2v.safetensors"
    (model,) = run_node("WanModelLoader", model_name=name, weight_dtype="float32", compile_blocks=True)
    assert relative_error(sample(model, steps=3), sample(t2v, steps=3)) < 1e-4
