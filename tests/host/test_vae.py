"""Our VAE in the host's own VAE nodes, in tiles, and when memory runs out."""

import comfy.model_management
import comfy.sd
import comfy.utils
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
    return room("host.vae.vae").load(path)


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


def test_memory_that_runs_out_while_a_chunk_comes_costs_no_frame(vae, alone, latent, frames, monkeypatch):
    to, moved, channels = torch.Tensor.to, [], 16

    def failing(self, *args, **kwargs):
        if self.ndim == 5 and self.shape[1] == channels and kwargs.keys() == {"device"}:
            moved.append(self.shape)
            if len(moved) == 2:
                raise torch.cuda.OutOfMemoryError("planted")
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", failing)
    images = vae.decode(latent)[0]
    assert len(moved) > 3, "the plant was never reached"
    assert (images - frames).abs().max() < 1e-4
    moved.clear()
    channels = 3
    encoded = vae.encode(frames)
    assert len(moved) > 3
    monkeypatch.undo()
    assert (encoded - alone.encode((frames * 2 - 1).movedim(-1, 0)[None])).abs().max() < 1e-4


def test_only_what_says_so_is_out_of_memory(vae, latent, frames, monkeypatch):
    """A newer host counts some errors of the accelerator, an older one none of them."""
    known, convolve = hasattr(comfy.model_management, "is_oom"), torch.nn.functional.conv3d
    for error, message, counts in (
        (torch.AcceleratorError, "CUDA error: out of memory", known),
        (torch.AcceleratorError, "CUDA error: misaligned address", False),
        (RuntimeError, "GET was unable to find an engine to execute this computation", True),  # cuDNN's
    ):
        calls = []

        def failing(*args, calls=calls, error=error, message=message, **kwargs):
            calls.append(args[0].shape)
            if len(calls) == 7:
                raise error(message)
            return convolve(*args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "conv3d", failing)
        if counts:
            assert (vae.decode(latent)[0] - frames).abs().max() < 1e-4
        else:
            with pytest.raises(torch.AcceleratorError, match=message):
                vae.decode(latent)


def test_a_newer_host_loads_the_vae_again(vae, latent, relative_error):
    make, arguments = vae.patcher.cached_patcher_init
    again = make(*arguments, disable_dynamic=True)
    assert again.model is not vae.first_stage_model
    assert relative_error(again.model.decode(latent), vae.first_stage_model.decode(latent)) == 0


def test_clips_of_five_dimensions_keep_their_frames(vae, frames, relative_error):
    pair = torch.stack((frames, frames.flip(0)))  # (B, T, H, W, 3)
    encoded = vae.encode(pair[:, :, :-3])
    assert encoded.shape[:3] == (2, 16, 3)
    for clip, latent in zip(pair, encoded, strict=True):
        assert relative_error(latent, vae.encode(clip[:, :-3])[0]) < 1e-5


def test_a_side_of_0_is_the_whole_side_of_a_small_frame(run_node, vae, relative_error):
    small = {"samples": torch.randn(1, 16, 1, 3, 9, generator=torch.Generator().manual_seed(5))}
    whole = run_node("WanVAEDecode", vae=vae, samples=small, tile_width=0, tile_height=0)[0]
    tiled = run_node("WanVAEDecode", vae=vae, samples=small, tile_width=48, tile_height=0)[0]
    assert relative_error(tiled, whole) < 1e-5


def test_a_vae_of_the_host_is_decoded_and_encoded_in_its_own_tiles(run_node, path):
    theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path), dtype=torch.float32)
    tile = {"tile_width": 64, "tile_height": 0}
    samples = {"samples": torch.randn(1, 16, 2, 12, 14, generator=torch.Generator().manual_seed(6))}
    (images,) = run_node("WanVAEDecode", vae=theirs, samples=samples, **tile)
    assert images.shape == (5, 96, 112, 3) and images.std() > 0.01
    (latent,) = run_node("WanVAEEncode", vae=theirs, images=images, **tile)
    assert latent["samples"].shape == samples["samples"].shape
    with pytest.raises(ValueError, match="given 48-channel latents"):
        run_node("WanVAEDecode", vae=theirs, samples={"samples": torch.ones(1, 48, 1, 4, 4)}, **tile)


