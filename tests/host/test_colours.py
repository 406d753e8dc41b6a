"""Previews in the colours that a model's file carries, by this pack and by the host."""

import colorsys
import json
import logging

import comfy.latent_formats
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from safetensors.torch import load_file, save_file

from tiny import family, judge, scenes

PROMPT = "a red circle moves right on a blue background"


@pytest.fixture(scope="module")
def load(room):
    return lambda path: room("host.model.loading").load(str(path)).model


@pytest.fixture(scope="module")
def latent():
    """What the family's model makes of `PROMPT`."""
    encoder = family.TextEncoder()
    with torch.inference_mode():
        return family.sample(family.load_dit("t2v"), encoder([PROMPT]), encoder([""]), [1])


def apart(rgb, name: str) -> float:
    """Degrees from the hue of `rgb` in [0, 1] to that of the colour `name`."""
    hues = [colorsys.rgb_to_hsv(*map(float, colour))[0] for colour in (rgb, np.array(scenes.COLOURS[name]) / 255)]
    return abs((hues[0] - hues[1] + 0.5) % 1 - 0.5) * 360


def is_red_on_blue(frames: torch.Tensor) -> None:
    """Asserts it of frames (T, h, w, 3) in [0, 1], by the judge's measure of where the shape is."""
    large = frames.permute(3, 0, 1, 2).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    seen = judge.look(large * 2 - 1)
    assert (seen.colour, seen.background) == ("red", "blue")
    ground = frames[:, [0, -1]].flatten(0, 2).median(dim=0).values
    inside = frames.flatten(0, 2)[(frames - ground).abs().amax(dim=3).flatten().topk(len(frames)).indices]
    assert apart(ground, "blue") < 30 and apart(inside.median(dim=0).values, "red") < 30


def test_the_demo_is_red_on_blue(room, load, latent):
    own = load(family.path("t2v")).latent_format
    preview = room("host.observe.preview")
    frames = preview.small_frames(latent[0], preview.colours_of(own, torch.device("cpu")))
    assert frames.shape == (5, 8, 8, 3)
    is_red_on_blue(frames / 255)


def test_the_host_shows_the_same_colours(load, latent, monkeypatch):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(torch.device("cpu"), load(family.path("t2v")).latent_format)
    picture = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latent)))
    is_red_on_blue(picture[None] / 255)


def test_the_colours_are_of_one_model_alone(load, models):
    before = comfy.latent_formats.Wan21.latent_rgb_factors
    own = load(family.path("t2v")).latent_format
    other = load(models / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors").latent_format
    assert own.latent_rgb_factors != before
    assert other.latent_rgb_factors == comfy.latent_formats.Wan21().latent_rgb_factors == before


def test_colours_that_are_of_no_use_cost_a_warning(load, tmp_path, caplog):
    file = tmp_path / "odd.safetensors"
    save_file(load_file(family.path("t2v")), file, {"latent_rgb": json.dumps({"factors": [[1, 2]], "bias": [0]})})
    with caplog.at_level(logging.WARNING):
        odd = load(file).latent_format
    assert odd.latent_rgb_factors == comfy.latent_formats.Wan21.latent_rgb_factors
    assert [record.message for record in caplog.records if "latent_rgb" in record.message] == [
        "odd.safetensors: the latent_rgb in its header is not 16 x 3 factors and 3 biases, finite numbers: previews "
        "are in the colours of other models."
    ]
