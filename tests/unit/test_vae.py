"""The VAEs against the official code's outputs, and their streams against the whole."""

import copy
import functools
import gzip
import json
from itertools import chain, count, repeat
from pathlib import Path

import pytest
import recipe
import torch

from wan_model.vae import VAEConfig, build_vae, from_tensors, make_vae, vae_config
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


def join_points(vae, latent, cuts, tiles):
    """Decode `latent` in parts that end at `cuts`, each from the past of the one before; tiles: of each part."""
    past, at, chunks = None, 0, []
    for cut, tile in zip((*cuts, latent.shape[2]), tiles, strict=True):
        stream = vae.decode_stream(latent[:, :, at:cut], tile=tile, past=past, goes_on=True)
        chunks += list(stream)
        past, at = stream.past(), cut
    return torch.cat(chunks, dim=2)


@pytest.mark.parametrize("cuts", [(1,), (3,), (1, 2, 4)])
def test_parts_that_carry_the_caches_over_decode_as_the_whole(cuts, vae, relative_error):
    latent = noise(1, vae.config.latent_channels, 6, 3, 5)
    whole = vae.decode(latent)
    assert relative_error(join_points(vae, latent, cuts, [None] * (len(cuts) + 1)), whole) < 1e-6
    apart = torch.cat([vae.decode(latent[:, :, : cuts[0]]), vae.decode(latent[:, :, cuts[0] :])], dim=2)
    assert apart.shape != whole.shape, "a part decoded by itself begins with a single frame"


@pytest.mark.parametrize("tiles", [((64, 32), (64, 32)), (None, (64, 32)), ((64, 32), None)])
def test_parts_in_other_tiles_decode_as_the_whole(tiles, vae, relative_error):
    latent = noise(1, vae.config.latent_channels, 5, 4, 5)
    assert relative_error(join_points(vae, latent, (2,), tiles), vae.decode(latent)) < 1e-5


def test_two_ends_go_on_from_one_past(vae):
    start, *ends = (noise(1, vae.config.latent_channels, 2, 3, 4, seed=seed) for seed in (1, 2, 3))
    stream = vae.decode_stream(start, goes_on=True)
    begun, past = list(stream), stream.past()
    for end in (*ends, ends[0]):
        whole = vae.decode(torch.cat((start, end), dim=2))
        assert torch.equal(torch.cat([*begun, *vae.decode_stream(end, past=past)], dim=2), whole)


@pytest.mark.parametrize("halved", [False, True])
def test_a_past_that_was_saved_goes_on(vae, halved):
    start, *ends = noise(1, vae.config.latent_channels, 6, 4, 8).split([3, 2, 1], dim=2)
    stream, sizes = vae.decode_stream(start, goes_on=True), []
    list(stream)
    if halved:
        stream.split()
    past = again = stream.past()
    for end in ends:
        tensors, numbers = again.tensors()
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        saved = from_tensors(past.clip, {name: kept.clone() for name, kept in tensors.items()}, copy.deepcopy(numbers))
        one, other = (vae.decode_stream(end, goes_on=True, past=each) for each in (past, saved))
        assert torch.equal(torch.cat(list(one), dim=2), torch.cat(list(other), dim=2))
        past, again = one.past(), other.past()
    assert sizes[0] == sizes[1] > 0, "the state does not grow with the clip"


def test_the_past_of_another_clip_is_refused(vae):
    def part(*shape, **options):
        return vae.decode_stream(noise(shape[0], vae.config.latent_channels, 1, *shape[1:]), goes_on=True, **options)

    stream = part(1, 3, 4)
    stream = part(1, 3, 4)
    list(stream)
    past = stream.past()
    for shape, words in (((2, 3, 4), "batch size: 1 before, 2 now"), ((1, 3, 5), "width in latent pixels: 4 .* 5 now")):
        with pytest.raises(ValueError, match=f"goes on from one of another {words}"):
            part(*shape, past=past)
    with pytest.raises(ValueError, match=r"another dtype: torch.float32 before, torch.float64 now"):
        part(1, 3, 4, past=past, dtype=torch.float64)


def test_a_stream_that_ends_leaves_no_past(vae):
    stream = vae.decode_stream(noise(1, vae.config.latent_channels, 2, 3, 4))
    next(stream)
    list(stream)
    with pytest.raises(RuntimeError, match="without look_ahead"):
        stream.past()


@pytest.mark.parametrize("config", [VAEConfig("2.1", 16, 8, 8), VAEConfig("2.2", 48, 8, 8)], ids=lambda c: c.version)
@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("side", [None, 32])
def test_gradients_pass_through(config, method, side):
    """As in training through the VAE: the slope along a direction, in float64, and a gradient of every weight."""
    shapes = {name: tuple(x.shape) for name, x in make_vae(config, device="meta").state_dict().items()}
    vae = build_vae({name: x.double() for name, x in recipe.state_dict(shapes).items()}).requires_grad_(True)
    shape = (1, 3, 5, 64, 32) if method == "encode" else (1, config.latent_channels, 3, 64 // config.stride, 2)
    x, direction = (recipe.tensor(name, shape).double() for name in ("x", "direction"))
    run = functools.partial(getattr(vae, method), tile=None if side is None else (side, side))
    loss = run(x.requires_grad_(True)).sin().sum()
    loss.backward()
    half = vae.encoder if method == "encode" else vae.decoder
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in half.parameters())
    with torch.no_grad():
        ends = [run(x + step * direction).sin().sum() for step in (1e-6, -1e-6)]
    slope, expected = (x.grad * direction).sum(), (ends[0] - ends[1]) / 2e-6
    assert abs(slope - expected) < 1e-5 * abs(expected)
