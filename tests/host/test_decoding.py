"""A clip that is decoded part by part, each from the caches of the one before."""

from itertools import pairwise
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import pytest
import torch

GRAPH = {"1": {"inputs": {"samples": ["7", 0]}}, "2": {"inputs": {"before": ["1", 1], "vae": ["8", 0]}}}


@pytest.fixture(scope="module", params=["wan2.1_vae", "wan2.2_vae"])
def vae(request, room, models):
    return room("host.vae.vae").load(str(models / "vae" / f"tiny_random_{request.param}.safetensors"))


@pytest.fixture(scope="module")
def latent(vae):
    shape = (1, vae.latent_channels, 7, 4, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def wired(monkeypatch, room):
    """Lets the node find a link on its second output."""
    monkeypatch.setattr(room("nodes.video"), "is_connected", lambda hidden, output: output == 1)


def decoded(run_node, vae, samples, before=None):
    """Frames and decoding of the node."""
    inputs = {"tile_width": 0, "tile_height": 0, "fps": 16.0} | ({} if before is None else {"before": before})
    video, decoding = run_node("WanVAEDecodePart", vae=vae, samples={"samples": samples}, **inputs)
    return video.get_components().images, decoding


@pytest.mark.parametrize("ends", [(1, 7), (3, 7), (2, 3, 7)])
def test_parts_are_the_joined_clip(run_node, vae, latent, relative_error, wired, ends):
    parts, decoding = [], None
    for end in ends:
        images, decoding = decoded(run_node, vae, latent[:, :, :end], decoding)
        parts.append(images)
    whole = vae.decode(latent)[0]
    assert [len(part) for part in parts][1:] == [4 * (b - a) for a, b in pairwise(ends)]
    assert relative_error(torch.cat(parts), whole) < 1e-6


def test_no_frame_is_decoded_twice_or_encoded(run_node, vae, latent, wired, monkeypatch):
    seen, network = [], vae.first_stage_model

    def decode_stream(samples, **options):
        seen.append(samples.shape[2])
        return network.decode_stream(samples, **options)

    monkeypatch.setattr(vae, "first_stage_model", SimpleNamespace(decode_stream=decode_stream))
    decoding = None
    for end in (2, 4, 7):
        _, decoding = decoded(run_node, vae, latent[:, :, :end], decoding)
    assert seen == [2, 2, 3]


def test_there_is_one_set_of_caches_and_a_second_run_gives_the_same(run_node, vae, latent, wired, relative_error):
    _, first = decoded(run_node, vae, latent[:, :, :3])
    images, second = decoded(run_node, vae, latent, first)
    assert first._past is None and second._past is not None
    again, _ = decoded(run_node, vae, latent, first)
    assert relative_error(again, images) < 1e-6


def test_a_decode_that_nothing_follows_keeps_no_caches(run_node, vae, latent, relative_error):
    whole, decoding = decoded(run_node, vae, latent[:, :, :3])
    assert decoding._past is None
    images, _ = decoded(run_node, vae, latent, decoding)  # connected after it had run
    assert relative_error(torch.cat((whole, images)), vae.decode(latent)[0]) < 1e-6


def test_a_link_is_found_in_the_graph_as_it_runs(room):
    graph = SimpleNamespace(all_node_ids=lambda: GRAPH, get_node=GRAPH.get)
    connected = room("nodes.inputs").is_connected
    assert connected(SimpleNamespace(unique_id="1", dynprompt=graph), 1)
    assert not connected(SimpleNamespace(unique_id="1", dynprompt=graph), 0)
    assert not connected(SimpleNamespace(unique_id="2", dynprompt=graph), 1)


def test_what_cannot_go_on_is_refused_in_a_sentence(run_node, room, models, vae, latent, wired):
    _, first = decoded(run_node, vae, latent[:, :, :3])
    for samples in (latent[:, :, :3], latent.flip(2), latent[:, :, 3:]):
        with pytest.raises(ValueError, match=r"ended after 3 latent frames, and these \d do not begin with the same"):
            decoded(run_node, vae, samples, first)
    with pytest.raises(ValueError, match="decodes one clip and was given 2"):
        decoded(run_node, vae, latent.expand(2, -1, -1, -1, -1))
    path = models / "vae" / f"tiny_random_wan{vae.config.version}_vae.safetensors"
    with pytest.raises(ValueError, match="used another VAE"):
        decoded(run_node, room("host.vae.vae").load(str(path)), latent, first)
    if vae.config.version == "2.1":
        theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)), dtype=torch.float32)
        with pytest.raises(ValueError, match="ComfyUI's own"):
            decoded(run_node, theirs, latent)
