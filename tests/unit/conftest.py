"""Fixtures of the tests that run the models alone."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from tiny import precision, train_dit

from wan_model.dit.model import build_dit

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def more_layouts():
    """Names and shapes of the full-size checkpoints of the rest of the family."""
    return json.loads(gzip.decompress((GOLDEN / "checkpoints_more.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def dit_case(golden):
    """Function from a variant to its model, the keyword arguments of its golden forward, and the official velocity."""

    def load(variant):
        data = golden(f"dit_{variant}")
        inputs = {name: tensor.unsqueeze(0) for name, tensor in data.inputs.items() if name not in ("t", "clip_fea")}
        inputs["t"] = data.inputs["t"]
        if variant == "ti2v":  # one timestep per token, equal within a latent frame
            inputs["t"] = inputs["t"].unflatten(1, (3, -1))[..., 0]  # (1, frames)
        if "clip_fea" in data.inputs:
            inputs["clip_fea"] = data.inputs["clip_fea"].flatten(0, 1).unsqueeze(0)  # (1, 257 or 514, 1280)
        if variant == "vace":
            inputs["vace_scale"] = 0.8
        return build_dit(data.weights()), inputs, data.outputs["v"].unsqueeze(0)

    return load


@pytest.fixture
def cheap_training(monkeypatch):
    """Train in float32, and few matrices by Muon: torch computes a part of it in bfloat16, which can be slow."""
    monkeypatch.setattr(precision, "DTYPE", torch.float32)
    monkeypatch.setattr(train_dit, "is_matrix", lambda name: name.endswith("blocks.0.ffn.0.weight"))
