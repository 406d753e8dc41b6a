"""Every way to write a change of a weight: what is counted as matched has the effect of weights changed by hand."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from safetensors.torch import save_file

Q, FFN, NORM, CONV = "blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.norm3", "patch_embedding"
PREFIX = "diffusion_model."


@pytest.fixture(scope="module")
def case(golden):
    return golden("dit_t2v")


@pytest.fixture(scope="module")
def weights(case):
    return case.weights()


@pytest.fixture(scope="module")
def host_lora(room):
    return room("host.model.lora")


@pytest.fixture(scope="module")
def load(room, tmp_path_factory):
    """Function from weights to the MODEL of them."""

    def write(weights):
        path = tmp_path_factory.mktemp("model") / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        return room("host.model.loading").load(str(path), "float32")

    return write


@pytest.fixture(scope="module")
def base(load, weights):
    return load(weights)


@pytest.fixture
def apply(host_lora, tmp_path):
    """Function (MODEL, LoRA tensors, strength) -> (MODEL with it, report)."""

    def save(model, tensors, strength=1.0):
        path = tmp_path / "a.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
        return host_lora.apply(model, str(path), strength)

    return save


def velocity(patcher, case):
    comfy.model_management.load_models_gpu([patcher])
    return patcher.model.diffusion_model(case.inputs["x"][None], case.inputs["t"], case.inputs["context"][None])


GENERATOR = torch.Generator().manual_seed(7)


def random(*shape, scale=0.2):
    return scale * torch.randn(shape, generator=GENERATOR)


def pair(shape, names, rank=4):
    up, down = random(shape[0], rank), random(rank, *shape[1:])
    return dict(zip(names, (up, down), strict=True)), (up @ down.flatten(1)).view(shape)


def rotation(blocks):
    q = blocks - blocks.transpose(-1, -2)
    eye = torch.eye(blocks.shape[-1])
    return (eye + q) @ torch.linalg.inv(eye - q)


# Each form: (weights, place) -> (tensors by suffix, changed weights by name)


def named(up, down, extra=()):
    def form(weights, place=Q):
        tensors, product = pair(weights[f"{place}.weight"].shape, (up, down))
        return tensors, {f"{place}.weight": weights[f"{place}.weight"] + product}

    return form


def with_alpha(weights, place=Q):
    tensors, product = pair(weights[f"{place}.weight"].shape, (".lora_up.weight", ".lora_down.weight"))
    return tensors | {".alpha": torch.tensor(2.0)}, {f"{place}.weight": weights[f"{place}.weight"] + product / 2}


def with_bias(weights, place=Q):
    tensors, product = pair(weights[f"{place}.weight"].shape, (".lora_B.weight", ".lora_A.weight"))
    bias = random(len(product))
    changed = {
        f"{place}.weight": weights[f"{place}.weight"] + product,
        f"{place}.bias": weights[f"{place}.bias"] + bias,
    }
    return tensors | {".lora_B.bias": bias}, changed


def with_bias_and_alpha(weights, place=Q):
    """peft's scale is of the whole adapter."""
    tensors, changed = with_bias(weights, place)
    halves = {name: weights[name] + (value - weights[name]) / 2 for name, value in changed.items()}
    return tensors | {".alpha": torch.tensor(2.0)}, halves


def dora(scale_shape):
    def form(weights, place=Q):
        weight = weights[f"{place}.weight"]
        tensors, product = pair(weight.shape, (".lora_up.weight", ".lora_down.weight"))
        magnitude = 1 + random(len(weight))
        changed = (weight + product) * (magnitude / weight.norm(dim=1))[:, None]
        return tensors | {".dora_scale": magnitude.reshape(scale_shape)}, {f"{place}.weight": changed}

    return form


def loha(weights, place=Q):
    rows, columns = weights[f"{place}.weight"].shape
    a, b, c, d = random(rows, 4), random(4, columns), random(rows, 4), random(4, columns)
    names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    return dict(zip(names, (a, b, c, d), strict=True)), {
        f"{place}.weight": weights[f"{place}.weight"] + (a @ b) * (c @ d)
    }


