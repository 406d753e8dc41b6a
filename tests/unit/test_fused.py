"""Files of WanDancer with the projections of the music encoder in one tensor, as its authors keep them."""

import torch

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
