"""The text encoder and CLIP vision leave the device after use, and a prompt is encoded once while it stays."""

import comfy.model_management
import pytest
import torch


@pytest.fixture(scope="module")
def clip(run_node, models):
    return run_node("WanTextEncoderLoader", text_encoder_name="tiny_random_umt5.safetensors")[0]


@pytest.fixture
def encoded(clip, monkeypatch):
    """How often the network of `clip` has run."""
    calls, run = [], clip.cond_stage_model.encode_token_weights
    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", lambda tokens: calls.append(1) or run(tokens))
    return calls


def loaded():
    return [entry.model.model for entry in comfy.model_management.current_loaded_models]


def test_only_a_changed_prompt_is_encoded_again(run_node, clip, encoded):
    first = run_node("WanTextEncode", clip=clip, positive="a cat", negative="blur")
    assert len(encoded) == 2
    first[0][0][1]["added"] = "by another node"
    again = run_node("WanTextEncode", clip=clip, positive="a cat", negative="blur")
    assert len(encoded) == 2
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, again, strict=True))
    assert "added" not in again[0][0][1]
    changed = run_node("WanTextEncode", clip=clip, positive="a dog", negative="blur")
    assert len(encoded) == 3
    assert torch.equal(changed[1][0][0], first[1][0][0]) and not torch.equal(changed[0][0][0], first[0][0][0])
    swapped = run_node("WanTextEncode", clip=clip, positive="blur", negative="a dog")
    assert len(encoded) == 5 and torch.equal(swapped[0][0][0], first[1][0][0])


def test_the_text_encoder_leaves_and_others_stay(run_node, clip, t2v):
    comfy.model_management.unload_all_models()  # what earlier tests left
    comfy.model_management.load_models_gpu([t2v])
    run_node("WanTextEncode", clip=clip, positive="another cat", negative="")
    assert loaded() == [t2v.model]
    comfy.model_management.unload_all_models()


def test_clip_vision_leaves(run_node, models):
    (vision,) = run_node("WanClipVisionLoader", clip_vision_name="tiny_random_clip_vision.safetensors")
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    (output,) = run_node("WanClipVision", clip_vision=vision, start_image=picture)
    assert output["penultimate_hidden_states"].shape[1] == 257
    assert vision.patcher.model not in loaded()


def test_a_clone_of_the_clip_begins_without_prompts(run_node, clip, encoded):
    run_node("WanTextEncode", clip=clip, positive="a bird", negative="a crow")
    before = len(encoded)
    run_node("WanTextEncode", clip=clip.clone(), positive="a bird", negative="a crow")
    assert len(encoded) == before + 2
