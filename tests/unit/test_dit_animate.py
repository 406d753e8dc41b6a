"""Wan-Animate against its authors' code, and Wan-Animate 2 against what its attention means, worked out with a mask."""

import json

import pytest
import torch

from wan_model.dit.model import build_dit
from wan_model.dit.parts.animate import face_tokens


@pytest.fixture(scope="module")
def animate(golden):
    """Return the model of the golden case, the arguments of its forward, and what the authors' code computed."""
    data = golden("dit_animate")
    weights = data.weights()
    for name, factor in json.loads(data.metadata["gain"]).items():
        weights[name] = weights[name] * factor
    inputs = {name: data.inputs[name].unsqueeze(0) for name in ("x", "y", "pose_latents", "context")}
    face = data.inputs["face_small"].repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    inputs |= {"t": data.inputs["t"], "clip_fea": data.inputs["clip_fea"], "face": face}
    return build_dit(weights), inputs, data.outputs


def test_faces_are_read_as_by_the_authors(animate, relative_error):
    model, inputs, expected = animate
    faces = inputs["face"][0].transpose(0, 1)
    assert model.config.variant == "animate"
    assert relative_error(model.motion_encoder(faces), expected["motion"]) < 1e-5
    tokens = face_tokens(model, inputs["face"], inputs["x"].shape[2])
    assert relative_error(tokens[0, 1:], expected["face_tokens"]) < 1e-5


@pytest.mark.parametrize("name", ["v", "v_null_face", "v_no_adapter"])
def test_velocity_is_the_authors(name, animate, relative_error):
    model, inputs, expected = animate
    face = {"v_null_face": torch.full_like(inputs["face"], -1.0), "v_no_adapter": None}.get(name, inputs["face"])
    assert relative_error(model(**inputs | {"face": face})[0], expected[name]) < 1e-5
