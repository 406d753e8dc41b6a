"""The colours of latents that a header carries, and headers that are of no use."""

import json

import pytest
import torch

from tiny import family, scenes, train_vae

from wan_model import checkpoint
from wan_model.weights import marks

GOOD = {"factors": [[0.1, -0.2, 3]] * 16, "bias": [0, 0.5, -0.5]}


def recognise(text: str | None, kind: str = "t2v") -> checkpoint.Inspection:
    """What the weights of `kind` are, with `text` in their header."""
    return checkpoint.recognise(
        checkpoint.inspect(family.path(kind)).tensors, {} if text is None else {"latent_rgb": text}
    )


def test_a_header_carries_the_colours():
    for kind in ("t2v", "i2v"):
        found = recognise(json.dumps(GOOD), kind)
        assert found.latent_rgb == (GOOD["factors"], GOOD["bias"]) and not found.notes
    assert recognise(None).latent_rgb is None and not recognise(None).notes


def test_a_gguf_header_carries_the_same_texts():
    texts = {"latent_rgb": json.dumps(GOOD), "sampling": "{}", "rollout": "{}"}
    found = marks.gguf_metadata({"general.architecture": "wan", "wan.sampling": 7, **texts})
    assert {key: found.pop(key) for key in texts} == texts and found.keys() == {"config"}
    assert marks.gguf_metadata({"wan.latent_rgb": [1, 2]}).keys() == {"config"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "7", "[]", "{}", '"factors"', "[" * 10**5, "1" * 10**5),
        json.dumps({"factors": GOOD["factors"]}),
        json.dumps({"bias": GOOD["bias"]}),
        json.dumps(GOOD | {"factors": GOOD["factors"][1:]}),
        json.dumps(GOOD | {"factors": [GOOD["factors"]] * 16}),
        json.dumps(GOOD | {"factors": {str(i): [0, 0, 0] for i in range(16)}}),
        json.dumps(GOOD | {"factors": ["rgb"] * 16}),
        json.dumps(GOOD | {"factors": [[0.1, 0.2]] * 16}),
        json.dumps(GOOD | {"bias": None}),
        json.dumps(GOOD | {"bias": 1}),
        *(
            json.dumps(GOOD | {"bias": [0, 0, bad]})
            for bad in (float("nan"), float("inf"), 10**400, "0", None, True, [])
        ),
        json.dumps(GOOD | {"factors": [[0, -float("inf"), 0]] * 16}),
    ],
    ids=lambda text: text[:12] + text[-20:],
)
def test_colours_of_another_form_are_ignored_and_named(text):
    found = recognise(text)
    assert found.variant == "t2v" and found.latent_rgb is None
    assert found.notes == (
        "the latent_rgb in its header is not 16 x 3 factors and 3 biases, finite numbers: previews are in the colours "
        "of other models.",
    )


def test_the_family_carries_colours_that_fit_its_vae():
    """On clips that they were not fitted to."""
    colours = checkpoint.inspect(family.path("t2v")).latent_rgb
    assert colours == checkpoint.inspect(family.path("i2v")).latent_rgb
    clips = torch.stack([train_vae.clip(seed, scenes.SIDE, scenes.SIDE, scenes.FRAMES) for seed in range(3)])
    with torch.no_grad():
        latents = family.normalise(family.load_vae().encode(clips))[:, :, 0].movedim(1, -1)
    made = latents @ torch.tensor(colours.factors) + torch.tensor(colours.bias)
    true = torch.nn.functional.avg_pool2d(clips[:, :, 0], 8).movedim(1, -1)
    assert (made - true).norm() / true.norm() < 0.5
