"""SkyReels-V2 Diffusion Forcing against its authors' code: the frame rate, and a timestep for each latent frame."""

import gzip
import json
from pathlib import Path

import pytest
import recipe
import torch

from wan_model import build_dit, checkpoint
from wan_model.dit import Runtime

T2V = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "checkpoints.json.gz").read_bytes()))[
    "official/wan2.1_t2v_14B"
]
CHANGES = {
    "v": {},
    "v_16": {"frame_rate": 16},
    "v_frames": {"t": torch.tensor([[0.0, 617.0, 617.0, 941.0]])},
}
INPUTS = {"x": recipe.tensor("x", (1, 16, 4, 8, 6)), "context": recipe.tensor("context", (1, 9, 64))}
INPUTS |= {"t": torch.tensor([617.0])}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("chunk", [None, 7])
def test_velocity_is_the_authors(name, chunk, golden, relative_error):
    data = golden("dit_skyreels_df")
    model = build_dit(data.weights())
    assert model.config.variant == "skyreels_df"
    v = model(**INPUTS | CHANGES[name], runtime=Runtime(chunk=chunk))
    assert relative_error(v[0], data.outputs[name]) < 1e-5


def test_a_frame_rate_that_it_was_not_trained_with_is_refused(golden):
    model = build_dit(golden("dit_skyreels_df").weights())
    with pytest.raises(ValueError, match="30 frames a second, this skyreels_df model knows 16 and 24"):
        model(**INPUTS, frame_rate=30)


def test_the_embedding_tells_it_from_text_to_video():
    dim = T2V["head.modulation"][2]
    more = {"fps_embedding.weight": (2, dim)}
    for layer, rows in (("0", dim), ("2", 6 * dim)):
        more |= {f"fps_projection.{layer}.weight": (rows, dim), f"fps_projection.{layer}.bias": (rows,)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in (T2V | more).items()}
    assert checkpoint.recognise(tensors).variant == "skyreels_df"
    del tensors["fps_projection.2.bias"]
    with pytest.raises(ValueError, match="lacks 1 weights of a Wan skyreels_df model"):
        checkpoint.recognise(tensors)
