"""SCAIL against ComfyUI's class; Phantom and VACE-Fun, which only add frames, against the authors' code."""

import pytest
import torch

from wan_model import build_dit
from wan_model.dit.runtime import Runtime


@pytest.fixture(scope="module")
def scail(golden):
    data = golden("dit_scail")
    inputs = {name: x if name in ("t", "clip_fea") else x.unsqueeze(0) for name, x in data.inputs.items()}
    return build_dit(data.weights()), inputs, data.outputs["v"].unsqueeze(0)


@pytest.mark.parametrize("chunk", [None, 25])
def test_scail(chunk, scail, relative_error):
    model, inputs, expected = scail
    assert relative_error(model(**inputs, runtime=Runtime(chunk=chunk)), expected) < 1e-5


def test_references_and_pose_have_an_effect(scail, relative_error):
    model, inputs, expected = scail
    for name in ("ref_latent", "pose_latents"):
        assert relative_error(model(**{**inputs, name: None}), expected) > 1e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pose_latents": torch.ones(1, 20, 2, 4, 6)}, "pose video has 2 latent frames and the clip 3"),
        ({"ref_latent": torch.ones(1, 16, 1, 8, 12)}, "reference has 16 channels, this scail model takes 20"),
        ({"pose_masks": torch.ones(1, 28, 3, 4, 6)}, "reads no masks of the pose video"),
    ],
)
def test_what_does_not_fit_is_named(changes, message, scail):
    model, inputs, _ = scail
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


def test_phantom(golden, relative_error):
    data = golden("dit_phantom")
    inputs = {name: x if name == "t" else x.unsqueeze(0) for name, x in data.inputs.items()}
    v = build_dit(data.weights())(**inputs)
    assert relative_error(v[0], data.outputs["v"]) < 1e-5


def test_vace_fun(golden, relative_error):
    data = golden("dit_vace_fun")
    inputs = {name: x if name == "t" else x.unsqueeze(0) for name, x in data.inputs.items()}
    v = build_dit(data.weights())(**inputs, vace_scale=float(data.metadata["vace_context_scale"]))
    assert relative_error(v[0], data.outputs["v"]) < 1e-5
