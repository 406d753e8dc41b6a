"""Every name of every full-size checkpoint in a foreign layout maps to the official name of the same shape."""

import gzip
import json
from pathlib import Path

import pytest

from wan_model.weights import layouts

CHECKPOINTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "checkpoints.json.gz").read_bytes()))

PAIRS = [
    ("hf/umt5_xxl_encoder", "official/umt5_xxl", layouts.UMT5_HF),
    ("diffusers/wan2.1_vae", "official/wan2.1_vae", layouts.VAE21_DIFFUSERS),
    ("diffusers/wan2.2_vae", "official/wan2.2_vae", layouts.VAE22_DIFFUSERS),
    *(
        (name, name.replace("diffusers", "official"), layouts.DIT_DIFFUSERS)
        for name in CHECKPOINTS
        if name.startswith("diffusers/") and "_vae" not in name
    ),
]


@pytest.mark.parametrize("foreign, official, table", PAIRS, ids=[pair[0] for pair in PAIRS])
def test_foreign_names_map_one_to_one(foreign, official, table):
    shapes = CHECKPOINTS[foreign]
    names = layouts.rename(shapes, table)
    assert len(set(names.values())) == len(names)
    assert {ours: shapes[theirs] for theirs, ours in names.items()} == CHECKPOINTS[official]


@pytest.mark.parametrize("foreign, official, table", PAIRS, ids=[pair[0] for pair in PAIRS])
def test_official_names_map_back(foreign, official, table):
    names = layouts.rename(CHECKPOINTS[official], layouts.inverse(table))
    assert set(CHECKPOINTS[foreign]) - set(names.values()) <= {"encoder.embed_tokens.weight"}
    assert {names[ours]: theirs for ours, theirs in CHECKPOINTS[official].items()}.items() <= CHECKPOINTS[
        foreign
    ].items()


def test_markers_follow_their_weight_and_unknown_names_stay():
    names = ["encoder.block.11.layer.0.SelfAttention.q.scale_weight", "spiece_model", "blocks.3.norm22.weight"]
    renamed = layouts.rename(names, layouts.UMT5_HF)
    assert list(renamed.values()) == ["blocks.11.attn.q.scale_weight", "spiece_model", "blocks.3.norm22.weight"]
    assert layouts.rename(["blocks.3.norm22.weight", "blocks.3.norm2.weight"], layouts.DIT_DIFFUSERS) == {
        "blocks.3.norm22.weight": "blocks.3.norm22.weight",
        "blocks.3.norm2.weight": "blocks.3.norm3.weight",
    }


def test_llama_cpp_names_of_umt5_map_one_to_one():
    official = [name for name in CHECKPOINTS["official/umt5_xxl"] if not name.startswith("dec")]
    names = layouts.rename(official, layouts.inverse(layouts.UMT5_GGUF))
    assert all(theirs.startswith(("enc.blk.", "enc.output_norm.", "token_embd.")) for theirs in names.values())
    assert len(set(names.values())) == len(names)
    assert list(layouts.rename(names.values(), layouts.UMT5_GGUF).values()) == official
