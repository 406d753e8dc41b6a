"""The Triton kernels: on a GPU, or by Triton's interpreter; and that they compile for real cards, without one."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize, silu

from wan_model.dit import layers, rope
from wan_model.dit.runtime import Runtime
from wan_model.kernels import fused
from wan_model.vae import Runtime as VAERuntime
from wan_model.vae import build_vae
from wan_model.vae.convolution import RMSNorm

pytest.importorskip("triton", reason="Triton has no wheels for this system")
triton_kernels = pytest.importorskip("wan_model.kernels.triton_kernels")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # on a CPU conftest.py has Triton interpret


@pytest.fixture(autouse=True)
def _exact_float32():
    """Without TF32, which cuDNN takes by default and which errs by 1e-3."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = kept


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def innermost(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("channels", [16, 20, 96])
@pytest.mark.parametrize("seen", [None, 0, 1, 2])
def test_a_convolutions_input_is_assembled_in_one_pass(dtype, bound, channels, seen, relative_error):
    top, bottom, left, right = 1, 0, 2, 1
    history = 0 if seen is None else 2
    x = innermost(noise(2, channels, 3, 6, 7, dtype=dtype))[..., 1:, 2:]  # as a tile's, cut from a larger one
    cache = None if seen is None else innermost(noise(2, channels, seen, 5, 5, seed=1, dtype=dtype))
    gamma = noise(channels, seed=2, dtype=dtype)
    shape = (2, channels, history + 3, top + 5 + bottom, left + 5 + right)
    found = innermost(torch.full(shape, torch.nan, dtype=dtype))
    triton_kernels.activate(x, cache, gamma, found, history, top, left)
    expected = torch.zeros(shape, device=DEVICE)
    inside = expected[..., top : top + 5, left : left + 5]
    if seen:
        inside[:, :, history - seen : history] = cache.float()
    normed = normalize(x.float(), dim=1) * channels**0.5 * gamma.float().view(-1, 1, 1, 1)
    inside[:, :, history:] = silu(normed)
    assert relative_error(found.float(), expected) < bound
    assert torch.equal(found == 0, expected.to(dtype) == 0)


def test_what_is_not_laid_out_for_it_is_left_to_torch():
    assert triton_kernels.is_innermost(innermost(noise(1, 16, 1, 4, 5)))
    assert triton_kernels.is_innermost(innermost(noise(1, 16, 4, 4, 5))[:, :, 2:3, 1:, :3])
    assert not triton_kernels.is_innermost(noise(1, 16, 3, 4, 5))
    assert not triton_kernels.is_innermost(innermost(noise(1, 16, 3, 4, 5))[:, 1:6])


@pytest.mark.parametrize("name", ["vae21", "vae22"])
def test_a_vae_on_the_kernels_is_the_official_one(name, golden, relative_error):
    calls = []

    def activate(*arguments):
        calls.append(arguments)
        original(*arguments)

    original = triton_kernels.activate
    runtime = VAERuntime(kernels=triton_kernels.VAE._replace(activate=activate))
    case = golden(name)
    vae = build_vae(case.weights(), device=DEVICE)
    latents = vae.encode_stream([case.inputs["video"].to(DEVICE)], runtime=runtime)
    assert relative_error(torch.cat(list(latents), dim=2).cpu(), case.outputs["mu"]) < 1e-5
    video = vae.decode_stream(case.inputs["latent"].to(DEVICE), runtime=runtime)
    assert relative_error(torch.cat(list(video), dim=2).cpu(), case.outputs["video"]) < 1e-5
    norms = [module for module in vae.modules() if isinstance(module, RMSNorm) and module.gamma.ndim == 4]
    assert len(calls) > len(norms)  # first and later chunks; torch lays out small frames otherwise on a CPU


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_pairs_are_rotated_in_place(dtype, bound, relative_error):
    table = rope.rope_table([rope.grid_positions((2, 3, 4))], 128, DEVICE)
    x = noise(2, 30, 3 * 128, dtype=dtype)
    part = x[:, 2:26]
    expected = rope.rotate_(part.float().clone(), table)
    found = triton_kernels.rotate_(part, table)
    assert found.data_ptr() == part.data_ptr()
    assert relative_error(found.float(), expected) < bound


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("batch, frames", [*product((1, 2), (1, 3))])
def test_a_norm_is_modulated_by_its_frames_rows(dtype, bound, batch, frames, relative_error):
    x = noise(2, 18, 384, dtype=dtype)[:, 3:15] + 3
    shift, scale = noise(batch, frames, 2, 1, 384, seed=1, dtype=dtype).unbind(2)
    expected = layers.norm_modulate(x.float(), shift.float(), scale.float(), 1e-6)
    assert relative_error(triton_kernels.norm_modulate(x, shift, scale, 1e-6).float(), expected) < bound


def test_tokens_without_a_row_of_their_own_are_an_error():
    with pytest.raises(ValueError, match="30 tokens cannot be rotated by a table for 24"):
        triton_kernels.rotate_(noise(1, 30, 128), rope.rope_table([rope.grid_positions((2, 3, 4))], 128, DEVICE))
    rows = noise(1, 4, 1, 128)
    with pytest.raises(ValueError, match="30 tokens are no whole number for each of 4 frames"):
        triton_kernels.norm_modulate(noise(1, 30, 128), rows, rows, 1e-6)


@pytest.mark.parametrize("variant", ["t2v", "ti2v", "vace"])
def test_a_dit_on_the_kernels_is_the_official_one(variant, dit_case, relative_error):
    model, inputs, velocity = dit_case(variant)
    model, inputs = model.to(DEVICE), {name: torch.as_tensor(value, device=DEVICE) for name, value in inputs.items()}
    if variant == "vace":
        inputs["vace_scale"] = float(inputs["vace_scale"])
    for chunk in (None, 40):
        assert (
            relative_error(model(**inputs, runtime=Runtime(kernels=triton_kernels.DIT, chunk=chunk)).cpu(), velocity)
            < 1e-5
        )


def test_a_cpu_gets_none():
    assert fused.triton_kernels(torch.device("cpu")) is None


@pytest.fixture
def tried(monkeypatch):
    """The result of `fused.triton_kernels` for a device that claims to be a GPU."""

    class Device(str):
        type = "cuda"

    original = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *a, device, **options: original(*a, device=DEVICE, **options))
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.full((size,), 1.0, device=DEVICE))
    return lambda: fused.triton_kernels.__wrapped__(Device("cuda:9"))


def test_they_are_used_once_they_have_worked(tried):
    assert tried() is triton_kernels


@pytest.mark.parametrize("fails", [True, False])
def test_where_they_do_not_work_torch_is_used_and_the_log_says_why(fails, tried, monkeypatch, caplog):
    def activate(*arguments, **options):
        if fails:
            raise RuntimeError("Failed to find C compiler.\nMore.")

    monkeypatch.setattr(triton_kernels, "activate", activate)
    with caplog.at_level("INFO"):
        assert tried() is None
    reason = "Failed to find C compiler." if fails else "Their result is not torch's."
    assert caplog.messages == [
        f"No Triton kernels on cuda:9, torch's operations do the same in more passes. {reason}",
    ]


def test_no_memory_for_the_trial_says_nothing_about_the_kernels(tried, monkeypatch):
    def activate(*arguments, **options):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(triton_kernels, "activate", activate)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tried()


def test_they_compile_for_real_cards_to_wide_accesses(tmp_path):
    script = Path(__file__).parents[1] / "compile_kernels.py"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert len(found) == 60
    for name, accesses in found.items():
        assert accesses["wide"] >= 6 and accesses["narrow"] <= 1, name  # one is of `gamma`, the same for all pixels