def lokr(weights, place=Q):
    rows, columns = weights[f"{place}.weight"].shape
    w1, a, b = random(2, 2), random(rows // 2, 4), random(4, columns // 2)
    tensors = {".lokr_w1": w1, ".lokr_w2_a": a, ".lokr_w2_b": b}
    return tensors, {f"{place}.weight": weights[f"{place}.weight"] + torch.kron(w1, a @ b)}


def glora(weights, place=FFN):
    weight = weights[f"{place}.weight"]
    a1, a2 = random(weight.shape[1], 4), random(4, weight.shape[1])
    b1, b2 = random(weight.shape[0], 4), random(4, weight.shape[1])
    tensors = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": b1, ".b2.weight": b2}
    return tensors, {f"{place}.weight": weight + weight @ a1 @ a2 + b1 @ b2}


def old_glora(weights, place=FFN):
    weight = weights[f"{place}.weight"]
    a2, a1 = random(weight.shape[1], 4), random(4, weight.shape[1])
    b2, b1 = random(weight.shape[0], 4), random(4, weight.shape[1])
    tensors = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": b1, ".b2.weight": b2}
    return tensors, {f"{place}.weight": weight + weight @ a2 @ a1 + b2 @ b1}


def oft(weights, place=Q):
    weight = weights[f"{place}.weight"]
    blocks = random(len(weight) // 8, 8, 8, scale=0.1)
    rotated = torch.einsum("knm,kni->kmi", rotation(blocks), weight.unflatten(0, (-1, 8))).flatten(0, 1)
    return {".oft_blocks": blocks}, {f"{place}.weight": rotated}


def boft(weights, place=Q):
    """One butterfly factor: each block of 8 rows, its halves dealt out, is rotated."""
    weight = weights[f"{place}.weight"]
    blocks = random(1, len(weight) // 8, 8, 8, scale=0.1)
    dealt = weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(1, 2)  # (blocks, 8, columns)
    rotated = (rotation(blocks[0]) @ dealt).unflatten(1, (4, 2)).transpose(1, 2).flatten(0, 2)
    return {".oft_blocks": blocks}, {f"{place}.weight": rotated}


def boft_rescaled(weights, place=Q):
    tensors, changed = boft(weights, place)
    rescale = 1 + random(len(changed[f"{place}.weight"]), 1)
    return tensors | {".rescale": rescale}, {f"{place}.weight": changed[f"{place}.weight"] * rescale}


def simple(suffix, parameter, place):
    def form(weights, place=place):
        name = f"{place}.{parameter}"
        value = random(*weights[name].shape)
        return {suffix: value}, {name: value if suffix == ".set_weight" else weights[name] + value}

    return form


def modulation(weights, place="blocks.0"):
    value = random(*weights["blocks.0.modulation"].shape)
    return {".diff_m": value}, {"blocks.0.modulation": weights["blocks.0.modulation"] + value}


def several(weights, place=Q):
    """Several changes of one weight, of which the host's own loader would apply only the last."""
    weight, bias = weights[f"{place}.weight"], weights[f"{place}.bias"]
    tensors, product = pair(weight.shape, (".lora_up.weight", ".lora_down.weight"))
    full, offset = random(*weight.shape), random(*bias.shape)
    changed = {f"{place}.weight": weight + product + full, f"{place}.bias": bias + offset}
    return tensors | {".diff": full, ".diff_b": offset}, changed


FORMS = {
    "kohya": named(".lora_up.weight", ".lora_down.weight"),
    "peft": named(".lora_B.weight", ".lora_A.weight"),
    "peft default": named(".lora_B.default.weight", ".lora_A.default.weight"),
    "bare": named(".lora_B", ".lora_A"),
    "diffusers": named("_lora.up.weight", "_lora.down.weight"),
    "diffusers with a dot": named(".lora.up.weight", ".lora.down.weight"),
    "transformers": named(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "alpha": with_alpha,
    "bias": with_bias,
    "bias and alpha": with_bias_and_alpha,
    "DoRA": dora((-1, 1)),
    "DoRA of one side": dora((-1,)),
    "LoHa": loha,
    "LoKr": lokr,
    "GLoRA": glora,
    "old GLoRA": old_glora,
    "OFT": oft,
    "BOFT": boft,
    "BOFT rescaled": boft_rescaled,
    "diff": simple(".diff", "weight", Q),
    "diff of a convolution": simple(".diff", "weight", CONV),
    "diff_b": simple(".diff_b", "bias", CONV),
    "w_norm": simple(".w_norm", "weight", NORM),
    "b_norm": simple(".b_norm", "bias", NORM),
    "set_weight": simple(".set_weight", "weight", Q),
    "diff_m": modulation,
    "several at once": several,
}
PLACES = {"GLoRA": FFN, "old GLoRA": FFN, "diff of a convolution": CONV, "diff_b": CONV, "w_norm": NORM, "b_norm": NORM}
PLACES |= {"diff_m": "blocks.0"}


def at(place, tensors):
    return {f"{PREFIX}{place}{suffix}": tensor for suffix, tensor in tensors.items()}


@pytest.mark.parametrize("form", FORMS)
def test_matched_means_applied(form, apply, base, load, weights, case, relative_error):
    tensors, changed = FORMS[form](weights)
    patched, report = apply(base, at(PLACES.get(form, Q), tensors))
    assert (report.matched, report.unmatched) == (len(tensors), [])
    expected, untouched = velocity(load(weights | changed), case), velocity(base, case)
    assert relative_error(expected, untouched) > 1e-3
    assert relative_error(velocity(patched, case), expected) < 2e-5
    assert torch.equal(velocity(base, case), untouched)


ADAPTERS = [form for form in FORMS if PLACES.get(form, Q) in (Q, FFN) and form != "several at once"]


@pytest.mark.parametrize("form", ADAPTERS)
def test_what_does_not_fit_is_named_and_its_neighbours_are_applied(
    form, apply, base, load, weights, case, relative_error
):
    """The same form for a weight of other sides, beside a bias and another layer's change that fit."""
    place = PLACES.get(form, Q)
    sizes = {f"{place}.weight": random(96, 160), f"{place}.bias": random(96)}
    misfit = at(place, FORMS[form](sizes)[0])
    bias, (good, changed) = random(*weights[f"{place}.bias"].shape), with_alpha(weights, "blocks.1.self_attn.k")
    changed[f"{place}.bias"] = weights[f"{place}.bias"] + bias
    fitting = at("blocks.1.self_attn.k", good) | at(place, {".diff_b": bias})
    patched, report = apply(base, misfit | fitting)
    normal = {name.replace(".default.", "."): name for name in misfit}
    assert {normal.get(name, name) for name in report.unmatched} == set(misfit)
    assert report.matched == len(fitting)
    assert relative_error(velocity(patched, case), velocity(load(weights | changed), case)) < 2e-5


LONELY = {
    "half a pair": {".lora_up.weight": random(256, 4)},
    "another half": {".lora_A.weight": random(4, 256)},
    "half of LoHa": {".hada_w1_a": random(256, 4), ".hada_w1_b": random(4, 256)},
    "half of LoKr": {".lokr_w1": random(2, 2)},
    "half of GLoRA": {".a1.weight": random(256, 4), ".b1.weight": random(256, 4)},
    "alpha alone": {".alpha": torch.tensor(1.0)},
    "DoRA's scale alone": {".dora_scale": random(256, 1)},
    "a shape alone": {".reshape_weight": torch.tensor([256, 512])},
    "a rescale that the host passes over": {".rescale": random(256, 1)},
    "a bias of A": {".lora_A.bias": random(4)},
    "an unknown suffix": {".oft_diag": random(4)},
    "a number for a difference": {".diff": torch.tensor(1.0)},
    "a row for a factor": {".lora_up.weight": random(256), ".lora_down.weight": random(256)},
    "a row for OFT": {".oft_blocks": random(256)},
    "numbers for LoKr": {".lokr_w1": torch.tensor(1.0), ".lokr_w2": torch.tensor(1.0)},
    "an alpha of many": {".lora_up.weight": random(256, 4), ".lora_down.weight": random(4, 256), ".alpha": random(4)},
}


@pytest.mark.parametrize("what", LONELY)
def test_what_is_not_whole_is_named(what, apply, base, load, weights, case, relative_error):
    good, changed = with_alpha(weights, "blocks.1.self_attn.k")
    lonely = at(Q, LONELY[what])
    patched, report = apply(base, lonely | at("blocks.1.self_attn.k", good))
    assert (set(report.unmatched), report.matched) == (set(lonely), len(good))
    assert relative_error(velocity(patched, case), velocity(load(weights | changed), case)) < 2e-5


def test_a_rescale_beside_oft_is_named(apply, base, weights):
    tensors, _ = oft(weights)
    _, report = apply(base, at(Q, tensors | {".rescale": random(256, 1)}))
    assert (report.matched, report.unmatched) == (1, [f"{PREFIX}{Q}.rescale"])


def test_a_strength_scales_it(apply, base, load, weights, case, relative_error):
    tensors, changed = with_bias(weights)
    patched, _ = apply(base, at(Q, tensors), -0.5)
    halves = {name: weights[name] - 0.5 * (value - weights[name]) for name, value in changed.items()}
    assert relative_error(velocity(patched, case), velocity(load(weights | halves), case)) < 2e-5


# A LoRA that widens the input


@pytest.fixture(scope="module")
def wide(case, tmp_path_factory):
    """(file of a text-to-video model with umT5's width, LoRA that lets it read 20 more channels, both merged)."""
    import recipe

    weights = recipe.state_dict(case.shapes | {"text_embedding.0.weight": [256, 4096]}, 3)
    folder = tmp_path_factory.mktemp("wide")
    save_file(weights, folder / "t2v.safetensors")
    shape = [256, 36, 1, 2, 2]
    up, down = random(256, 4), random(4, 36 * 4)
    tensors = {f"{PREFIX}patch_embedding.lora_A.weight": down, f"{PREFIX}patch_embedding.lora_B.weight": up}
    tensors[f"{PREFIX}patch_embedding.reshape_weight"] = torch.tensor(shape)
    merged = torch.zeros(shape)
    merged[:, :16] = weights["patch_embedding.weight"]
    save_file(weights | {"patch_embedding.weight": merged + (up @ down).view(shape)}, folder / "i2v.safetensors")
    return folder, tensors


def test_a_lora_that_widens_the_input(room, apply, wide, relative_error):
    """As the host's own class with the host's loader, and as the merged image-to-video model."""
    folder, tensors = wide
    load = room("host.model.loading").load
    model = load(str(folder / "t2v.safetensors"), "float32")
    theirs = comfy.sd.load_diffusion_model(str(folder / "t2v.safetensors"), model_options={"dtype": torch.float32})
    merged = load(str(folder / "i2v.safetensors"), "float32")
    x, t, context = random(1, 36, 3, 8, 10), torch.tensor([512.0]), random(1, 512, 4096)
    ours, report = apply(model, tensors)
    assert (report.matched, report.unmatched) == (3, [])
    answers = []
    for patcher in (ours, comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)[0], merged):
        comfy.model_management.load_models_gpu([patcher])
        answers.append(patcher.model.diffusion_model(x, t, context))
        assert patcher.model.diffusion_model.patch_embedding.weight.shape[1] == 36
    host = comfy.sd.load_lora_for_models(theirs, None, tensors, 1.0, 0)[0]
    comfy.model_management.load_models_gpu([host])
    answers.append(host.model.diffusion_model(x, t, context))
    for answer in answers[1:]:
        assert relative_error(answers[0], answer) < 1e-4
