"""torch.compile of single blocks: one graph without a break serves all of them, every step, size and LoRA strength."""

import pytest
import recipe
import torch
from torch._dynamo import reset

from wan_model.dit.config import DiTConfig
from wan_model.dit.model import WanDiT, build_dit
from wan_model.dit.runtime import Runtime

CONFIG = DiTConfig(variant="ti2v", dim=256, ffn_dim=512, heads=2, layers=2, in_dim=48, out_dim=48, text_dim=64)


@pytest.fixture
def dit():
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in WanDiT(CONFIG).state_dict().items()}
    return build_dit(recipe.state_dict(shapes))


def call(dit, size, sigma, **options):
    frames = size[0]
    t = torch.full((1, frames), 1000 * sigma)
    t[:, 0] = 0
    x, context = recipe.tensor("x", (1, 48, *size)), recipe.tensor("context", (1, 20, 64))
    with torch.no_grad():
        return dit(x, t, context, **options)


@pytest.mark.slow
def test_one_graph_serves_blocks_steps_sizes_and_loras(dit, relative_error):
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    reset()
    compiled = [torch.compile(block, backend=backend, fullgraph=True, dynamic=True) for block in dit.blocks]

    def run_block(index, block, x, inputs):
        return compiled[index](x, inputs)

    runtime = Runtime(run_block=run_block)
    for size in ((3, 8, 10), (5, 12, 8)):
        for sigma in (0.9, 0.5):
            assert (
                relative_error(call(dit, size, sigma, runtime=Runtime(run_block=run_block)), call(dit, size, sigma))
                < 1e-6
            )
    before = call(dit, size, sigma)
    down, up = recipe.tensor("down", (4, 256)), recipe.tensor("up", (256, 4))
    dit.blocks[0].self_attn.q.weight.add_(up @ down, alpha=0.02)
    after = call(dit, size, sigma)
    assert relative_error(after, before) > 1e-3
    assert relative_error(call(dit, size, sigma, runtime=runtime), after) < 1e-6
    assert len(graphs) == 1
