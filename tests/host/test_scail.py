"""SCAIL-2's two ways of placing references and pose, against the host's own class, on random weights."""

import pytest
import torch

wan = pytest.importorskip("comfy.ldm.wan.model")
pytestmark = pytest.mark.skipif(not hasattr(wan, "SCAIL2WanModel"), reason="this ComfyUI has no SCAIL-2")


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_network_is_the_hosts(flag, references, room, relative_error):
    import comfy.ops

    sizes = dict(in_dim=20, dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64)
    theirs = wan.SCAIL2WanModel(**sizes, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.05 for name, tensor in theirs.state_dict().items()
    }
    theirs.load_state_dict(weights)
    ours = room("wan_model").build_dit(weights)
    assert ours.config.variant == "scail2"

    def random(*shape):
        return torch.randn(shape, generator=generator)

    frames = 3 + references
    x, t, context = random(1, 20, 3, 8, 12), torch.tensor([600.0]), random(1, 512, 64)
    clip_fea, pose, masks = random(1, 257, 1280), random(1, 20, 3, 4, 6), random(1, 28, 3, 4, 6)
    given = {"reference_latent": random(1, 20, references, 8, 12)} if references else {}
    ref_masks = random(1, 28, frames, 8, 12)
    if flag is not None:
        given["ref_mask_flag"] = flag
    expected = theirs(
        x, t, context, clip_fea=clip_fea, pose_latents=pose, sam_latents=masks, ref_mask_latents=ref_masks,
        transformer_options={}, **given,
    )  # fmt: skip
    found = ours(
        x, t, context, clip_fea=clip_fea, pose_latents=pose, pose_masks=masks, ref_masks=ref_masks,
        ref_latent=given.get("reference_latent"), is_animation=flag,
    )  # fmt: skip
    assert relative_error(found, expected) < 1e-5
