"""The VAEs against the official code's outputs, and their streams against the whole."""

import gzip
import json
from itertools import chain, count, repeat
from pathlib import Path

import pytest
import torch

from wan_model.vae import build_vae, vae_config
from wan_model.vae.convolution import RMSNorm

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", params=["vae21", "vae22"])
def case(request, golden):
    return golden(request.param)


@pytest.fixture(scope="module")
def vae(case):
    return build_vae(case.weights())


@pytest.fixture(scope="module")
def checkpoints():
    with gzip.open(GOLDEN / "checkpoints.json.gz") as file:
        return json.load(file)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_encode_and_decode_are_the_official_ones(case, vae, relative_error):
    assert relative_error(vae.encode(case.inputs["video"]), case.outputs["mu"]) < 1e-5
    assert relative_error(vae.decode(case.inputs["latent"]), case.outputs["video"]) < 1e-5


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
def test_decode_stream_gives_one_frame_then_four_and_equals_the_whole(frames, vae, relative_error):
    latent = noise(1, vae.config.latent_channels, (frames - 1) // 4 + 1, 3, 4, seed=frames)
    chunks = list(vae.decode_stream(latent))
    assert [chunk.shape[2] for chunk in chunks] == [1] + [4] * (latent.shape[2] - 1)
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latent))
    # time is causal: what is decoded so far does not depend on later latents
    assert relative_error(chunks[0], vae.decode(latent[:, :, :1])) < 1e-6


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
@pytest.mark.parametrize("piece", [1, 3, 16])
def test_encode_stream_takes_pieces_of_any_length_and_equals_the_whole(frames, piece, vae):
    side = 2 * vae.config.stride
    video = noise(1, 3, frames, side, side, seed=frames)
    latents = list(vae.encode_stream(video.split(piece, dim=2)))
    assert [latent.shape[2] for latent in latents] == [1] * ((frames - 1) // 4 + 1)
    assert torch.equal(torch.cat(latents, dim=2), vae.encode(video))


def pieces(latent, lengths):
    """A generator of parts of `latent` with these numbers of frames, the last of them repeated."""
    at = 0
    for length in chain(lengths, repeat(lengths[-1])):
        if at >= latent.shape[2]:
            return
        yield latent[:, :, at : at + length]
        at += length


@pytest.mark.parametrize("lengths", [[1], [2, 0, 3, 1], [6]])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_latent_that_comes_in_pieces_decodes_as_the_whole(lengths, tiled, vae, relative_error):
    latent = noise(1, vae.config.latent_channels, 6, 3, 5)
    tile = (64, 32) if tiled else None
    chunks = list(vae.decode_stream(pieces(latent, lengths), tile=tile))
    assert [chunk.shape[2] for chunk in chunks] == [1] + [4] * 5
    assert relative_error(torch.cat(chunks, dim=2), vae.decode(latent)) < 1e-5


def test_an_endless_latent_is_read_as_it_is_decoded(vae):
    read = []

    def endless():
        for seed in count():
            read.append(seed)
            yield noise(1, vae.config.latent_channels, 1, 3, 4, seed=seed)

    stream = vae.decode_stream(endless())
    for done in range(1, 5):
        next(stream)
        assert len(read) == done


def test_pieces_of_other_sizes_are_refused(vae):
    channels = vae.config.latent_channels
    mixed = (noise(1, channels, 1, 3, width) for width in (4, 5))
    with pytest.raises(ValueError, match=r"A latent of \(1, \d+, 1, 3, 5\) follows one of \(1, \d+, 1, 3, 4\)"):
        list(vae.decode_stream(mixed))
    for none in (iter([]), noise(1, channels, 0, 3, 4)):
        with pytest.raises(ValueError, match="The latent has 0 frames"):
            vae.decode_stream(none)


def test_a_batch_is_its_samples(vae, relative_error):
    latent = noise(2, vae.config.latent_channels, 2, 3, 4)
    both = vae.decode(latent)
    assert relative_error(both[1:], vae.decode(latent[1:])) < 1e-5
    video = noise(2, 3, 5, 32, 32)
    assert relative_error(vae.encode(video)[1:], vae.encode(video[1:])) < 1e-5


def test_two_streams_over_one_module_do_not_disturb_each_other(vae):
    first, second = (noise(1, vae.config.latent_channels, 3, 3, 4, seed=seed) for seed in (1, 2))
    pairs = list(zip(vae.decode_stream(first), vae.decode_stream(second), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), vae.decode(first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), vae.decode(second))


@pytest.mark.parametrize(("name", "version", "dims"), [("2.1", "2.1", (16, 96, 96)), ("2.2", "2.2", (48, 160, 256))])
def test_full_size_checkpoints_are_recognised(name, version, dims, checkpoints):
    shapes = checkpoints[f"official/wan{name}_vae"]
    vae = build_vae({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert vae.config.version == version
    assert (vae.config.latent_channels, vae.config.dim, vae.config.dec_dim) == dims


def test_other_files_are_named_in_one_sentence(case):
    weights = case.weights()
    with pytest.raises(ValueError, match="not a Wan VAE"):
        vae_config({"first_stage_model.encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"lacks 1 weights: decoder\.head\.0\.gamma"):
        build_vae({name: x for name, x in weights.items() if name != "decoder.head.0.gamma"})
    with pytest.raises(ValueError, match="unexpected 1 weights: extra"):
        build_vae({**weights, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"another shape for 1 weights: conv1\.bias"):
        build_vae({**weights, "conv1.bias": torch.zeros(3)})


@pytest.mark.parametrize("frames", [0, 2, 4, 6, 100])
def test_frames_that_are_not_4n_plus_1_are_refused(frames, vae):
    video = torch.rand(1, 3, frames, 32, 32)
    with pytest.raises(ValueError, match=f"{frames} frames"):
        list(vae.encode_stream(video.split(1, dim=2) if frames else []))


def test_wrong_channels_and_sides_are_refused(vae):
    channels = vae.config.latent_channels
    with pytest.raises(ValueError, match=rf"latents of {channels} channels.*\(1, 4, 1, 3, 4\)"):
        vae.decode(torch.zeros(1, 4, 1, 3, 4))
    with pytest.raises(ValueError, match=rf"multiples of {vae.config.stride}.*\(1, 3, 1, 33, 32\)"):
        vae.encode(torch.zeros(1, 3, 1, 33, 32))


def test_a_pixel_of_zeros_is_normalised_to_zeros_in_float16():
    """The official bound of a length, 1e-12, is 0 there, which gave NaN."""
    x = noise(1, 4, 1, 3, 3).half()
    x[..., 1, 1] = 0
    normed = RMSNorm(4)(x)
    assert normed.isfinite().all()
    assert normed[..., 1, 1].abs().max() == 0 < normed.abs().max()
