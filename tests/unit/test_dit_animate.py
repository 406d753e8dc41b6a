"""Wan-Animate against its authors' code, and Wan-Animate 2 against ComfyUI's."""

import gzip
import json
from pathlib import Path

import pytest
import recipe
import torch
from safetensors.torch import save_file

from wan_model import build_dit, checkpoint
from wan_model.dit import Runtime, WanDiT, dit_config
from wan_model.dit.attention import sdpa
from wan_model.dit.parts.animate import face_tokens
from wan_model.dit.parts.pose_branch import by_frame
from wan_model.weights import layouts

LAYOUTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "checkpoints_more.json.gz").read_bytes()))
I2V = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "checkpoints.json.gz").read_bytes()))[
    "official/wan2.1_i2v_14B"
]


@pytest.fixture(scope="module")
def animate(golden):
    """Weights of the golden case, the arguments of its forward, and what the authors' code computed."""
    data = golden("dit_animate")
    weights = data.weights()
    for name, factor in json.loads(data.metadata["gain"]).items():
        weights[name] = weights[name] * factor
    inputs = {name: data.inputs[name].unsqueeze(0) for name in ("x", "y", "pose_latents", "context")}
    face = data.inputs["face_small"].repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    return weights, inputs | {"t": data.inputs["t"], "clip_fea": data.inputs["clip_fea"], "face": face}, data.outputs


def test_faces_are_read_as_by_the_authors(animate, relative_error):
    weights, inputs, expected = animate
    model = build_dit(weights)
    assert model.config.variant == "animate"
    assert relative_error(model.motion_encoder(inputs["face"][0].transpose(0, 1)), expected["motion"]) < 1e-5
    tokens = face_tokens(model, inputs["face"], inputs["x"].shape[2])
    assert relative_error(tokens[0, 1:], expected["face_tokens"]) < 1e-5


@pytest.mark.parametrize("name", ["v", "v_null_face", "v_no_adapter"])
def test_velocity_is_the_authors(name, animate, relative_error):
    weights, inputs, expected = animate
    face = {"v_null_face": torch.full_like(inputs["face"], -1.0), "v_no_adapter": None}.get(name, inputs["face"])
    assert relative_error(build_dit(weights)(**inputs | {"face": face})[0], expected[name]) < 1e-5


def test_chunks_and_a_batch_of_both_faces_give_the_same(animate, relative_error):
    weights, inputs, expected = animate
    model = build_dit(weights)
    two = {name: torch.cat((value, value)) for name, value in inputs.items()}
    two["face"][1] = -1.0
    v = model(**two, runtime=Runtime(chunk=48))
    assert relative_error(v[0], expected["v"]) < 1e-5
    assert relative_error(v[1], expected["v_null_face"]) < 1e-5


def test_what_does_not_fit_animate_is_refused(animate):
    weights, inputs, _ = animate
    model = build_dit(weights)
    with pytest.raises(ValueError, match=r"pose video is 1 x \(16, 3, 8, 10\).*needs 1 x \(16, 2, 8, 10\)"):
        model(**inputs | {"pose_latents": torch.ones(1, 16, 3, 8, 10)})
    with pytest.raises(ValueError, match=r"face video is \(1, 3, 5, 256, 256\).*\(1, 3, frames, 512, 512\)"):
        model(**inputs | {"face": torch.ones(1, 3, 5, 256, 256)})


def test_a_short_face_video_leaves_the_frames_behind_it_without_a_face(animate):
    weights, inputs, _ = animate
    tokens = face_tokens(build_dit(weights), inputs["face"][:, :, :1], 3)
    assert tokens.shape == (1, 3, 5, 256)
    assert tokens[:, 1].abs().sum() > 0 and tokens[:, 2].abs().sum() == 0


def to_diffusers(weights):
    """`weights` as diffusers stores them: keys and values apart, biases flat, no blur."""
    apart = {}
    for name, weight in weights.items():
        if ".linear1_kv." in name:
            apart |= {
                name.replace("_kv", f"_kv.{part}"): half for part, half in zip("kv", weight.chunk(2), strict=True)
            }
        elif not name.endswith(".kernel"):
            apart[name] = weight.flatten() if ".net_app." in name and name.endswith("bias") else weight
    return {new: apart[old] for old, new in layouts.rename(apart, layouts.inverse(layouts.DIT_DIFFUSERS)).items()}


def test_the_names_of_diffusers_are_those_of_its_model():
    official = {
        name: torch.empty(shape, device="meta") for name, shape in LAYOUTS["official/wan2.2_animate_14B"].items()
    }
    made = {name: list(weight.shape) for name, weight in to_diffusers(official).items()}
    assert made == LAYOUTS["diffusers/wan2.2_animate_14B"]


def test_a_file_of_diffusers_gives_the_same_weights(animate, tmp_path):
    weights = animate[0]
    theirs = {name: weight.contiguous() for name, weight in to_diffusers(weights).items()}
    save_file(theirs, tmp_path / "a.safetensors")
    state_dict, found = checkpoint.load_model(tmp_path / "a.safetensors")
    assert (found.variant, found.layout) == ("animate", "diffusers")
    assert state_dict.keys() == weights.keys()
    assert all(torch.equal(state_dict[name], weights[name]) for name in weights)
    halves = [name for name in theirs if ".to_k." in name and name.startswith("face_adapter")]
    save_file(theirs | {name: theirs[name].to(torch.float8_e4m3fn) for name in halves}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="apart and quantised"):
        checkpoint.load_model(tmp_path / "b.safetensors")


