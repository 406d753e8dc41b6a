"""Attention backends of a MODEL, what happens where one is missing or broken, NaN, and cancel between blocks."""

import gc
import sys
import types
import weakref

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch

STEPS = 4
PATCH = "optimized_attention_override"


@pytest.fixture(scope="module")
def plain(t2v, sample):
    return sample(t2v, steps=STEPS)


@pytest.fixture
def attending(run_node, models):
    """Function from the name of a backend to the tiny MODEL that the loader makes with it."""

    def load(name):
        inputs = {"model_name": "tiny_random_wan2.1_t2v.safetensors", "weight_dtype": "float32", "attention": name}
        return run_node("WanModelLoader", **inputs)[0]

    return load


def package(monkeypatch, name, function, attend):
    """Installs a package `name` whose `function` is `attend`."""
    module = types.ModuleType(name)
    setattr(module, function, attend)
    monkeypatch.setitem(sys.modules, name, module)


def nan_at(call):
    """An override that returns NaN in one call; the host's attention otherwise."""
    count = 0

    def attend(func, *arguments, **options):
        nonlocal count
        count += 1
        out = func(*arguments, **options)
        return out * float("nan") if count == call else out

    return attend


def test_torch_and_exact_attention_are_the_hosts(t2v, room, plain, attending, sample, relative_error):
    assert relative_error(sample(attending("sdpa"), steps=STEPS), plain) < 1e-5
    exact = t2v.clone()
    exact.model_options["transformer_options"][PATCH] = room("host.model.attention").exact
    assert relative_error(sample(exact, steps=STEPS), plain) < 1e-5


def test_the_choice_belongs_to_one_model(t2v, attending):
    assert PATCH in attending("sage").model_options["transformer_options"]
    assert PATCH not in attending("auto").model_options["transformer_options"]
    assert PATCH not in t2v.model_options["transformer_options"]


@pytest.mark.parametrize("name, module", [("sage", "sageattention"), ("flash", "flash_attn"), ("xformers", "xformers")])
def test_a_missing_package_is_said_once(attending, sample, plain, caplog, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails as if it were not installed
    assert torch.equal(sample(attending(name), steps=STEPS), plain)
    lines = [line for line in caplog.messages if "attention is not possible" in line]
    assert (
        len(lines) == 1 and name in lines[0] and module in lines[0] and "float32 with head size 128 on cpu" in lines[0]
    )


def test_a_package_that_fails_is_said_once(attending, sample, plain, caplog, monkeypatch):
    def attend(*arguments, **options):
        raise AssertionError("Input tensors must be on cuda.\nand more")

    package(monkeypatch, "sageattention", "sageattn", attend)
    assert torch.equal(sample(attending("sage"), steps=STEPS), plain)
    lines = [line for line in caplog.messages if "attention is not possible" in line]
    assert len(lines) == 1 and lines[0].endswith("on cpu: Input tensors must be on cuda.")


def test_running_out_of_memory_is_not_hidden(attending, sample, monkeypatch):
    def attend(*arguments, **options):
        raise torch.cuda.OutOfMemoryError("full")

    package(monkeypatch, "flash_attn", "flash_attn_func", attend)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(attending("flash"), steps=STEPS)


def test_a_package_gets_heads_apart_and_not_the_context(attending, sample, plain, monkeypatch, relative_error):
    shapes = set()

    def attend(q, k, v, tensor_layout):
        shapes.add((q.shape[1:], k.shape[1:], tensor_layout))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    package(monkeypatch, "sageattention", "sageattn", attend)
    assert relative_error(sample(attending("sage"), steps=STEPS), plain) < 1e-5
    assert shapes == {((60, 2, 128), (60, 2, 128), "NHD")}


def test_nan_in_a_step_is_repaired_and_said(t2v, sample, plain, caplog, relative_error):
    model = t2v.clone()
    model.model_options["transformer_options"][PATCH] = nan_at(call=7)  # 2 blocks with 2 attentions: in step 2
    assert relative_error(sample(model, steps=STEPS), plain) < 1e-5
    lines = [line for line in caplog.messages if "not finite" in line]
    assert len(lines) == 1 and lines[0].startswith("Step 2 of 4 (sigma 0.93")


def test_nan_that_stays_is_an_error_that_names_the_step(t2v, sample):
    model, calls = t2v.clone(), []

    def patch(arguments):
        calls.append(1)
        return arguments["x"] * float("inf") if len(calls) > 4 else arguments["x"]

    model.set_model_attn2_patch(patch)
    with pytest.raises(FloatingPointError, match=r"Step 3 of 4 \(sigma 0\.\d+\): .* choose bfloat16"):
        sample(model, steps=STEPS)


def test_cancel_returns_within_one_block_and_frees_the_memory(t2v, sample):
    model, seen, alive = t2v.clone(), [], []

    def patch(arguments):
        seen.append(arguments["block_index"])
        alive.append(weakref.ref(arguments["img"]))
        if len(seen) == 3:
            comfy.model_management.interrupt_current_processing()
        return arguments

    model.set_model_patch(patch, "double_block")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, steps=STEPS)
    assert seen == [0, 1, 0]
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
