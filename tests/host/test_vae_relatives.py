"""Relatives of the Wan VAEs, against the host's own class on the same file where the host has them."""

import importlib
import inspect

import comfy.ldm.wan.vae
import comfy.sd
import comfy.utils
import latent_preview
import pytest
import torch
from safetensors.torch import save_file

import nodes
from wan_model.vae import VAEConfig, build_vae, make_vae, vae_config

RECOGNISED = "conv_out_channels" in inspect.signature(comfy.ldm.wan.vae.WanVAE.__init__).parameters


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    """Function (VAEConfig, seed) -> the path of a random file of that VAE in the official layout."""

    def make(config, seed=0):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
        save_file({name: x.contiguous() for name, x in make_vae(config).state_dict().items()}, path)
        return str(path)

    return make


def both(room, path):
    """Our VAE and the host's own of a file, in float32."""
    theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path), dtype=torch.float32)
    return room("host.vae.vae").load(path, "float32", "float32"), theirs


def latent(frames=3, height=4, width=5):
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(1))


def images(frames, channels):
    return torch.rand(frames, 32, 40, channels, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("width", [8, 12, 24])
def test_pruned_vaes_of_other_widths(room, write, width, relative_error):
    ours, theirs = both(room, write(VAEConfig("2.1", 16, width, width)))
    assert relative_error(ours.decode(latent()), theirs.decode(latent())) < 1e-4
    assert relative_error(ours.encode(images(9, 3)), theirs.encode(images(9, 3))) < 1e-4


def test_a_decoder_pruned_more_than_its_encoder(room, write):
    ours = room("host.vae.vae").load(write(VAEConfig("2.1", 16, 16, 8)), "float32", "float32")
    assert ours.decode(latent()).shape == (1, 9, 32, 40, 3)
    assert ours.encode(images(9, 3)).shape == (1, 16, 3, 4, 5)


@pytest.mark.skipif(not RECOGNISED, reason="this host has no VAE of four channels")
def test_a_vae_of_four_channels_is_the_hosts(room, write, relative_error):
    ours, theirs = both(room, write(VAEConfig("2.1", 16, 8, 8, channels=4)))
    decoded = ours.decode(latent())
    assert decoded.shape == (1, 9, 32, 40, 4)
    assert relative_error(decoded, theirs.decode(latent())) < 1e-4
    for channels in (3, 4):  # a picture without alpha is opaque
        assert relative_error(ours.encode(images(5, channels)), theirs.encode(images(5, channels))) < 1e-4


def test_a_vae_of_four_channels_takes_any_images_and_tiles(room, write, run_node, relative_error):
    vae = room("host.vae.vae").load(write(VAEConfig("2.1", 16, 8, 8, channels=4)), "float32", "float32")
    (whole,) = run_node("WanVAEDecode", vae=vae, samples={"samples": latent(2, 9, 9)}, tile_width=0, tile_height=0)
    (tiled,) = run_node("WanVAEDecode", vae=vae, samples={"samples": latent(2, 9, 9)}, tile_width=32, tile_height=48)
    assert whole.shape == (5, 72, 72, 4) and relative_error(tiled, whole) < 1e-4
    rgb, alpha = images(5, 3), torch.ones(5, 32, 40, 1)
    assert relative_error(vae.encode(rgb), vae.encode(torch.cat((rgb, alpha), dim=-1))) == 0
    grey = images(5, 1)
    assert relative_error(vae.encode(grey), vae.encode(grey.expand(-1, -1, -1, 3))) == 0


def test_the_pair_of_wan_alpha(room, write, relative_error):
    """Colours and alpha are decoded from one latent by two plain VAEs; the alpha's result is grey."""
    results = []
    for seed in (0, 1):
        ours, theirs = both(room, write(VAEConfig("2.1", 16, 8, 8), seed))
        results.append(ours.decode(latent()))
        assert relative_error(results[-1], theirs.decode(latent())) < 1e-4
    assert relative_error(*results) > 0.1


@pytest.mark.skipif(not RECOGNISED, reason="this host has no VAE that upscales")
def test_the_upscaling_decoder_is_the_hosts_with_its_channels_shuffled_to_pixels(room, write, relative_error):
    """The host hands the twelve channels over; the file's author shuffles them: ComfyUI-VAE-Utils, `VAE Decode`."""
    ours, theirs = both(room, write(VAEConfig("2.1", 16, 8, 8, upscale=2)))
    twelve = theirs.decode(latent())[0]  # (T, H, W, 12)
    expected = torch.nn.functional.pixel_shuffle(twelve.movedim(-1, 1), 2).movedim(1, -1)
    decoded = ours.decode(latent())
    assert decoded.shape == (1, 9, 64, 80, 3)
    assert relative_error(decoded[0], expected) < 1e-4
    assert relative_error(ours.encode(images(5, 3)), theirs.encode(images(5, 3))) < 1e-4


def test_the_upscaling_decoder_in_tiles_and_while_it_is_saved(room, write, run_node, tmp_path, relative_error):
    vae = room("host.vae.vae").load(write(VAEConfig("2.1", 16, 8, 8, upscale=2)), "float32", "float32")
    given = {"vae": vae, "samples": {"samples": latent(2, 6, 7)}}
    (whole,) = run_node("WanVAEDecode", **given, tile_width=0, tile_height=0)
    (tiled,) = run_node("WanVAEDecode", **given, tile_width=48, tile_height=64)
    assert whole.shape == (5, 96, 112, 3) and relative_error(tiled, whole) < 1e-4
    (video,) = run_node("WanVAEDecodeToVideo", **given, tile_width=0, tile_height=0, fps=16.0)
    assert video.get_dimensions() == (112, 96)
    assert relative_error(video.get_components().images, whole) < 1e-6
    (empty,) = run_node("WanEmptyLatent", vae=vae, width=64, height=48, length=5, batch_size=1)
    assert empty["samples"].shape == (1, 16, 2, 6, 8)


@pytest.mark.parametrize(("read", "made"), [(2, 2), (3, 4), (4, 12), (3, 27), (12, 48), (16, 16)])
def test_other_channels_are_refused_by_name(read, made):
    state = make_vae(VAEConfig("2.1", 16, 8, 8), device="meta").state_dict()
    state["encoder.conv1.weight"] = torch.empty(8, read, 3, 3, 3, device="meta")
    state["decoder.head.2.weight"] = torch.empty(made, 8, 3, 3, 3, device="meta")
    with pytest.raises(ValueError, match=rf"first convolution is \(8, {read}, 3, 3, 3\).*last is \({made}, 8, 3, 3, 3"):
        vae_config(state)


def test_relatives_are_recognised_by_their_weights():
    for config in (VAEConfig("2.1", 16, 8, 12, 4), VAEConfig("2.1", 16, 8, 8, 3, 2), VAEConfig("2.2", 48, 8, 12)):
        state = make_vae(config, device="meta").state_dict()
        assert build_vae(state).config == vae_config(state) == config


@pytest.mark.skipif(not hasattr(latent_preview, "TAEHVPreviewerImpl"), reason="this host has no preview by a video TAE")
def test_the_hosts_tae_previews_show_what_our_model_samples(t2v, prompts, models, monkeypatch):
    folder = models / "vae_approx"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tae = importlib.import_module("comfy.taesd.taehv").TAEHV(latent_channels=16)
    weights = {name: torch.randn(x.shape) * x[:1].numel() ** -0.5 for name, x in tae.state_dict().items()}
    weights["decoder.22.bias"].fill_(0.5)
    save_file(weights, folder / "lighttaew2_1.safetensors")
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.TAESD)
    assert isinstance(
        latent_preview.get_previewer(t2v.load_device, t2v.model.latent_format), latent_preview.TAEHVPreviewerImpl
    )
    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **options: shown.append(preview)
    )
    size = {"samples": torch.zeros(1, 16, 3, 8, 10)}
    nodes.common_ksampler(t2v, 3, 2, 4.0, "euler", "simple", *prompts, size)
    pictures = [preview[1] for preview in shown if preview is not None]
    assert [picture.size for picture in pictures] == [(80, 64)] * 2
    assert all(len(picture.getcolors(80 * 64)) > 20 for picture in pictures)
    assert pictures[0] != pictures[1]
