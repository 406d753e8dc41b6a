"""The Fun models against their authors' code: control videos, reference images, first and last frames."""

import json

import pytest
import torch

from wan_model import build_dit
from wan_model.dit.parts.camera import fold


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
    "dit_fun_camera": "fun_camera",
    "dit_fun_camera_a14b": "fun_camera_a14b",
}
CONTROL = [name for name in CASES if "control_" in name]


@pytest.mark.parametrize("name", CASES)
def test_velocity_is_the_authors(name, golden, relative_error):
    model, inputs, expected = case(golden, name)
    assert model.config.variant == CASES[name]
    assert relative_error(model(**inputs), expected["v"]) < 1e-5


@pytest.mark.parametrize("name", CONTROL)
def test_a_reference_may_be_left_out(name, golden, relative_error):
    model, inputs, expected = case(golden, name)
    assert relative_error(model(**{**inputs, "ref_latent": None}), expected["v_no_ref"]) < 1e-5
    assert relative_error(expected["v_no_ref"], expected["v"]) > 1e-3


@pytest.mark.parametrize("name", ["dit_fun_camera", "dit_fun_camera_a14b"])
def test_a_camera_path_may_be_left_out_or_folded_before(name, golden, relative_error):
    model, inputs, expected = case(golden, name)
    assert relative_error(model(**{**inputs, "camera": None}), expected["v_no_camera"]) < 1e-5
    assert relative_error(expected["v_no_camera"], expected["v"]) > 1e-3
    assert relative_error(model(**{**inputs, "camera": fold(inputs["camera"])}), expected["v"]) < 1e-5


def test_a_camera_path_of_another_size_or_length_is_refused(golden):
    model, inputs, _ = case(golden, "dit_fun_camera")
    for rays in (inputs["camera"][..., :40], inputs["camera"][:, :, :5], inputs["camera"][:, :4]):
        with pytest.raises(ValueError, match=r"camera path is \(\d+, \d, 64, \d+\).*the clip needs \(\d+, 9, 64, 48\)"):
            model(**{**inputs, "camera": rays})


FULL = {
    "fun/wan2.1_fun_v1.1_control_14B": "fun_control",
    "fun/wan2.1_fun_control_1.3B": "fun_control",
    "fun/wan2.1_fun_v1.1_control_camera_1.3B": "fun_camera",
    "fun/wan2.1_fun_v1.1_control_camera_14B": "fun_camera",
    "fun/wan2.1_fun_inp_14B": "i2v",
    "fun/wan2.1_fun_v1.1_inp_1.3B": "i2v",
    "fun/wan2.2_fun_a14b_inp": "i2v_a14b",
    "fun/wan2.2_fun_a14b_control": "fun_control_a14b",
    "fun/wan2.2_fun_a14b_control_camera": "fun_camera_a14b",
    "fun/wan2.2_fun_5b_inp": "fun_inp_5b",
    "fun/wan2.2_fun_5b_control": "fun_control_5b",
    "fun/wan2.2_fun_5b_control_camera": "fun_camera_5b",
    "fun/wan2.2_vace_fun_a14b": "vace",
    "official/phantom_14B": "t2v",
    "comfy/scail_14B": "scail",
    "comfy/scail2_14B": "scail2",
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_size_file_is_recognised(name, more_layouts):
    weights = {key: torch.empty(shape, device="meta") for key, shape in more_layouts[name].items()}
    model = build_dit(weights)
    assert model.config.variant == FULL[name]
    assert set(model.state_dict()) == set(weights)


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
