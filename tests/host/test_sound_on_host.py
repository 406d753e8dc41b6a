"""Models that hear, as MODELs: where ComfyUI's own classes deviate, ours follow the authors (golden cases)."""

from itertools import pairwise

import comfy.ldm.wan.model
import comfy.ops
import comfy.samplers
import pytest
import torch
import writers
from safetensors.torch import save_file

import nodes


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


# HuMo


@pytest.fixture(scope="module")
def humo(golden, room):
    """A golden case of the 17B model, our MODEL of it, and the conditioning of the host's node for its inputs."""
    case = golden("dit_humo_17b")
    patcher = room("host.model.loading").build(case.weights(), "float32")
    given = batched(case.inputs)
    reference = patcher.model.process_latent_out(given["ref_latents"])  # as a VAE gives it
    sound = given["audio_small"].repeat_interleave(8, dim=-1)
    entries = {"reference_latents": [reference], "audio_embed": sound}
    return case, patcher, [[zero_padded(given["context"]), entries]]


def test_humo_is_the_authors_where_comfyui_has_no_noise(humo, relative_error):
    case, patcher, positive = humo
    theirs = host_network(comfy.ldm.wan.model.HumoWanModel, case)
    inputs, zero = batched(case.inputs), case.inputs["zero_vae"][None, :, :-1]
    inputs["context"] = positive[0][0]
    x, reference, sound = inputs["x"], inputs["ref_latents"], positive[0][1]["audio_embed"]
    clip = torch.cat((x[:, :, :-1], torch.zeros_like(x[:, :4, :-1]), zero), dim=1)
    without_noise = torch.cat((torch.zeros_like(reference), torch.ones_like(reference[:, :4]), reference), dim=1)
    expected = case.outputs["v"][:, :-1]
    given = {"audio_embed": sound, "reference_latent": without_noise}
    found = call(theirs, inputs | {"x": clip}, **given)
    assert relative_error(found, expected) > 0.01

    def ours(noise):
        behind = torch.cat((noise, x.new_zeros(1, 20, 1, *x.shape[3:])), dim=1)  # the part writes the picture there
        given = {"audio_embed": sound, "reference_latents": reference}
        return call(patcher.model.diffusion_model, inputs | {"x": torch.cat((clip, behind), dim=2)}, **given)[:, :-1]

    assert relative_error(ours(x[:, :, -1:]), expected) < 1e-5
    assert relative_error(ours(torch.zeros_like(x[:, :, -1:])), found) < 1e-5  # and this alone is the difference


def run(patcher, positive, latent, **options):
    """The latent after 3 steps of the host's sampler, and what the network saw at each."""
    seen = []

    def watch(apply, arguments):
        seen.append(arguments["input"].clone())
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    patcher = patcher.clone()
    patcher.set_model_unet_function_wrapper(watch)
    inputs = (5, 3, 1.0, "euler", "simple", positive, positive, {"samples": latent, **options})
    return nodes.common_ksampler(patcher, *inputs)[0]["samples"], seen


def by_hand(case, patcher, positive, x, sigmas):
    """The same with the network alone, from the noise x: the authors' loop, over all frames."""
    network, zero_vae = patcher.model.diffusion_model, empty_clip(patcher, x)
    mask = torch.zeros_like(x[:, :4])
    mask[:, :, -1:] = 1
    y = torch.cat((zero_vae[:, :, :-1], batched(case.inputs)["ref_latents"]), dim=2)
    for now, after in pairwise(sigmas):
        behind = torch.cat((x, mask, y), dim=1)
        v = network(behind, 1000 * now.view(1), positive[0][0], audio_embed=positive[0][1]["audio_embed"])
        x = x + (after - now) * v
    return patcher.model.process_latent_out(x)


def empty_clip(patcher, x):
    """What the host has of the latent of an empty clip."""
    return patcher.model.extra_conds(noise=x, device=x.device)["c_concat"].cond[:, 4:]


def test_humo_samples_its_reference_frames_with_the_clip(humo, relative_error):
    case, patcher, positive = humo
    clip = torch.zeros(1, 16, 2, 8, 10)
    made, seen = run(patcher, positive, clip)
    assert made.shape == clip.shape and all(x.shape[2] == 3 for x in seen)
    assert 0.8 < float(seen[0][:, :, -1].std()) < 1.2  # noise, where ComfyUI has zeros
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 3)
    expected = by_hand(case, patcher, positive, seen[0], sigmas)
    assert relative_error(made, expected[:, :, :-1]) < 1e-5


def test_humo_goes_on_from_a_latent_and_under_a_mask(humo, relative_error):
    _, patcher, positive = humo
    start, mask = torch.randn(1, 16, 2, 8, 10), torch.ones(1, 1, 2, 8, 10)
    mask[:, :, :, :4] = 0
    made, seen = run(patcher, positive, start, noise_mask=mask)
    assert relative_error(made[:, :, :, :4], start[:, :, :, :4]) < 1e-5
    assert all(x.shape[2] == 3 for x in seen)


def test_humo_refuses_another_size_and_context_windows(humo):
    _, patcher, positive = humo
    with pytest.raises(ValueError, match=r"\(8, 10\) latent pixels, the clip is \(8, 12\)"):
        run(patcher, positive, torch.zeros(1, 16, 2, 8, 12))
    windows = patcher.clone()
    windows.model_options["context_handler"] = object()
    with pytest.raises(ValueError, match="Context windows cut off"):
        run(windows, positive, torch.zeros(1, 16, 2, 8, 10))


# All of them


@pytest.fixture
def path(models):
    """Where a test may leave a model."""
    yield models / "diffusion_models" / "sound.safetensors"
    for left in (models / "diffusion_models").glob("sound.*"):
        left.unlink()


KINDS = {"dit_s2v": "s2v", "dit_humo_17b": "humo", "dit_humo_1_7b": "humo_1.7b", "dit_infinitetalk": "infinitetalk"}


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
