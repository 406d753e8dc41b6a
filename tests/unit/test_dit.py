"""The DiT against the official code's outputs, and the properties that every variant keeps."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import recipe
import torch

from wan_model.dit.attention import local, sdpa
from wan_model.dit.layers import pieces
from wan_model.dit.model import WanDiT, build_dit, dit_config
from wan_model.dit.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = ["t2v", "i2v", "flf2v", "vace", "i2v_a14b", "ti2v"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_velocity_is_the_official_one(variant, dit_case, relative_error):
    model, inputs, velocity = dit_case(variant)
    assert model.config.variant == variant
    assert relative_error(model(**inputs), velocity) < 1e-5


def test_float8_without_scales_is_computed_in_another_dtype(golden_weights, dit_case, relative_error):
    """Its values are what they are; those with scales are not changed, as nothing here multiplies them out."""
    _, inputs, velocity = dit_case("t2v")
    matrices = {n: w.to(torch.float8_e4m3fn) for n, w in golden_weights("dit_t2v").items() if w.ndim == 2}
    model = build_dit(golden_weights("dit_t2v") | matrices, dtype=torch.float32)
    same = build_dit(golden_weights("dit_t2v") | {n: w.float() for n, w in matrices.items()})
    assert torch.equal(model(**inputs), same(**inputs))
    assert 0.001 < relative_error(model(**inputs), velocity) < 0.2
    scales = {n + "_scale": torch.tensor(1.0) for n in matrices}
    with pytest.raises(ValueError, match=f"has {len(scales)} that no Wan t2v model reads"):
        build_dit(golden_weights("dit_t2v") | matrices | scales, dtype=torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_close_to_float32(variant, dit_case, golden_weights, relative_error):
    _, inputs, velocity = dit_case(variant)
    model = build_dit(golden_weights(f"dit_{variant}"), dtype=torch.bfloat16)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert {"time_embedding.0.weight", "blocks.0.modulation", "head.head.weight"} <= kept
    assert "blocks.0.ffn.0.weight" not in kept
    t, scale = inputs.pop("t"), inputs.pop("vace_scale", 1.0)
    v = model(**{name: value.bfloat16() for name, value in inputs.items()}, t=t, vace_scale=scale)
    assert v.dtype == torch.bfloat16
    assert relative_error(v.float(), velocity) < 0.02


def test_odd_sides_are_padded_and_cropped(dit_case, relative_error):
    model, inputs, _ = dit_case("i2v")
    odd = {**inputs, "x": inputs["x"][..., :7, :9], "y": inputs["y"][..., :7, :9]}
    even = {**inputs}
    for name in ("x", "y"):  # the same as a caller who continues the odd side himself
        even[name] = torch.cat((odd[name], odd[name][..., :1, :]), dim=-2)
        even[name] = torch.cat((even[name], even[name][..., :1]), dim=-1)
    v = model(**odd)
    assert v.shape == odd["x"].shape
    assert relative_error(v, model(**even)[..., :7, :9]) < 1e-6


@pytest.mark.parametrize("variant", ["t2v", "ti2v"])
def test_timestep_per_frame_equals_timestep_per_sample(variant, dit_case, relative_error):
    model, inputs, _ = dit_case(variant)
    once = model(**{**inputs, "t": torch.tensor([700.0])})
    assert relative_error(model(**{**inputs, "t": torch.full((1, 3), 700.0)}), once) < 1e-5
    assert relative_error(model(**{**inputs, "t": torch.tensor([[0.0, 700.0, 700.0]])}), once) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_singles(variant, dit_case, relative_error):
    model, inputs, _ = dit_case(variant)
    scale = inputs.pop("vace_scale", 1.0)
    other = {name: value.flip(-1) for name, value in inputs.items()}
    other["t"] = inputs["t"] * 0.5
    pair = model(**{name: torch.cat((value, other[name])) for name, value in inputs.items()}, vace_scale=scale)
    for single, v in zip((inputs, other), pair, strict=True):
        assert relative_error(v.unsqueeze(0), model(**single, vace_scale=scale)) < 1e-5


def test_one_timestep_serves_a_whole_batch(dit_case, relative_error):
    model, inputs, velocity = dit_case("t2v")
    pair = model(torch.cat((inputs["x"],) * 2), inputs["t"], torch.cat((inputs["context"],) * 2))
    assert relative_error(pair, torch.cat((velocity, velocity))) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [7, 25, 45])  # of 60 tokens in 3 frames: within a frame, one frame, two frames
def test_chunks_change_nothing(variant, chunk, dit_case, relative_error):
    model, inputs, velocity = dit_case(variant)
    assert relative_error(model(**inputs, runtime=Runtime(chunk=chunk)), velocity) < 1e-5


@pytest.mark.parametrize("chunk", [7, 25, 45, 100])
def test_chunks_of_a_batch_change_nothing(chunk, dit_case, relative_error):
    model, inputs, _ = dit_case("ti2v")
    pair = {name: torch.cat((value, value.flip(-1))) for name, value in inputs.items()}
    whole = model(**pair)
    assert relative_error(model(**pair, runtime=Runtime(chunk=chunk)), whole) < 1e-6
    shared = {**pair, "t": inputs["t"]}  # one timestep for both
    assert relative_error(model(**shared, runtime=Runtime(chunk=chunk)), model(**shared)) < 1e-6


@pytest.mark.parametrize("whole, frames, chunk", [(4096, 1, 1000), (4000, 4, 300), (4000, 4, 2500), (4000, 4, 1000)])
def test_parts_cover_every_token_once_with_its_row(whole, frames, chunk):
    x = torch.arange(2 * whole).view(2, whole, 1)
    rows = torch.arange(2 * frames).view(2, frames, 1)
    seen = []
    for tokens, index in pieces(x, rows, chunk):
        assert x[tokens].numel() <= chunk
        row = rows[index].repeat_interleave(x[tokens].shape[1] // rows[index].shape[1], dim=1)
        assert torch.equal(row, x[tokens] // (whole // frames))
        seen.append(x[tokens].flatten())
    assert torch.equal(torch.cat(seen), x.flatten())


@pytest.mark.parametrize("length", [1, 40, 511, 512, 600])
def test_the_text_is_padded_to_512_tokens(length, dit_case, relative_error):
    model, inputs, _ = dit_case("i2v")
    context = inputs["context"].repeat(1, 600, 1)[:, :length]
    padded = torch.nn.functional.pad(context, (0, 0, 0, max(0, 512 - length)))
    short = {**inputs, "context": context}
    lengths = []

    def attention(q, k, v, heads):
        lengths.append(k.shape[1])
        return sdpa(q, k, v, heads)

    expected = model(**{**inputs, "context": padded})
    assert relative_error(model(**short), expected) < 1e-6
    assert relative_error(model(**short, runtime=Runtime(attention=attention)), expected) < 1e-6
    assert set(lengths) == {inputs["x"].shape[2:].numel() // 4, max(512, length), 257}


@pytest.mark.parametrize("window", [(3, 5), (0, 0), (-1, 4), (6, -1), (2000, 2000), (-1, -1)])
@pytest.mark.parametrize("length", [60, 1100])  # less and more than a block of queries
def test_local_attention_is_the_masked_softmax(window, length, relative_error):
    q, k, v = (recipe.tensor(name, (2, length, 64)).double() for name in "qkv")
    left, right = (length if side < 0 else side for side in window)
    distance = torch.arange(length) - torch.arange(length)[:, None]
    scores = torch.einsum("blhd,bshd->bhls", *(x.unflatten(-1, (4, 16)) for x in (q, k))) / 4
    weights = scores.masked_fill((distance < -left) | (distance > right), -torch.inf).softmax(-1)
    expected = torch.einsum("bhls,bshd->blhd", weights, v.unflatten(-1, (4, 16))).flatten(2)
    assert relative_error(local(window)(q, k, v, 4), expected) < 1e-12


def test_window_of_the_configuration(dit_case, relative_error):
    model, inputs, velocity = dit_case("t2v")
    near = WanDiT(dataclasses.replace(model.config, window_size=(9, 9)))
    near.requires_grad_(False).load_state_dict(model.state_dict())
    expected = model(**inputs, runtime=Runtime(attention=local((9, 9)), cross_attention=sdpa))
    assert relative_error(near(**inputs), expected) < 1e-6
    assert relative_error(expected, velocity) > 1e-3
    wide = WanDiT(dataclasses.replace(model.config, window_size=(59, 59)))
    wide.requires_grad_(False).load_state_dict(model.state_dict())
    assert relative_error(wide(**inputs), velocity) < 1e-5


@pytest.mark.parametrize("chunk", [None, 25])
def test_gradients_are_those_of_small_differences(chunk, dit_case):
    model, inputs, _ = dit_case("ti2v")
    target = recipe.tensor("target", inputs["x"].shape)

    def loss():
        return ((model(**inputs, runtime=Runtime(chunk=chunk)) - target) ** 2).double().mean()

    names = ("blocks.0.self_attn.q.weight", "blocks.1.ffn.0.weight", "blocks.0.cross_attn.k.weight")
    for name in names:
        weight = model.get_parameter(name).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(), weight)
        step = 3e-2 * gradient / gradient.norm()
        with torch.no_grad():
            weight += step
            after = loss()
            weight -= 2 * step
            before = loss()
            weight += step
        assert (after - before).item() == pytest.approx(2 * (gradient * step).sum().item(), rel=0.02), name


def test_vace_contexts_add_by_strength(dit_case, relative_error):
    model, inputs, velocity = dit_case("vace")
    plain = {**inputs, "vace_context": None}
    context = inputs["vace_context"]
    several = {**inputs, "vace_context": torch.stack((context, context.flip(-1)), dim=1)}
    assert relative_error(model(**{**several, "vace_scale": (0.8, 0.0)}), velocity) < 1e-5
    assert relative_error(model(**{**several, "vace_scale": 0.0}), model(**plain)) < 1e-6
    assert relative_error(model(**{**several, "vace_scale": (0.8, 0.5)}), velocity) > 1e-3


def test_blocks_and_attention_can_be_wrapped(dit_case):
    model, inputs, _ = dit_case("i2v")
    calls = []

    def run_block(index, block, x, shared):
        def cross(q, k, v, heads):
            calls.append((index, k.shape[1]))
            return shared.attention(q, k, v, heads)

        shared = dataclasses.replace(shared, cross_attention=cross)
        before = x.clone()
        x_attended = block.attend(x, shared)
        out = block.feed_forward(block.attend_context(x_attended, shared), shared)
        assert torch.equal(x, before)  # a caller may keep what it was given
        return out

    assert torch.equal(model(**inputs, runtime=Runtime(run_block=run_block)), model(**inputs))
    assert calls == [(0, 512), (0, 257), (1, 512), (1, 257)]


OFFICIAL = {
    "wan2.1_t2v_1.3B": ("t2v", 1536, 8960, 12, 30, 16, 16),
    "wan2.1_t2v_14B": ("t2v", 5120, 13824, 40, 40, 16, 16),
    "wan2.1_i2v_14B": ("i2v", 5120, 13824, 40, 40, 36, 16),
    "wan2.1_flf2v_14B": ("flf2v", 5120, 13824, 40, 40, 36, 16),
    "wan2.1_vace_1.3B": ("vace", 1536, 8960, 12, 30, 16, 16),
    "wan2.1_vace_14B": ("vace", 5120, 13824, 40, 40, 16, 16),
    "wan2.2_t2v_A14B": ("t2v", 5120, 13824, 40, 40, 16, 16),
    "wan2.2_i2v_A14B": ("i2v_a14b", 5120, 13824, 40, 40, 36, 16),
    "wan2.2_ti2v_5B": ("ti2v", 3072, 14336, 24, 30, 48, 48),
}


@pytest.fixture(scope="session")
def layouts():
    return json.loads(gzip.decompress((GOLDEN / "checkpoints.json.gz").read_bytes()))


def image_tokens(config):
    """Return how many CLIP tokens a model reads."""
    both = config.part("clip_positions")
    return both.tokens_of_both if both else 257 * (config.part("clip") is not None)


def meta(layout):
    return {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in layout.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_checkpoint_is_recognised(name, layouts):
    model = build_dit(meta(layouts[f"official/{name}"]))
    config = model.config
    sizes = (config.dim, config.ffn_dim, config.heads, config.layers, config.in_dim, config.out_dim)
    assert (config.variant, *sizes) == OFFICIAL[name]
    assert config.text_dim == 4096
    assert image_tokens(config) == {"i2v": 257, "flf2v": 514}.get(config.variant, 0)
    vace_layers = {"wan2.1_vace_1.3B": tuple(range(0, 30, 2)), "wan2.1_vace_14B": tuple(range(0, 40, 5))}
    assert getattr(config.part("vace"), "layers", ()) == vace_layers.get(name, ())
    assert set(model.state_dict()) == set(layouts[f"official/{name}"])
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["official/wan2.1_vae", "official/umt5_xxl", "official/clip_xlm_roberta_vit_h_14"])
def test_other_checkpoints_are_refused(name, layouts):
    with pytest.raises(ValueError, match="not a whole Wan DiT"):
        dit_config(meta(layouts[name]))


def test_damaged_checkpoints_are_refused(golden):
    weights = golden("dit_vace").weights()

    def changed(**changes):
        names = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        return {name: tensor for name, tensor in {**weights, **names}.items() if tensor is not None}

    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.2\.weight has shape \(256, 500\).*\(256, 512\)"):
        dit_config(changed(blocks__1__ffn__2__weight=torch.ones(256, 500)))
    with pytest.raises(ValueError, match=r"lacks 1 tensors \['blocks\.2\.norm3\.bias'\]"):
        build_dit(changed(blocks__2__norm3__bias=None))
    with pytest.raises(ValueError, match=r"1 that no Wan vace model reads \['ref_conv\.weight'\]"):
        build_dit(changed(ref_conv__weight=torch.ones(4)))
    with pytest.raises(ValueError, match="takes 52 channels"):
        dit_config(changed(patch_embedding__weight=torch.ones(256, 52, 1, 2, 2)))
    with pytest.raises(ValueError, match="VACE blocks only"):
        dit_config({name: tensor for name, tensor in weights.items() if name.startswith("vace")})


@pytest.mark.parametrize(
    "variant, changes, message",
    [
        ("t2v", {"x": torch.ones(1, 48, 3, 8, 10)}, "48 channels, this t2v model takes 16"),
        ("i2v", {"y": None}, r"16 channels, this i2v model takes 36 \(16 of the latent, 20"),
        ("i2v", {"y": torch.ones(1, 20, 5, 8, 10)}, r"y is 1 x \(5, 8, 10\).*latent is 1 x \(3, 8, 10\)"),
        ("i2v", {"clip_fea": None}, "needs CLIP vision features"),
        ("t2v", {"clip_fea": torch.ones(1, 257, 1280)}, "reads no CLIP vision features"),
        ("t2v", {"vace_context": torch.ones(1, 96, 3, 8, 10)}, "no VACE blocks"),
        ("vace", {"vace_context": torch.ones(1, 96, 4, 8, 10)}, r"VACE context is 1 x \(4, 8, 10\)"),
        ("vace", {"vace_context": torch.ones(1, 32, 3, 8, 10)}, "has 32 channels, the model takes 96"),
        ("vace", {"vace_scale": (1.0, 1.0)}, "1 VACE contexts have 2 strengths"),
        ("t2v", {"context": torch.ones(1, 7, 4096)}, "4096 channels, the model takes 64"),
        ("t2v", {"t": torch.ones(1, 60)}, r"t has shape \(1, 60\), this latent needs \(1,\) or \(1, 3\)"),
    ],
)
def test_disagreeing_inputs_are_named(variant, changes, message, dit_case):
    model, inputs, _ = dit_case(variant)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})
