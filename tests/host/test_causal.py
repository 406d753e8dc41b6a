"""Causal models in the host: its sampler on our MODEL, and what it is refused for."""

import comfy.model_base
import comfy.samplers
import pytest
import torch
from official import files, runner

HOST_HAS_CAUSAL = hasattr(comfy.model_base, "WAN21_CausalAR")
needs_sampler = pytest.mark.skipif(not HOST_HAS_CAUSAL, reason="this ComfyUI has no sampler of causal models")


@pytest.fixture
def model(room, tmp_path):
    path = files.write_dit(tmp_path / "causal.safetensors", "causal")
    return room("host.model.loading").load(str(path), "float32")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(model, cfg=1.0, frames=3):
    """The latent of the host's sampler of causal models, framewise, in two steps."""
    runner.load_extra_nodes()
    text = [[random(1, 8, 4096), {}]]
    return runner.run_node(
        "SamplerCustom",
        model=model, add_noise=True, noise_seed=1, cfg=cfg, positive=text, negative=text,
        sampler=runner.run_node("SamplerARVideo", num_frame_per_block=1)[0], sigmas=torch.tensor([1.0, 0.8, 0.0]),
        latent_image={"samples": torch.zeros(1, 16, frames, 8, 8)},
    )[0]["samples"]  # fmt: skip


@pytest.mark.skipif(HOST_HAS_CAUSAL, reason="this ComfyUI knows causal models")
def test_an_old_host_does_not_know_it(room, tmp_path):
    path = files.write_dit(tmp_path / "causal.safetensors", "causal")
    with pytest.raises(ValueError, match=r"does not know text to video in blocks.*update ComfyUI"):
        room("host.model.loading").load(str(path), "float32")


@needs_sampler
def test_it_is_the_authors_rollout(model, room, relative_error):
    """The host's sampler draws its noise itself; with the same noise it makes what our rollout does."""
    drawn = []

    def draw(like, generate=torch.randn_like):
        drawn.append(generate(like))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", draw)
        made = sample(model)
    noise = torch.randn((1, 16, 3, 8, 8), generator=torch.manual_seed(1))
    network = room("wan_model").build_dit(dict(model.model.diffusion_model.state_dict()))
    settings = {"sigmas": [1.0, 0.8], "renoise": torch.cat(drawn, dim=2)[None], "blocks": 1}
    blocks = room("wan_model.causal").rollout(network, noise, random(1, 8, 4096), **settings)
    latent = model.model.process_latent_out(torch.cat(list(blocks), dim=2))
    assert relative_error(made, latent) < 1e-4


@needs_sampler
def test_guidance_is_refused(model):
    with pytest.raises(ValueError, match="set cfg to 1"):
        sample(model, cfg=2.0)


@needs_sampler
def test_an_altered_block_is_refused(model):
    model.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda x, *arguments, **options: x)
    with pytest.raises(ValueError, match="replaces parts of the network's blocks"):
        sample(model)


@needs_sampler
def test_the_hosts_inner_calls(model, room, relative_error):
    """`forward_block` with the caches of `init_kv_caches`; a reset forgets all frames."""
    network = model.model.diffusion_model
    x, t, text = random(1, 16, 2, 8, 8), torch.full((1, 2), 600.0), random(1, 8, 4096)
    caches, texts = network.init_kv_caches(1, 64, "cpu", torch.float32), network.init_crossattn_caches(1, "cpu", None)
    first = network.forward_block(x, t, text, 0, caches, texts)
    assert [cache["end"] for cache in caches] == [32]
    second = network.forward_block(x, t, text, 2, caches, texts)
    assert [cache["end"] for cache in caches] == [64]
    network.reset_kv_caches(caches)
    assert relative_error(second, first) > 1e-3
    assert relative_error(network.forward_block(x, t, text, 0, caches, texts), first) < 1e-6


@needs_sampler
def test_the_host_makes_room_for_the_cache(model, room):
    config, shape = model.model.diffusion_model.config, (1, 16, 21, 60, 104)
    needed = room("host.model.memory").needed(config, shape, torch.float32)
    cache = 2 * config.layers * config.dim * 4 * (21 * 30 * 52 + 512)
    assert model.model.memory_required(shape) == needed + cache