def test_nothing_to_encode_or_decode_is_one_sentence(run_node, vae):
    for images, message in (
        (torch.rand(0, 64, 64, 3), r"There are 0 images, and a clip needs 1 or more"),
        (torch.rand(5, 7, 64, 3), r"The images are 64x7 pixels and one latent pixel of this VAE is 8 wide"),
    ):
        with pytest.raises(ValueError, match=message):
            run_node("WanVAEEncode", vae=vae, images=images, tile_width=0, tile_height=0)
    with pytest.raises(ValueError, match=r"The latent is empty: \(1, 16, 0, 4, 4\)"):
        run_node("WanVAEDecode", vae=vae, samples={"samples": torch.ones(1, 16, 0, 4, 4)}, tile_width=0, tile_height=0)
    endless = torch.randn(1, 16, 2, 4, 4)
    endless[0, 0, 1, 0, 0] = float("-inf")
    with pytest.raises(ValueError, match="Latent frame 1 of 2 holds NaN or infinite"):
        run_node("WanVAEDecode", vae=vae, samples={"samples": endless}, tile_width=0, tile_height=0)


@pytest.mark.parametrize("node", ["host", "pack"])
def test_grey_images_are_taken_as_grey_and_alpha_is_dropped(run_node, vae, frames, node, relative_error):
    def encoded(images):
        if node == "host":
            return nodes.VAEEncode().encode(vae, images)[0]["samples"]
        return run_node("WanVAEEncode", vae=vae, images=images, tile_width=0, tile_height=0)[0]["samples"]

    grey = frames[..., :1]
    assert relative_error(encoded(grey), encoded(grey.repeat(1, 1, 1, 3))) == 0
    assert relative_error(encoded(torch.cat((frames, grey), dim=-1)), encoded(frames)) == 0


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_other_channels_are_one_sentence(run_node, vae, channels):
    with pytest.raises(ValueError, match=f"The images have {channels} channels and the VAE takes 1"):
        run_node("WanVAEEncode", vae=vae, images=torch.rand(1, 64, 64, channels), tile_width=0, tile_height=0)


@pytest.mark.parametrize("encode", [False, True])
def test_cancelling_stops_within_a_latent_frame_and_the_next_run_works(run_node, vae, latent, frames, encode):
    node, given = ("WanVAEEncode", {"images": frames}) if encode else ("WanVAEDecode", {"samples": {"samples": latent}})
    inputs = {"vae": vae, "tile_width": 0, "tile_height": 0, **given}
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node(node, **inputs)
    assert run_node(node, **inputs)[0] is not None


def test_little_free_memory_gives_tiles(vae, latent, frames, monkeypatch, caplog):
    caplog.set_level("INFO")
    whole = vae.memory_used_decode(LATENT, vae.vae_dtype)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: whole)
    images = vae.decode(latent)
    assert "tiles of up to" in caplog.text
    assert (images[0] - frames).abs().max() < 1e-4


def test_precisions_are_separate(room, path):
    vae = room("host.vae.vae").load(path, "bfloat16", "float32")
    assert vae.first_stage_model.decoder.conv1.weight.dtype == torch.bfloat16
    assert vae.first_stage_model.encoder.conv1.weight.dtype == torch.float32
    assert vae.decode(torch.randn(1, 16, 1, 4, 4)).isfinite().all()
    assert vae.encode(torch.rand(5, 32, 32, 3)).isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_lie_as_the_activations_do(room, path, alone, dtype):
    network = room("host.vae.vae").load(path, dtype, dtype).first_stage_model
    for weights in (network.state_dict(), alone.state_dict()):
        spatial = [x for x in weights.values() if x.ndim > 3 and x[0, 0].numel() > 1]
        assert len(spatial) == 62
        assert all(x.stride(1) == 1 for x in spatial)


def test_the_hosts_guard_against_cudnns_memory_holds_here_too(room, path, latent, monkeypatch, relative_error):
    """Since torch 2.9 some cuDNN takes many times the memory for 3-D convolutions in bfloat16: the host knows which."""
    vae, calls = room("host.vae.vae").load(path, "bfloat16"), []
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