def test_faces_without_the_pose_embedding_are_no_model_of_this_pack(golden):
    weights = golden("dit_i2v").weights() | {"pose_patch_embedding.weight": torch.ones(4, 4)}
    with pytest.raises(ValueError, match="has no face_encoder"):
        checkpoint.recognise(weights)


@pytest.fixture(scope="module")
def animate2(golden):
    """Model of the golden case, the arguments of its forward, and what ComfyUI's class computed."""
    data = golden("dit_animate2")
    weights = data.weights()
    model = WanDiT(dit_config(weights, {"model_type": "animate2"}))
    model.load_state_dict(weights)
    shapes = {"x": (36, 4, 8, 6), "context": (9, 64), "context_pose": (5, 64), "pose_latents": (16, 3, 8, 6)}
    shapes |= {"clip_fea": (257, 1280), "clip_fea_pose": (257, 1280)}
    inputs = {name: recipe.tensor(name, (1, *shape)) for name, shape in shapes.items()}
    return model.requires_grad_(False), inputs | {"t": torch.tensor([617.0])}, data.outputs


CHANGES = {
    "v": {},
    "v_no_pose": {"pose_latents": None},
    "v_same_prompt": {"context_pose": None, "clip_fea_pose": None},
    "v_strengths": {"pose_strength": 0.5, "reference_strength": 1.5},
    "v_odd": {
        "x": recipe.tensor("x_odd", (1, 36, 4, 7, 5)),
        "pose_latents": recipe.tensor("pose_odd", (1, 16, 3, 7, 5)),
    },
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("chunk", [None, 7])
def test_velocity_of_animate_2_is_comfyuis(name, chunk, animate2, relative_error):
    model, inputs, expected = animate2
    v = model(**inputs | CHANGES[name], runtime=Runtime(chunk=chunk))
    assert relative_error(v[0], expected[name]) < 1e-5


def test_both_prompts_share_one_run_of_the_pose_video(animate2, relative_error):
    model, inputs, expected = animate2
    other = model(**inputs | {"context": -inputs["context"]})
    two = {name: torch.cat((value, value)) for name, value in inputs.items()}
    two["context"][1] *= -1
    rows = []

    def attention(q, k, v, heads):
        rows.append((len(q), q.shape[1]))
        return sdpa(q, k, v, heads)

    v = model(**two, runtime=Runtime(attention=attention, cross_attention=sdpa))
    assert relative_error(v[:1], expected["v"].unsqueeze(0)) < 1e-5
    assert relative_error(v[1:], other) < 1e-5
    assert rows.count((1, 36)) == model.config.layers and (2, 36) not in rows


def test_a_pose_prompt_for_each_row_is_kept_apart(animate2, relative_error):
    model, inputs, expected = animate2
    two = {name: torch.cat((value, value)) for name, value in inputs.items()}
    two["context_pose"][1] *= -1
    v = model(**two)
    assert relative_error(v[:1], expected["v"].unsqueeze(0)) < 1e-5
    assert relative_error(v[1:], model(**inputs | {"context_pose": -inputs["context_pose"]})) < 1e-5


def test_a_frame_sees_the_clip_and_one_pose_frame(relative_error):
    frame, frames = 3, 4
    q, k, v = (recipe.tensor(name, (1, frame * frames, 32)) for name in "qkv")
    pose = tuple(recipe.tensor(name, (1, frame * (frames - 1), 32)) for name in ("pose k", "pose v"))
    keys, values = torch.cat((k, pose[0]), dim=1), torch.cat((v, pose[1]), dim=1)
    of_query = torch.arange(frame * frames) // frame
    of_key = torch.cat((torch.full((frame * frames,), -1), 1 + torch.arange(frame * (frames - 1)) // frame))
    mask = (of_key == -1) | (of_key == of_query[:, None])
    assert relative_error(by_frame(sdpa, frame, pose)(q, k, v, 2), sdpa(q, keys, values, 2, mask)) < 1e-6


def test_a_pose_video_of_another_length_is_refused(animate2):
    model, inputs, _ = animate2
    with pytest.raises(ValueError, match=r"pose video is 1 x \(16, 4, 8, 6\).*needs 1 x \(16, 3, 8, 6\)"):
        model(**inputs | {"pose_latents": torch.ones(1, 16, 4, 8, 6)})


OF_DIFFUSERS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"} | {
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}


def wrapped(name):
    """Name in the authors' file, which wraps every block."""
    head, *rest = name.split(".")
    return ".".join((head, rest[0], "block", *rest[1:])) if head == "blocks" else name


def of_diffusers(name):
    """Name in diffusers' Animate 2."""
    parts = name.split(".")
    if len(parts) > 3 and parts[2] in ("self_attn", "cross_attn"):
        parts[3] = OF_DIFFUSERS.get(parts[3], parts[3])
    return ".".join(parts)


@pytest.mark.parametrize("rename, layout", [(wrapped, "official"), (of_diffusers, "diffusers")])
def test_the_names_of_animate_2_tell_it_without_a_header(rename, layout):
    tensors = {rename(name): torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in I2V.items()}
    found = checkpoint.recognise(tensors)
    assert (found.variant, found.layout) == ("animate2", layout)
    assert {name: list(tensor.shape) for name, tensor in found.tensors.items()} == I2V


def test_the_header_tells_animate_2_from_image_to_video():
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in I2V.items()}
    header = {"config": json.dumps({"transformer": {"model_type": "animate2"}})}
    assert checkpoint.recognise(tensors).variant == "i2v"
    assert checkpoint.recognise(tensors, header).variant == "animate2"
