"""The host's fused kernels against torch's operations, on the CPU, where comfy-kitchen computes without fusing."""

import comfy.quant_ops
import pytest
import torch
from comfy.ops import disable_weight_init

pytestmark = pytest.mark.skipif(not hasattr(comfy.quant_ops, "ck"), reason="this ComfyUI has no comfy-kitchen")


@pytest.mark.parametrize("frames, batch, chunk", [(1, 1, None), (3, 1, None), (3, 2, 40)])
def test_a_forward_by_the_hosts_kernels_is_the_same(frames, batch, chunk, room, relative_error):
    config = room("wan_model.dit.config").DiTConfig(
        variant="ti2v", dim=256, ffn_dim=512, heads=2, layers=2, in_dim=48, out_dim=48, text_dim=64
    )
    model = room("wan_model.dit.model").WanDiT(config, ops=disable_weight_init)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    x = torch.randn(batch, 48, 3, 8, 10, generator=generator)
    t = torch.linspace(0, 900, batch * frames).view(batch, frames)
    context = torch.randn(batch, 20, 64, generator=generator)
    runtime = room("wan_model.dit.runtime").Runtime(chunk=chunk, kernels=room("host.model.kernels").FUSED)
    fused = model(x, t, context, runtime=runtime)
    assert relative_error(fused, model(x, t, context)) < 1e-5


def test_torch_is_left_in_place_where_no_kernel_is_made_for_it(room):
    assert room("host.model.kernels").choose(torch.zeros(1, dtype=torch.bfloat16)) is room("wan_model.dit.layers").TORCH
