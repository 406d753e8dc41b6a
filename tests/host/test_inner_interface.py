"""Patches and reads of other packs inside the host's Wan network have the same effect on ours."""

import beside
import comfy.clip_vision
import inner_patches
import pytest
import torch
from comfy.ldm.wan.model import WanI2VCrossAttention, WanModel, WanSelfAttention, WanT2VCrossAttention

BOUND = 1e-3
CHANGED = 3e-4  # what each of the patches changes at least
KINDS = ("wan2.1_t2v", "wan2.1_i2v", "wan2.1_vace", "wan2.2_ti2v")


@pytest.fixture(scope="module")
def pairs(room, models):
    """Kind of a model -> its pair."""
    return {kind: beside.load(room("host.model.loading"), beside.write(models, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def run():
    """Function (kind, MODEL) -> the latent of one step with all that the kind takes."""
    vision = comfy.clip_vision.Output()
    vision["penultimate_hidden_states"] = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(1))
    frames = torch.randn(1, 32, 3, 8, 10, generator=torch.Generator().manual_seed(2))
    options = {
        "wan2.1_i2v": {"clip_vision_output": vision},
        "wan2.1_vace": {"vace_frames": [frames], "vace_mask": [torch.ones(1, 64, 3, 8, 10)], "vace_strength": [0.8]},
    }

    def sample(kind, model):
        clip = beside.latent(48 if kind == "wan2.2_ti2v" else 16, 3)
        return beside.sample(model, *beside.prompts(**options.get(kind, {})), clip, steps=1)

    return sample


@pytest.fixture(scope="module")
def plain(pairs, run):
    """Kind -> what each of the pair makes with no patch."""
    with torch.inference_mode():
        return {kind: pair.each(lambda model, kind=kind: run(kind, model)) for kind, pair in pairs.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", inner_patches.PATCHES)
def test_an_inner_patch_does_the_same(kind, name, room, pairs, plain, run, relative_error):
    if kind == "wan2.1_vace" and name == "its own loop":
        pytest.skip("such loops are written for models without control")
    inner = room("host.model.inner")
    results = pairs[kind].each(lambda model: run(kind, inner_patches.PATCHES[name](model)))
    assert relative_error(results.ours, results.theirs) < BOUND
    assert relative_error(results.ours, plain[kind].ours) > CHANGED
    if kind == "wan2.1_t2v":  # nothing of it stays
        assert torch.equal(run(kind, pairs[kind].ours), plain[kind].ours)
        assert not any(map(inner.is_altered, inner_patches.network(pairs[kind].ours).blocks))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", inner_patches.NEWER)
def test_a_patch_that_not_every_host_calls(kind, name, room, pairs, plain, run, relative_error):
    results = pairs[kind].each(lambda model: run(kind, inner_patches.NEWER[name](model)))
    assert relative_error(results.ours, plain[kind].ours) > CHANGED
    if name in room("host.model.inner").SERVED:  # the Wan of an older host does nothing with it
        assert relative_error(results.ours, results.theirs) < BOUND
    else:
        assert torch.equal(results.theirs, plain[kind].theirs)


def vars_of(pair):
    return pair.ours, pair.theirs


def test_the_embedding_of_a_picture(pairs, plain, run, relative_error):
    results = pairs["wan2.1_i2v"].each(lambda model: run("wan2.1_i2v", inner_patches.scale("img_emb.forward")(model)))
    assert relative_error(results.ours, results.theirs) < BOUND
    assert relative_error(results.ours, plain["wan2.1_i2v"].ours) > 1e-4


@pytest.mark.parametrize("part", ["self_attn", "cross_attn", "ffn", "norm1", "norm2", "norm3"])
def test_a_block_of_the_control(part, pairs, plain, run, relative_error):
    patch = inner_patches.scale(f"vace_blocks.1.{part}.forward", factor=1.3)
    results = pairs["wan2.1_vace"].each(lambda model: run("wan2.1_vace", patch(model)))
    assert relative_error(results.ours, results.theirs) < BOUND
    assert relative_error(results.ours, plain["wan2.1_vace"].ours) > 1e-5


def test_a_whole_block_of_the_control_is_refused(pairs, run):
    """The host's takes and gives other tensors than the main blocks; nothing known replaces it."""
    with pytest.raises(ValueError, match=r"Another node replaces vace_blocks\.1 "):
        run("wan2.1_vace", inner_patches.scale("vace_blocks.1.forward")(pairs["wan2.1_vace"].ours))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_of_the_network(kind, pairs):
    ours, theirs = vars_of(pairs[kind].each(inner_patches.network))
    for name in inner_patches.ATTRIBUTES:
        assert getattr(ours, name) == getattr(theirs, name), name
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        assert [getattr(mine, name) for name in inner_patches.OF_BLOCKS] == [
            getattr(other, name) for name in inner_patches.OF_BLOCKS
        ]
        for attention in ("self_attn", "cross_attn"):
            assert [getattr(getattr(mine, attention), name) for name in inner_patches.OF_ATTENTION] == [
                getattr(getattr(other, attention), name) for name in inner_patches.OF_ATTENTION
            ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_classes_of_the_network(kind, pairs):
    ours, theirs = vars_of(pairs[kind].each(inner_patches.network))
    assert isinstance(ours, WanModel)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        assert isinstance(mine.self_attn, WanSelfAttention)
        assert isinstance(mine.cross_attn, WanI2VCrossAttention) == isinstance(other.cross_attn, WanI2VCrossAttention)
        assert isinstance(mine.cross_attn, WanT2VCrossAttention) == isinstance(other.cross_attn, WanT2VCrossAttention)


@pytest.mark.parametrize("name", ["attention guidance", "chunked feed-forward", "its own loop", "block", "head"])
def test_an_inner_patch_in_half_precision(name, room, models, pairs, run, relative_error):
    path = str(beside.write(models, "wan2.1_t2v"))
    patch = inner_patches.PATCHES[name]
    half = run("wan2.1_t2v", patch(room("host.model.loading").load(path, "bfloat16")))
    assert relative_error(half, run("wan2.1_t2v", patch(pairs["wan2.1_t2v"].ours))) < 0.1
