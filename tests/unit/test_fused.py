"""Files of WanDancer with the projections of the music encoder in one tensor, as its authors keep them."""

import torch

from wan_model.weights import ggml
from wan_model.weights.fused import split_fused


def test_projections_in_one_tensor_are_split():
    name = "model.music_encoder.1.self_attn.in_proj_"
    whole = {name + "weight": torch.arange(36.0).view(12, 3), name + "bias": torch.arange(12.0), "other": torch.ones(2)}
    found = split_fused(whole)
    path = "model.music_encoder.1.self_attn."
    assert torch.equal(found[path + "k_proj.weight"], torch.arange(12.0, 24).view(4, 3))
    assert torch.equal(found[path + "v_proj.bias"], torch.arange(8.0, 12))
    assert len(found) == 7 and torch.equal(found["other"], whole["other"])
    assert split_fused(found).keys() == found.keys()


def test_packed_projections_in_one_tensor_are_split():
    kind = next(kind for kind, layout in ggml.FORMATS.items() if layout.name == "Q8_0")
    blocks = torch.arange(6 * 34).view(6, 34).to(torch.uint8)  # six rows of 32 values
    blocks[:, :2] = torch.tensor([0.5], dtype=torch.float16).view(torch.uint8)  # their scale
    whole = ggml.Packed(blocks, kind)
    found = split_fused({"music_encoder.0.self_attn.in_proj_weight": whole})
    parts = [found[f"music_encoder.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    values = [ggml.unpack(part, torch.float32) for part in parts]
    assert values[0].shape == (2, 32) and values[0].std() > 0
    assert torch.equal(torch.cat(values), ggml.unpack(whole, torch.float32))
