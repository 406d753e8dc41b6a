"""Our VAE in the host's own VAE nodes, in tiles, and when memory runs out."""

import comfy.model_management
import pytest
import torch

import nodes
from wan_model import build_vae
from wan_model import checkpoint as files

LATENT = (1, 16, 3, 10, 12)


@pytest.fixture(scope="module")
def path(models):
    return str(models / "vae" / "tiny_random_wan2.1_vae.safetensors")


@pytest.fixture(scope="module")
def vae(room, path):
    return room("host.vae").load(path)


@pytest.fixture(scope="module")
def alone(path):
    return build_vae(files.load(path)[0], dtype=torch.float32)


@pytest.fixture(scope="module")
def latent():
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def frames(alone, latent):
    video = alone.decode(latent)
    return (video.movedim(1, -1) * 0.5 + 0.5).clamp(0, 1)[0]  # (T, H, W, 3)


def test_the_hosts_decode_is_the_models(vae, latent, frames, relative_error):
    (images,) = nodes.VAEDecode().decode(vae, {"samples": latent})
    assert relative_error(images, frames) < 1e-5


@pytest.mark.parametrize("size", [64, 96])
def test_the_hosts_tiled_decode_has_no_seams(vae, latent, frames, size):
    (images,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, size, 16, 8, 4)
    assert (images - frames).abs().max() < 1e-4


def test_the_hosts_encode_is_the_models(vae, alone, frames, relative_error):
    latent = alone.encode((frames * 2 - 1).movedim(-1, 0)[None])
    assert relative_error(nodes.VAEEncode().encode(vae, frames)[0]["samples"], latent) < 1e-5
    tiled = nodes.VAEEncodeTiled().encode(vae, frames, 64, 16)[0]["samples"]
    assert (tiled - latent).abs().max() < 1e-4


def test_the_packs_nodes_give_the_same(run_node, vae, alone, latent, frames, relative_error):
    inputs = {"vae": vae, "tile_width": 0, "tile_height": 64}
    (images,) = run_node("WanVAEDecode", samples={"samples": latent}, **inputs)
    assert (images - frames).abs().max() < 1e-4
    expected = alone.encode((frames * 2 - 1).movedim(-1, 0)[None])
    (encoded,) = run_node("WanVAEEncode", images=torch.cat((frames, frames[:2])), **inputs)  # 11 frames: 9 count
    assert relative_error(encoded["samples"], expected) < 1e-4


def test_a_batch_is_decoded_clip_by_clip(run_node, vae, alone, relative_error):
    pair = torch.randn(2, 16, 2, 6, 6, generator=torch.Generator().manual_seed(4))
    (images,) = run_node("WanVAEDecode", vae=vae, samples={"samples": pair}, tile_width=0, tile_height=0)
    expected = (alone.decode(pair).movedim(1, -1) * 0.5 + 0.5).clamp(0, 1).flatten(0, 1)
    assert relative_error(images, expected) < 1e-5


def test_running_out_of_memory_costs_no_frame(vae, latent, frames, monkeypatch):
    convolve, calls = torch.nn.functional.conv3d, []

    def failing(*args, **kwargs):
        calls.append(args[0].shape)
        if len(calls) in (7, 40):
            raise torch.cuda.OutOfMemoryError("planted")
        return convolve(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv3d", failing)
    images = vae.decode(latent)
    assert len(calls) > 40, "the plant was never reached"
    assert (images[0] - frames).abs().max() < 1e-4


def test_little_free_memory_gives_tiles(vae, latent, frames, monkeypatch, caplog):
    caplog.set_level("INFO")
    whole = vae.memory_used_decode(LATENT, vae.vae_dtype)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: whole)
    images = vae.decode(latent)
    assert "tiles of up to" in caplog.text
    assert (images[0] - frames).abs().max() < 1e-4


def test_precisions_are_separate(room, path):
    vae = room("host.vae").load(path, "bfloat16", "float32")
    assert vae.first_stage_model.decoder.conv1.weight.dtype == torch.bfloat16
    assert vae.first_stage_model.encoder.conv1.weight.dtype == torch.float32
    assert vae.decode(torch.randn(1, 16, 1, 4, 4)).isfinite().all()
    assert vae.encode(torch.rand(5, 32, 32, 3)).isfinite().all()


def test_the_hosts_guard_against_cudnns_memory_holds_here_too(room, path, latent, monkeypatch, relative_error):
    """Since torch 2.9 some cuDNN takes many times the memory for 3-D convolutions in bfloat16: the host knows which."""
    vae, calls = room("host.vae").load(path, "bfloat16"), []
    expected = vae.decode(latent)

    def convolution(x, weight, padding, stride, dilation, groups, **options):
        calls.append(weight.shape)
        return torch.nn.functional.conv3d(x, weight, None, stride, padding, dilation, groups)

    monkeypatch.setattr(torch, "cudnn_convolution", convolution)
    assert torch.equal(vae.decode(latent), expected)
    assert not calls  # none of it on a CPU
    monkeypatch.setattr(comfy.ops, "NVIDIA_MEMORY_CONV_BUG_WORKAROUND", True)
    assert relative_error(vae.decode(latent), expected) < 0.03
    assert {len(shape) for shape in calls} == {5}


def test_bad_latents_and_tiles_are_one_sentence(run_node, vae, latent):
    def decode(samples, tile=0):
        run_node("WanVAEDecode", vae=vae, samples={"samples": samples}, tile_width=tile, tile_height=tile)

    with pytest.raises(ValueError, match=r"decodes 16-channel latents .* given 48-channel latents"):
        decode(torch.ones(1, 48, 1, 4, 4))
    broken = latent.clone()
    broken[0, 3, 1, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="Latent frame 1 of 3 holds NaN"):
        decode(broken)
    with pytest.raises(ValueError, match="16x16 pixels is too small"):
        decode(latent, 16)
