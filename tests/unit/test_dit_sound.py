"""Models that hear, against their authors' code: S2V, HuMo, InfiniteTalk."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wan_model import build_dit, checkpoint
from wan_model.dit.parts import voices
from wan_model.dit.parts.motion import motion_length
from wan_model.dit.rope import Positions
from wan_model.dit.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden"


def batched(tensors):
    """The tensors of a golden case with a batch axis, but for those that have one."""
    return {name: tensor if name in ("t", "clip_fea") else tensor[None] for name, tensor in tensors.items()}


def twice(inputs):
    """The inputs of a batch of two: the golden sample, and one of other numbers."""
    return {name: torch.cat((tensor, tensor.roll(1, -1) * 0.9)) for name, tensor in inputs.items()}


# S2V


def s2v_inputs(case):
    return batched({name: tensor for name, tensor in case.inputs.items() if name not in ("noise", "context_null")})


@pytest.fixture(scope="module")
def s2v(golden):
    case = golden("dit_s2v")
    return build_dit(case.weights()), s2v_inputs(case), case.outputs


S2V = {
    "v": {},
    "v_no_motion": {"motion_latents": None},
    "v_no_pose": {"pose_latents": None},
    "v_null_audio": {"audio": lambda inputs: 0 * inputs["audio"]},
}


@pytest.mark.parametrize("output", S2V)
def test_s2v_is_the_authors(output, s2v, relative_error):
    model, inputs, expected = s2v
    changes = {name: change(inputs) if callable(change) else change for name, change in S2V[output].items()}
    assert model.config.variant == "s2v"
    assert relative_error(model(**{**inputs, **changes})[0], expected[output]) < 1e-5
    assert output == "v" or relative_error(expected[output], expected["v"]) > 1e-3


def test_s2v_hears_with_the_frames_of_the_clip_before_in_front(s2v, relative_error):
    model, inputs, expected = s2v
    tokens, overall = model.casual_audio_encoder(inputs["audio"], prefix=73)
    frames = inputs["x"].shape[2]
    assert relative_error(tokens[0, -frames:], expected["audio_tokens"]) < 1e-5
    assert relative_error(overall[0, -frames:], expected["audio_global"][:, 0]) < 1e-5


def test_s2v_in_small_parts_and_as_a_batch(s2v, relative_error):
    model, inputs, expected = s2v
    parts = model(**inputs, runtime=Runtime(chunk=20))
    assert relative_error(parts[0], expected["v"]) < 1e-5
    both, runtime = twice(inputs), Runtime(chunk=20)
    second = model(**{name: tensor[1:] for name, tensor in both.items()})
    assert relative_error(model(**both), torch.cat((parts, second))) < 1e-5
    assert relative_error(model(**both, runtime=runtime), torch.cat((parts, second))) < 1e-5


def test_s2v_spreads_coarse_motion_tokens_over_the_grid_of_the_clip(s2v):
    """Rounded down, at their own distances in time: ComfyUI puts the far ones at -19 to -16."""
    model, inputs, _ = s2v
    seen, kernels = [], Runtime().kernels

    def rope_table(positions, *size):
        seen.extend(positions)
        return kernels.rope_table(positions, *size)

    pictures = ("x", "ref_latent", "motion_latents", "pose_latents")
    narrow = {name: inputs[name][..., :14] for name in pictures}  # no multiple of the coarsest tokens
    model(**inputs | narrow, runtime=Runtime(kernels=replace(kernels, rope_table=rope_table)))
    assert seen[2:] == [
        Positions((-1,), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6)),
        Positions((-3,), (0, 3), (0, 3, 6)),
        Positions((-19, -14, -9, -4), (0,), (0,)),
    ]
    assert motion_length(8, 14) == sum(grid.tokens for grid in seen[2:])


BAD_S2V = {
    r"needs sound \(audio\) and got none": {"audio": None},
    r"sound is \(1, 25, 48, 8\).*frames needs \(1, 25, 48, 12\)": {"audio": lambda a: a[..., :8]},
    r"sound is \(1, 24, 48, 12\)": {"audio": lambda a: a[:, 1:]},
    r"pose video is 1 x \(2, 8, 16\).*latent is 1 x \(3, 8, 16\)": {"pose_latents": lambda p: p[:, :, :2]},
    r"motion latents are \(1, 16, 19, 6, 16\)": {"motion_latents": lambda m: m[..., :6, :]},
    r"reference latent is \(1, 16, 2, 8, 16\)": {"ref_latent": lambda r: r.repeat(1, 1, 2, 1, 1)},
}


@pytest.mark.parametrize("message", BAD_S2V)
def test_s2v_refuses_what_does_not_fit(message, s2v):
    model, inputs, _ = s2v
    changes = {name: change and change(inputs[name]) for name, change in BAD_S2V[message].items()}
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


def test_s2v_goes_on_only_from_a_clip_that_its_coarsest_tokens_fit(s2v):
    model, inputs, _ = s2v
    small = {name: inputs[name][..., :6, :] for name in ("x", "ref_latent", "motion_latents", "pose_latents")}
    with pytest.raises(ValueError, match="8 x 8 at least, this one is 6 x 16"):
        model(**inputs | small)
    assert model(**inputs | small | {"motion_latents": None}).shape == small["x"].shape


# HuMo


def humo_inputs(case, audio=1.0, null=False):
    """What the authors' code gives the network; null: without the text, the sound and the picture."""
    given = batched(case.inputs)
    inputs = {"x": given.get("x"), "t": given.get("t"), "context": given["context_null" if null else "context"]}
    inputs["audio"] = audio * given["audio_small"].repeat_interleave(8, dim=-1)
    if "zero_vae" in given:  # in the channels behind the noisy ones
        mask = torch.ones_like(given["zero_vae"][:, :4])
        mask[:, :, :-1] = 0
        held = given["zero_vae"][:, :, -1:] if null else given["ref_latents"]
        inputs["y"] = torch.cat((mask, torch.cat((given["zero_vae"][:, :, :-1], held), dim=2)), dim=1)
    else:
        inputs["ref_latents"] = 0 * given["ref_latents"] if null else given["ref_latents"]
    return inputs


