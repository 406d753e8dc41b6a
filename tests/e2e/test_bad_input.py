"""Errors that a user sees: each is one sentence in the API's reply, and the next prompt runs."""

import copy
import struct
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from devtools import demo
from devtools.client import PromptError
from devtools.workflow import to_prompt

TEXT, VAE, MODEL, LATENT = "1", "2", "3", "5"  # the loaders and the empty latent of the workflow
FLUX = {"double_blocks.0.img_attn.qkv.weight": (24, 8), "single_blocks.0.linear1.weight": (8, 8)}
SD = {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3), "first_stage_model.encoder.conv_in.bias": (4,)}
LLM = {"model.embed_tokens.weight": (64, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8)}
OTHER_VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)}


@pytest.fixture(scope="module")
def prompt(object_info):
    """A prompt that runs."""
    return demo.adapt(to_prompt(demo.load_workflow("wan21_text_to_video"), object_info), "a red ball")


@pytest.fixture(scope="module")
def bad_files(base):
    """Files under names that say what is wrong with them, in the folders where people put them."""
    models = base / "models"
    for folder, name, shapes in (
        ("diffusion_models", "flux", FLUX),
        ("diffusion_models", "sd", SD),
        ("text_encoders", "llm", LLM),
        ("vae", "other_vae", OTHER_VAE),
    ):
        save_file({key: torch.ones(shape) for key, shape in shapes.items()}, models / folder / f"{name}.safetensors")
    whole = next((models / "diffusion_models").glob("tiny_random*t2v*")).read_bytes()
    (models / "diffusion_models" / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (models / "diffusion_models" / "garbage.safetensors").write_bytes(struct.pack("<Q", 64) + b"\xff" * 256)
    (models / "diffusion_models" / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>Not found</html>")


CASES = {  # node, its input, the value, what the answer says
    "no such file": (MODEL, "model_name", "absent.safetensors", "'absent.safetensors' is not in the models/diff"),
    "outside the folder": (MODEL, "model_name", "../vae/other_vae.safetensors", "is not in the models/diff"),
    "truncated": (MODEL, "model_name", "truncated.safetensors", "truncated.safetensors is truncated"),
    "garbage": (MODEL, "model_name", "garbage.safetensors", "garbage.safetensors is"),
    "a web page": (MODEL, "model_name", "page.safetensors", "page.safetensors is"),
    "Flux": (MODEL, "model_name", "flux.safetensors", "flux.safetensors holds a Flux model"),
    "Stable Diffusion": (MODEL, "model_name", "sd.safetensors", "sd.safetensors holds a Stable Diffusion"),
    "a language model": (TEXT, "text_encoder_name", "llm.safetensors", "llm.safetensors holds a language model"),
    "another VAE": (VAE, "vae_name", "other_vae.safetensors", "other_vae.safetensors holds a VAE of another"),
    "no frames": (LATENT, "length", 0, "length is 0 frames: choose 1 to"),
    "too many frames": (LATENT, "length", 100_000, "length is 100000 frames: choose 1 to"),
    "too narrow": (LATENT, "width", 8, "width is 8 pixels: choose 16 to"),
    "too tall": (LATENT, "height", 20_000, "height is 20000 pixels: choose 16 to"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_before_anything_runs(case, prompt, bad_files, client):
    node, name, value, sentence = CASES[case]
    bad = copy.deepcopy(prompt)
    bad[node]["inputs"][name] = value
    ran = []
    with pytest.raises(PromptError) as error:
        client.run(bad, lambda event, data: ran.append(event))
    assert sentence in str(error.value)
    assert "Traceback" not in str(error.value) and "executing" not in ran
    assert node == LATENT or str(error.value).count(sentence) == 1  # the host repeats it for each input of a size


def test_a_file_without_vace_blocks_is_refused_before_a_weight_is_used(prompt, bad_files, client):
    bad = copy.deepcopy(prompt)
    bad[MODEL]["inputs"]["vace_name"] = "flux.safetensors"
    with pytest.raises(PromptError, match=r"flux\.safetensors holds a Flux model, not a Wan VACE module"):
        client.run(bad)


def test_latents_of_another_family_are_named_and_the_next_prompt_runs(prompt, client):
    bad = copy.deepcopy(prompt)
    bad[LATENT] = {"class_type": "Wan22ImageToVideoLatent", "inputs": {"vae": [VAE, 0], "width": 128, "height": 96}}
    bad[LATENT]["inputs"].update(length=5, batch_size=1)
    with pytest.raises(PromptError, match=r"WanSampler .*16-channel latents .* given 48-channel latents"):
        client.run(bad)
    assert client.run(prompt)


def test_cancel_stops_a_run_and_the_next_one_works(prompt, client):
    long = copy.deepcopy(prompt)
    sampler = next(node for node in long.values() if node["class_type"] == "WanSampler")
    sampler["inputs"].update(steps=500, seed=99)

    def cancel(event, data):
        if event == "progress":
            urllib.request.urlopen(urllib.request.Request(f"{client.url}/interrupt", data=b"{}"))

    with pytest.raises(PromptError, match="interrupted"):
        client.run(long, cancel)
    assert client.run(prompt)
