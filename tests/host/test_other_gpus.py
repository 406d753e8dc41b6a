"""Guards for the GPUs of Apple and AMD, with the host told that it runs on one."""

import logging

import comfy.model_management
import pytest
import torch

TENSORS = {"blocks.0.ffn.0.weight": (64, 64), "patch_embedding.bias": (64,)}
SAID = "Apple's GPUs have no fp8: choose auto as weight_dtype"


class Config:
    """The part of a model's class in the host that the choice reads."""

    supported_inference_dtypes = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture
def apple(monkeypatch):
    """The host on an Apple GPU that computes in both 16-bit types."""
    management = comfy.model_management
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("mps"))
    monkeypatch.setattr(management, "maximum_vram_for_weights", lambda *_: 0)  # where the host would keep fp8
    for name in ("should_use_fp16", "should_use_bf16"):
        monkeypatch.setattr(management, name, lambda *_, **__: True)


def weights(dtype: torch.dtype) -> dict:
    """A state dict without values."""
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in TENSORS.items()}


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_plain_fp8_file_becomes_16_bit_on_apple(room, apple, fp8):
    stored, _ = room("host.model.precision").dtypes(Config, weights(fp8), "auto", False)
    assert stored in (torch.bfloat16, torch.float16)


def test_fp8_stays_fp8_on_other_devices_without_room(room, apple, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda"))
    stored, _ = room("host.model.precision").dtypes(Config, weights(torch.float8_e4m3fn), "auto", False)
    assert stored == torch.float8_e4m3fn


@pytest.mark.parametrize("choice, quantised", [("fp8_e4m3fn", False), ("fp8_e5m2", False), ("auto", True)])
def test_what_cannot_be_held_on_apple_is_refused_by_name(room, apple, choice, quantised):
    kind = torch.float8_e4m3fn if quantised else torch.bfloat16
    with pytest.raises(ValueError, match=SAID):
        room("host.model.precision").dtypes(Config, weights(kind), choice, quantised)


def test_quantised_integers_are_held_on_apple(room, apple):
    stored, _ = room("host.model.precision").dtypes(Config, weights(torch.uint8), "auto", True)
    assert stored is None


def test_amd_is_told_of_the_first_search(room, monkeypatch, caplog):
    advise = room("host.vae.vae").advise_amd
    with caplog.at_level(logging.INFO):
        advise()
        assert caplog.messages == []  # not on AMD
        monkeypatch.setattr(torch.version, "hip", "6.4")
        monkeypatch.setenv("MIOPEN_FIND_MODE", "FAST")
        advise()
        assert caplog.messages == []
        monkeypatch.delenv("MIOPEN_FIND_MODE")
        advise()
    assert "MIOPEN_FIND_MODE=FAST" in caplog.messages[0]
