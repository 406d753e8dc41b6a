"""The models on devices without float64: the GPUs of Apple, and many of Intel's."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_model.vae import build_vae

WEAK = "meta"  # stands for the device: tensors without values, so every operation but none of the arithmetic


class WithoutFloat64(TorchDispatchMode):
    """Raises TypeError, as torch does on such a device, where an operation makes float64 there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.device.type == WEAK and made.dtype == torch.float64:
                raise TypeError(f"{function} made float64 on a device that has none")
        return result


def moved(inputs: dict) -> dict:
    """`inputs` with their tensors on the device."""
    return {name: value.to(WEAK) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("variant", ["t2v", "i2v", "vace", "ti2v"])
def test_a_forward_needs_no_float64_on_the_device(variant, dit_case):
    model, inputs, velocity = dit_case(variant)
    model, inputs = model.to(WEAK), moved(inputs)
    with WithoutFloat64():
        assert model(**inputs).shape == velocity.shape


@pytest.mark.parametrize("name", ["vae21", "vae22"])
def test_a_vae_needs_no_float64_on_the_device(name, golden):
    case = golden(name)
    vae, inputs = build_vae(case.weights()).to(WEAK), moved(case.inputs)
    with WithoutFloat64():
        assert vae.decode(inputs["latent"]).shape == case.outputs["video"].shape
        assert vae.encode(inputs["video"]).shape == case.outputs["mu"].shape


def test_the_stand_in_refuses_what_such_a_device_refuses():
    with WithoutFloat64(), pytest.raises(TypeError, match="float64"):
        torch.arange(4, dtype=torch.float64, device=WEAK)
    with WithoutFloat64():
        assert torch.arange(4, dtype=torch.float64).to(WEAK, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("variant", ["t2v", "ti2v"])
def test_a_time_embedding_in_float32_stays_close(variant, dit_case, relative_error, monkeypatch):
    model, inputs, velocity = dit_case(variant)
    monkeypatch.setattr("wan_model.dit.model.FLOAT64_DEVICES", ())
    assert 0 < relative_error(model(**inputs), velocity) < 1e-3
