"""Entries of a CONDITIONING that a model does not read, named at the sampler instead of dropped in silence."""

import inspect
import logging
import re

import comfy.model_base
import pytest
import torch

LATENT = (1, 16, 3, 8, 10)
READ_BY_OTHERS = [
    "reference_latents",
    "audio_embed",
    "camera_conditions",
    "pose_video_latent",
    "face_video_pixels",
    "control_video",
    "reference_motion",
    "driving_mask_28ch",
]


@pytest.fixture(scope="module")
def load(room, models):
    """Function from a demo file's task to its MODEL."""

    def load(task):
        path = models / "diffusion_models" / f"tiny_random_{task}.safetensors"
        return room("host.model.loading").load(str(path), "float32")

    return load


@pytest.fixture
def sample_with(run_node, prompts, caplog):
    """Function (model, **entries of the conditioning) -> warnings of a run of one step."""

    def run(model, **entries):
        caplog.clear()
        positive = [[prompts[0][0][0], entries]]
        inputs = dict(positive=positive, latent={"samples": torch.zeros(LATENT)}, steps=1, guidance=1.0, shift=5.0)
        with caplog.at_level(logging.WARNING):
            run_node("WanSampler", model=model, solver="euler", seed=1, denoise=1.0, **inputs)
        return [message for message in caplog.messages if "does not read" in message]

    return run


def test_an_entry_of_another_model_is_named(t2v, sample_with):
    for name in READ_BY_OTHERS:
        (warning,) = sample_with(t2v, **{name: [torch.zeros(1, 16, 1, 8, 10)]})
        assert f"({name})" in warning and t2v.model.source in warning and "a t2v model" in warning
    (both,) = sample_with(t2v, audio_embed=torch.zeros(1, 2), camera_conditions=torch.zeros(1, 2))
    assert "sound (audio_embed), a camera path (camera_conditions)" in both


def test_what_is_read_or_means_nothing_is_no_warning(t2v, sample_with):
    assert sample_with(t2v) == []
    assert sample_with(t2v, audio_embed=None, width=80, pooled_output=None, guidance=5.0) == []
    assert sample_with(t2v, time_dim_concat=torch.zeros(1, 16, 1, 8, 10)) == []


def test_the_network_says_what_it_reads(t2v, room, monkeypatch):
    entries = room("host.sampling.entries")
    conditioning = [[torch.zeros(1, 2, 2), {"audio_embed": torch.zeros(1), "vace_frames": [torch.zeros(1)]}]]
    assert list(entries.unread_entries(t2v, conditioning)) == ["vace_frames", "audio_embed"]

    monkeypatch.setattr(t2v.model.diffusion_model, "reads", frozenset({"audio"}))
    assert list(entries.unread_entries(t2v, conditioning)) == ["vace_frames"]


def test_the_table_names_what_the_hosts_own_models_read(room):
    """Each entry of which the host's Wan classes make an input of the network, in this version of the host."""
    own = [name for name in dir(comfy.model_base) if re.match(r"WAN2[12]|WAN_", name)]
    read = set()
    for name in own:
        source = inspect.getsource(getattr(comfy.model_base, name))
        read |= set(re.findall(r"kwargs\.get\(\"(\w+)\"", source))
    settings = {"noise", "cross_attn", "denoise_mask", "concat_mask", "concat_mask_index", "vace_mask", "vace_strength"}
    settings |= {"pose_strength", "reference_strength", "ref_mask_flag", "fps", "audio_inject_scale"}
    settings |= {name for name in read if name.startswith("pose_") and name.endswith("_percent")}
    assert read - settings <= room("host.sampling.entries").ENTRIES.keys() and len(read - settings) > 8


@pytest.mark.parametrize("channels, fits", [(16, True), (32, False), (48, False)])
def test_images_of_another_model_are_refused(load, sample_with, channels, fits):
    model = load("wan2.2_i2v_high_noise")
    image = torch.randn(1, channels, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    if fits:
        assert sample_with(model, concat_latent_image=image) == []
    else:
        with pytest.raises(ValueError, match=f"holds {channels} channels of images and this i2v_a14b model reads 16"):
            sample_with(model, concat_latent_image=image)