HUMO = {"dit_humo_17b": "humo", "dit_humo_1_7b": "humo_1.7b"}


@pytest.fixture(scope="module", params=HUMO)
def humo(request, golden):
    case = golden(request.param)
    return request.param, build_dit(case.weights()), case


@pytest.mark.parametrize(
    "output, changes", {"v": {}, "v_null_audio": {"audio": 0.0}, "v_null": {"audio": 0.0, "null": True}}.items()
)
def test_humo_is_the_authors(output, changes, humo, relative_error):
    name, model, case = humo
    assert model.config.variant == HUMO[name]
    assert relative_error(model(**humo_inputs(case, **changes))[0], case.outputs[output]) < 1e-5
    assert output == "v" or relative_error(case.outputs[output], case.outputs["v"]) > 1e-3


def test_humo_in_small_parts_and_as_a_batch(humo, relative_error):
    _, model, case = humo
    inputs = humo_inputs(case)
    both = twice(inputs)
    second = model(**{name: tensor[1:] for name, tensor in both.items()})
    expected = torch.cat((case.outputs["v"][None], second))
    assert relative_error(model(**both), expected) < 1e-5
    assert relative_error(model(**both, runtime=Runtime(chunk=7)), expected) < 1e-5


def test_humo_holds_its_references_itself(humo, relative_error):
    """In the 17B model they may come apart from `y`, which then ends with the empty clip."""
    _, model, case = humo
    inputs = humo_inputs(case, null=True) | {"ref_latents": case.inputs["ref_latents"][None]}
    inputs |= {name: humo_inputs(case)[name] for name in ("context", "audio")}
    inputs["y"] = inputs["y"][:, :, :-1] if "y" in inputs else None
    if inputs["y"] is not None:
        inputs["y"] = torch.cat((inputs["y"], torch.zeros_like(inputs["y"][:, :, :1])), dim=2)
    assert relative_error(model(**inputs)[0], case.outputs["v"]) < 1e-5


BAD_HUMO = {
    r"needs sound \(audio\) and got none": {"audio": None},
    r"sound is \(1, 1, 8, 5, 1280\).*latent of 3 frames, the last 1 .* needs \(1, 2\)": {"audio": lambda a: a[:, :1]},
    r"sound is \(1, 2, 8, 4, 1280\).*51200 values": {"audio": lambda a: a[:, :, :, 1:]},
    r"reference latents are \(1, 16, 3, 8, 10\).*fewer": {"ref_latents": torch.ones(1, 16, 3, 8, 10)},
    r"reference latents are \(1, 16, 1, 8, 8\)": {"ref_latents": torch.ones(1, 16, 1, 8, 8)},
}


