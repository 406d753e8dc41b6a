"""Models that hear, as MODELs: where ComfyUI's own classes deviate, ours follow the authors (golden cases)."""

from importlib.util import find_spec

import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
import writers
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(
    find_spec("comfy.ldm.wan.model_animate2") is None, reason="this ComfyUI lacks members of the family"
)


def batched(tensors, *left_out):
    return {name: tensor if name == "t" else tensor[None] for name, tensor in tensors.items() if name not in left_out}


def call(network, inputs, **conditions):
    """The velocity (C, F, H, W) by the host's call of a network."""
    given = {name: value for name, value in conditions.items() if value is not None}
    return network(inputs["x"], inputs["t"], inputs["context"], transformer_options={}, **given)[0]


def host_network(kind, case, **options):
    """The host's own class with the weights of a golden case."""
    sizes = {name: case.config[name] for name in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "in_dim")}
    network = kind(**sizes, **options, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    network.load_state_dict(case.weights())
    return network


def zero_padded(context):
    """The host leaves the zeros behind the text to its text encoder."""
    return torch.nn.functional.pad(context, (0, 0, 0, 512 - context.shape[1]))


# S2V


@pytest.fixture(scope="module")
def s2v(golden, room):
    """A golden case, our network of it in a MODEL, ComfyUI's, the inputs, and the conditions by ComfyUI's names."""
    case = golden("dit_s2v")
    ours = room("host.model.loading").build(case.weights(), "float32").model.diffusion_model
    theirs = host_network(comfy.ldm.wan.model.WanModel_S2V, case, audio_dim=48, audio_inject_layers=[0, 2])
    inputs = batched(case.inputs)
    inputs["context"] = zero_padded(inputs["context"])
    names = {"audio_embed": "audio", "reference_latent": "ref_latent", "reference_motion": "motion_latents"}
    names["control_video"] = "pose_latents"
    return case, ours, theirs, inputs, {theirs: inputs[name] for theirs, name in names.items()}


S2V = {
    "v": {},
    "v_no_motion": {"reference_motion": None},
    "v_no_pose": {"control_video": None},
    "v_null_audio": {"audio_embed": 0.0},
}


@pytest.mark.parametrize("output", S2V)
def test_s2v_is_the_authors_where_comfyui_is_not(output, s2v, relative_error):
    case, ours, theirs, inputs, conditions = s2v
    given = conditions | {
        name: None if value is None else conditions[name] * value for name, value in S2V[output].items()
    }
    assert relative_error(call(ours, inputs, **given), case.outputs[output]) < 1e-5
    assert relative_error(call(theirs, inputs, **given), case.outputs[output]) > 1e-3


def test_s2v_differs_by_the_frames_in_front_of_the_sound_and_by_the_place_of_far_motion(
    s2v, relative_error, monkeypatch
):
    case, _, theirs, inputs, conditions = s2v
    encoder = theirs.casual_audio_encoder

    def with_the_frames_before(audio):
        overall, tokens = encoder.__class__.forward(encoder, torch.cat((audio[..., :1].repeat(1, 1, 1, 73), audio), -1))
        return overall[:, 19:], tokens[:, 19:]

    monkeypatch.setattr(encoder, "forward", with_the_frames_before)
    no_motion = conditions | {"reference_motion": None}
    assert relative_error(call(theirs, inputs, **no_motion), case.outputs["v_no_motion"]) < 1e-5
    assert 1e-4 < relative_error(call(theirs, inputs, **conditions), case.outputs["v"]) < 1e-2


# All of them


@pytest.fixture
def path(models):
    """Where a test may leave a model."""
    yield models / "diffusion_models" / "sound.safetensors"
    for left in (models / "diffusion_models").glob("sound.*"):
        left.unlink()


KINDS = {"dit_s2v": "s2v"}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_described_and_estimated(name, room, golden, path):
    save_file(golden(name).weights(), path)
    assert room("host.editor.info").describe("diffusion_models", path.name)["variant"] == KINDS[name]
    query = {"model": path.name, "width": "128", "height": "64", "length": "9"}
    assert room("host.editor.estimate").from_query(query)["peak"] > path.stat().st_size


@pytest.mark.parametrize("form, bound", [("bfloat16", 0.05), ("fp8_e4m3fn", 0.2), ("Q8_0", 0.1)])
def test_s2v_in_other_precisions(form, bound, s2v, room, path, relative_error):
    case, _, _, inputs, conditions = s2v
    if form == "Q8_0":
        writers.write_gguf(path.with_suffix(".gguf"), case.weights(), form)
        model = room("host.model.loading").load(str(path.with_suffix(".gguf")), "bfloat16").model
    else:
        save_file(case.weights(), path)
        model = room("host.model.loading").load(str(path), form).model
    half = {name: tensor.to(model.compute_dtype) for name, tensor in inputs.items()}
    given = {name: tensor.to(model.compute_dtype) for name, tensor in conditions.items()}
    v = call(model.diffusion_model, half | {"t": inputs["t"]}, **given)
    assert 0 < relative_error(v.float(), case.outputs["v"]) < bound
