"""The Fun models against their authors' code: control videos, reference images, first and last frames."""

import json

import pytest
import torch

from wan_model import build_dit


def case(golden, name):
    """Return the model of a golden case, the arguments of its forward, and what its authors' code computed."""
    data = golden(name)
    inputs = {key: tensor.unsqueeze(0) for key, tensor in data.inputs.items() if key not in ("t", "clip_fea")}
    inputs["t"] = data.inputs["t"]
    if inputs["t"].ndim > 1:  # one timestep a token, equal within a latent frame
        inputs["t"] = inputs["t"].unflatten(1, (inputs["x"].shape[2], -1))[..., 0]
    if "clip_fea" in data.inputs:
        inputs["clip_fea"] = data.inputs["clip_fea"]
    if "ref_latent" in inputs:
        inputs["ref_latent"] = inputs["ref_latent"].unsqueeze(2)  # (1, C, 1, H, W)
    return build_dit(data.weights()), inputs, {key: tensor.unsqueeze(0) for key, tensor in data.outputs.items()}


CASES = {
    "dit_fun_inp": "i2v",
    "dit_fun_control": "fun_control",
    "dit_fun_control_ref": "fun_control",
    "dit_fun_control_a14b": "fun_control_a14b",
    "dit_fun_control_5b": "fun_control_5b",
}


@pytest.mark.parametrize("name", CASES)
def test_velocity_is_the_authors(name, golden, relative_error):
    model, inputs, expected = case(golden, name)
    assert model.config.variant == CASES[name]
    assert relative_error(model(**inputs), expected["v"]) < 1e-5


@pytest.mark.parametrize("name", [name for name in CASES if "ref" in name or "14b" in name or "5b" in name])
def test_a_reference_may_be_left_out(name, golden, relative_error):
    model, inputs, expected = case(golden, name)
    assert relative_error(model(**{**inputs, "ref_latent": None}), expected["v_no_ref"]) < 1e-5
    assert relative_error(expected["v_no_ref"], expected["v"]) > 1e-3


def test_a_reference_of_another_family_is_refused(golden):
    model, inputs, _ = case(golden, "dit_fun_control_ref")
    with pytest.raises(ValueError, match=r"reference latent is \(1, 48, 1, 8, 6\).*\(batch, 16, 1, height, width\)"):
        model(**{**inputs, "ref_latent": torch.ones(1, 48, 1, 8, 6)})
    with pytest.raises(ValueError, match="reads no reference image"):
        build_dit(golden("dit_t2v").weights())(
            torch.ones(1, 16, 1, 4, 4), torch.ones(1), torch.ones(1, 3, 64), ref_latent=torch.ones(1, 16, 1, 4, 4)
        )


def test_the_header_does_not_change_what_a_fun_file_is(golden, tmp_path):
    from safetensors.torch import save_file

    from wan_model import checkpoint

    metadata = {"config": json.dumps({"transformer": {"model_type": "i2v"}})}
    save_file(golden("dit_fun_control").weights(), tmp_path / "fun.safetensors", metadata=metadata)
    assert checkpoint.load(tmp_path / "fun.safetensors")[1] == "fun_control"