@pytest.mark.parametrize("message", BAD_HUMO)
def test_humo_refuses_what_does_not_fit(message, humo):
    _, model, case = humo
    inputs = humo_inputs(case)
    changes = BAD_HUMO[message].items()
    changes = {name: change(inputs[name]) if callable(change) else change for name, change in changes}
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


# InfiniteTalk and MultiTalk


def talk_inputs(case, null=False):
    """What the authors' code gives the network; null: without the voices, of which it keeps one that is silent."""
    given = batched(case.inputs)
    audio = given.pop("audio_small").repeat_interleave(16, dim=-1)
    return given | {"audio": 0 * audio[:, -1:] if null else audio}


@pytest.fixture(scope="module", params=["dit_infinitetalk", "dit_infinitetalk_two"])
def talk(request, golden):
    case = golden(request.param)
    return build_dit(case.weights()), case


@pytest.mark.parametrize("output, null", [("v", False), ("v_null_audio", True)])
def test_infinitetalk_is_the_authors(output, null, talk, relative_error):
    model, case = talk
    assert model.config.variant == "infinitetalk"
    assert relative_error(model(**talk_inputs(case, null))[0], case.outputs[output]) < 1e-5
    assert output == "v" or relative_error(case.outputs[output], case.outputs["v"]) > 1e-3


def test_infinitetalk_in_small_parts_and_as_a_batch(talk, relative_error, monkeypatch):
    model, case = talk
    inputs = talk_inputs(case)
    both = twice({name: tensor for name, tensor in inputs.items() if name != "masks"})
    both["masks"] = torch.cat((inputs["masks"], inputs["masks"].flip(3)))
    second = model(**{name: tensor[1:] for name, tensor in both.items()})
    expected = torch.cat((case.outputs["v"][None], second))
    monkeypatch.setattr(voices, "QUERIES", 7)
    assert relative_error(model(**both), expected) < 1e-5
    assert relative_error(model(**both, runtime=Runtime(chunk=7)), expected) < 1e-5


def test_the_background_is_neither_voices(golden, relative_error):
    """A mask of it decides which tokens hear both: ComfyUI has none."""
    case = golden("dit_infinitetalk_two")
    model, inputs = build_dit(case.weights()), talk_inputs(case)
    nowhere = inputs["masks"].clone()
    nowhere[:, 2] = nowhere[:, 0]
    assert relative_error(model(**inputs | {"masks": nowhere})[0], case.outputs["v"]) > 1e-3


BAD_TALK = {
    r"needs sound \(audio\) and got none": {"audio": None},
    r"sound is \(1, 2, 5, 5, 12, 768\).*latent of 3 frames needs \(1, 9, 5\)": {"audio": lambda a: a[:, :, :5]},
    r"46080 values": {"audio": lambda a: a[..., 1:]},
    r"voices of 3 people, this model knows 2": {"audio": lambda a: torch.cat((a, a[:, :1]), dim=1)},
    r"voices of 2 people and 1 masks, the model needs 3": {"masks": lambda m: m[:, :1]},
    r"voices of 2 people and 0 masks": {"masks": None},
    r"Mask 2 of 3 marks no token": {"masks": lambda m: torch.stack((m[:, 0], 0 * m[:, 1], m[:, 2]), dim=1)},
}


@pytest.mark.parametrize("message", BAD_TALK)
def test_infinitetalk_refuses_what_does_not_fit(message, golden):
    case = golden("dit_infinitetalk_two")
    model, inputs = build_dit(case.weights()), talk_inputs(case)
    changes = {name: change and change(inputs[name]) for name, change in BAD_TALK[message].items()}
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


# Files


FULL_SIZE = {
    "official/wan2.2_s2v_14B": "s2v",
    "official/humo_17B": "humo",
    "official/humo_1.7B": "humo_1.7b",
    "official/infinitetalk_14B_merged": "infinitetalk",
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_are_recognised(name):
    shapes = json.loads(gzip.decompress((GOLDEN / "checkpoints_more.json.gz").read_bytes()))[name]
    tensors = {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in shapes.items()}
    found = checkpoint.recognise(tensors)
    assert (found.variant, found.elsewhere) == (FULL_SIZE[name], False)
    assert build_dit(tensors).config == found.config
