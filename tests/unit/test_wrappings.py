"""Files as trainers save them: wrapped names, copies of the model, counters beside it, and marks in the header."""

import argparse
import gzip
import json
import logging
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from wan_model import checkpoint
from wan_model.checkpoint import CheckpointError
from wan_model.variants.rollout import Rollout
from wan_model.weights import layouts

LAYOUTS = Path(__file__).parents[1] / "golden" / "checkpoints_more.json.gz"


@pytest.fixture(scope="module")
def weights(golden):
    return golden("dit_t2v").weights()


def assert_loads(path, weights, variant="t2v"):
    assert checkpoint.expect(path, checkpoint.DIT, "WanModelLoader").variant == variant
    state_dict, found, _ = checkpoint.load(path)
    assert found == variant and state_dict.keys() == weights.keys()
    assert all(torch.equal(state_dict[name], weights[name]) for name in weights)


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def inside(wrapper, weights):
    """`weights` with a wrapper around the model and around each of its blocks."""
    return {f"{wrapper}." + name.replace("blocks.0.", f"blocks.0.{wrapper}."): t for name, t in weights.items()}


PREFIXES = ("net.", "student.", "generator.", "ema.", "model.", "module.net.", "pipe.dit.", "transformer.", "x.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix(prefix, weights, tmp_path):
    save_file(prefixed(prefix, weights), tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", weights)


@pytest.mark.parametrize(
    "wrapper", ["_fsdp_wrapped_module", "_orig_mod", "module", "_checkpoint_wrapped_module", "_forward_module"]
)
def test_wrappers_anywhere_in_a_name(wrapper, weights, tmp_path):
    save_file(inside(wrapper, weights), tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", weights)
    torch.save({"generator": inside(wrapper, weights)}, tmp_path / "a.pt")
    assert_loads(tmp_path / "a.pt", weights)


def test_wrapped_diffusers_names(weights, tmp_path):
    names = layouts.rename(weights, layouts.inverse(layouts.DIT_DIFFUSERS))
    save_file({f"_orig_mod.net.{names[name]}": t for name, t in weights.items()}, tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", weights)


ENVELOPES = {
    "Lightning": lambda w: {"state_dict": prefixed("model.", w), "epoch": 3, "global_step": 7, "callbacks": {}},
    "DeepSpeed": lambda w: {"module": w, "dp_world_size": 8, "param_shapes": [1, 2]},
    "arguments": lambda w: {"model": w, "args": argparse.Namespace(lr=1e-4), "step": 3},
    "deep": lambda w: {"checkpoint": {"networks": {"net": w}}, "date": "today", "lr": 1e-5, "seed": None},
    "optimizer": lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
}


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_envelopes(envelope, weights, tmp_path):
    torch.save(ENVELOPES[envelope](weights), tmp_path / "a.pt")
    assert_loads(tmp_path / "a.pt", weights)


COPIES = [
    ("generator", "generator_ema"),
    ("model", "ema"),
    ("model", "ema_model"),
    ("state_dict", "state_dict_ema"),
    ("net", "average_model"),
]


@pytest.mark.parametrize("trained, averaged", COPIES)
def test_the_average_is_chosen_and_said(trained, averaged, golden, weights, tmp_path, caplog):
    other = golden("dit_t2v").weights(5)
    torch.save({trained: other, averaged: weights, "step": 9}, tmp_path / "a.pt")
    with caplog.at_level(logging.WARNING):
        assert_loads(tmp_path / "a.pt", weights, "causal" if averaged == "generator_ema" else "t2v")
    assert f"'{averaged}' is loaded: the averaged weights (EMA)" in caplog.text


@pytest.mark.parametrize("prefix", ["generator_ema.", "generator_ema.model.", "generator.model.", "x.generator.model."])
def test_what_the_trainers_of_self_forcing_save_is_causal(prefix, golden, weights, tmp_path):
    """Their names tell it of text to video alone, and a header that says otherwise counts."""
    save_file(prefixed(prefix, weights), tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", weights, "causal")
    otherwise = {"config": json.dumps({"transformer": {"causal_ar": False}})}
    save_file(prefixed(prefix, weights), tmp_path / "b.safetensors", metadata=otherwise)
    assert_loads(tmp_path / "b.safetensors", weights)
    for variant in ("i2v", "vace"):
        other = golden(f"dit_{variant}").weights()
        save_file(prefixed(prefix, other), tmp_path / "c.safetensors")
        assert_loads(tmp_path / "c.safetensors", other, variant)


def test_the_caller_chooses_whether_a_model_is_causal(golden, weights, tmp_path):
    save_file(weights, tmp_path / "plain.safetensors")
    save_file(prefixed("generator_ema.", weights), tmp_path / "told.safetensors")
    for file in ("plain.safetensors", "told.safetensors"):
        for causal, variant in ((True, "causal"), (False, "t2v")):
            state_dict, found = checkpoint.load_model(tmp_path / file, causal)
            assert found.variant == found.config.variant == variant and state_dict.keys() == weights.keys()
    save_file(golden("dit_i2v").weights(), tmp_path / "i2v.safetensors")
    with pytest.raises(
        CheckpointError, match=r"it is a Wan i2v model, and only text-to-video weights .*causal to auto"
    ):
        checkpoint.load_model(tmp_path / "i2v.safetensors", True)
    assert checkpoint.load_model(tmp_path / "i2v.safetensors", False)[1].variant == "i2v"


@pytest.mark.parametrize("aside", ["critic", "fake_score", "real_score", "teacher", "discriminator"])
def test_what_stands_beside_the_model_is_not_chosen(aside, golden, weights, tmp_path, caplog):
    torch.save({aside: golden("dit_t2v").weights(5), "generator": weights}, tmp_path / "a.pt")
    assert_loads(tmp_path / "a.pt", weights)
    assert "'generator' is loaded" in caplog.text


def test_two_models_of_one_kind_are_refused(weights, tmp_path):
    torch.save({"high": weights, "low": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"2 models of one kind \('high', 'low'\)"):
        checkpoint.load(tmp_path / "a.pt")


EXTRAS = {
    "num_updates": torch.tensor(5),
    "ema.decay": torch.tensor(0.999),
    "freqs": torch.ones(1024, 22),
    "alphas_cumprod": torch.ones(1000),
    "logvar.linear.weight": torch.ones(1, 8),
}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_counters_and_tables_are_left_out_and_listed_once(prefix, weights, tmp_path, caplog):
    save_file(prefixed(prefix, weights | EXTRAS) | {"step": torch.tensor(1)}, tmp_path / "a.safetensors")
    assert_loads(tmp_path / "a.safetensors", weights)
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 1 and "6 tensors" in said[0] and "num_updates" in said[0] and "and 1 more" in said[0]


def test_missing_weights_are_an_error_of_the_check_and_of_the_run(weights, tmp_path):
    lacking = {name: tensor for name, tensor in weights.items() if name != "blocks.1.ffn.2.weight"}
    save_file(lacking, tmp_path / "a.safetensors")
    for ask in (checkpoint.inspect, checkpoint.load):
        with pytest.raises(CheckpointError, match=r"lacks 1 weights of a Wan t2v model \(blocks.1.ffn.2.weight\)"):
            ask(tmp_path / "a.safetensors")


@pytest.mark.parametrize("extra", ["blocks.0.cam_encoder.weight", "dwpose_embedding.0.weight"])
def test_weights_of_another_network_are_refused_by_name(extra, weights, tmp_path):
    save_file(weights | {extra: torch.ones(4, 4)}, tmp_path / "a.safetensors")
    for ask in (checkpoint.inspect, checkpoint.load):
        with pytest.raises(CheckpointError, match=rf"{extra}.*Load Diffusion Model"):
            ask(tmp_path / "a.safetensors")


# Marks


REFUSED = {
    "animate2": ({"model_type": "animate2"}, "says 'animate2' and whose weights take 16 channels"),
    "causal image to video": ({"causal_ar": True, "model_type": "i2v"}, "says 'i2v' and whose weights take 16"),
    "causal and another": ({"causal_ar": True, "model_type": "flow_rvs"}, "a FlowRVS model"),
    "flow_rvs": ({"model_type": "flow_rvs"}, "a FlowRVS model"),
    "unknown": ({"model_type": "telepathy"}, "'telepathy'"),
    "another image model": ({"image_model": "other"}, "'other'"),
    "contradiction": ({"model_type": "i2v"}, "says 'i2v' and whose weights take 16 channels"),
    "vace": ({"model_type": "vace"}, "says 'vace'"),
}


@pytest.mark.parametrize("mark", REFUSED)
def test_a_mark_in_the_header_is_refused_by_name(mark, weights, tmp_path):
    transformer, what = REFUSED[mark]
    metadata = {"config": json.dumps({"transformer": transformer, "vae": {}})}
    save_file(weights, tmp_path / "a.safetensors", metadata=metadata)
    assert checkpoint.inspect(tmp_path / "a.safetensors").marks == transformer
    for ask in (checkpoint.load, lambda path: checkpoint.expect(path, checkpoint.DIT, "WanModelLoader")):
        with pytest.raises(CheckpointError, match=f"{what}.*load it with ComfyUI's Load Diffusion Model node"):
            ask(tmp_path / "a.safetensors")


@pytest.mark.parametrize("transformer", [{"causal_ar": True}, {"causal_ar": True, "model_type": "t2v"}])
def test_a_mark_of_a_causal_model(transformer, weights, tmp_path):
    metadata = {"config": json.dumps({"transformer": transformer})}
    save_file(weights, tmp_path / "a.safetensors", metadata=metadata)
    assert checkpoint.load(tmp_path / "a.safetensors")[1] == "causal"


CAUSAL = {"config": json.dumps({"transformer": {"causal_ar": True}})}


def test_a_header_tells_how_a_causal_model_is_run(weights, tmp_path):
    told = {"block": 1, "window": 8, "sink": 1, "near_sink": True, "context_noise": 0.15}
    sampling = {"solver": "unipc", "steps": 8, "shift": 3, "guidance": 2.5}
    header = {"rollout": json.dumps(told), "sampling": json.dumps(sampling)}
    save_file(weights, tmp_path / "a.safetensors", metadata=CAUSAL | header)
    found = checkpoint.inspect(tmp_path / "a.safetensors")
    assert found.rollout == Rollout(1, 8, 1, True, 0.15) and not found.notes
    assert found.sampling.guidance == (2.5, 2.5) and found.sampling.steps == 8
    save_file(weights, tmp_path / "b.safetensors", metadata=header)
    assert checkpoint.inspect(tmp_path / "b.safetensors").rollout is None


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("rollout", "{"),
        ("rollout", "[1]"),
        ("rollout", "3"),
        ("rollout", '{"block": "1"}'),
        ("rollout", '{"block": true}'),
        ("rollout", '{"blocks": 1}'),
        ("rollout", '{"block": 4, "window": 4, "sink": 1}'),
        ("rollout", '{"context_noise": NaN}'),
        ("rollout", "[" * 100_000),
        ("sampling", '{"solver": "unipc", "steps": 8, "shift": 3}'),
        ("sampling", '{"solver": ["unipc"], "steps": 8, "shift": 3, "guidance": 2.5}'),
        ("sampling", '{"solver": "unipc", "steps": 0, "shift": 3, "guidance": 2.5}'),
        ("sampling", '{"solver": "unipc", "steps": 8, "shift": NaN, "guidance": 2.5}'),
    ],
)
def test_a_header_that_cannot_be_read_is_said(entry, value, weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors", metadata=CAUSAL | {entry: value})
    found = checkpoint.inspect(tmp_path / "a.safetensors")
    assert getattr(found, entry) is None and [
        f"the {entry} in its header cannot be read" in n for n in found.notes
    ] == [True]


INNOCENT = [
    '{"transformer": {"model_type": "t2v", "dim": 256}}',
    '{"transformer": {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]}}',
    '{"transformer": {"causal_ar": false}}',
    '{"transformer": null}',
    '{"transformer": [1]}',
    "[1]",
    "lr: 1e-4",
    "[" * 100_000,
]


@pytest.mark.parametrize("config", INNOCENT, ids=lambda text: text[:30])
def test_an_innocent_config_changes_nothing(config, weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors", metadata={"config": config, "model_type": "checkpoint"})
    assert_loads(tmp_path / "a.safetensors", weights)


@pytest.mark.parametrize(
    "fields, what",
    [
        ({"wan.model_type": "animate2"}, "says 'animate2' and whose weights take 16 channels"),
        ({"config": '{"transformer": {"model_type": "flow_rvs"}}'}, "a FlowRVS model"),
        ({"general.type": "model", "wan.model_type": "t2v"}, None),
    ],
)
def test_a_gguf_says_it_too(fields, what, weights, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    for name, value in fields.items():
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_string(name, value)
    for name, weight in weights.items():
        data = weight.numpy()
        if data.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
        writer.add_tensor(name, data.reshape(*data.shape[:3], -1) if data.ndim > 4 else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if what is None:
        assert_loads(tmp_path / "a.gguf", weights)
    else:
        with pytest.raises(CheckpointError, match=what):
            checkpoint.load(tmp_path / "a.gguf")


# The rest of the family

FAMILY = json.loads(gzip.decompress(LAYOUTS.read_bytes()))
RUN = {  # names and shapes alone tell these; what only the sampling tells is not in a file
    "selfforcing/self_forcing_dmd_1.3B": "t2v",
    "fun/wan2.2_vace_fun_a14b": "vace",
    "official/phantom_1.3B": "t2v",
    "official/phantom_14B": "t2v",
    "official/ati_14B": "i2v",
    "official/wan_move_14B": "i2v",
    "fun/wan2.1_fun_inp_1.3B": "i2v",
    "fun/wan2.1_fun_v1.1_inp_1.3B": "i2v",
    "fun/wan2.1_fun_inp_14B": "i2v",
    "fun/wan2.1_fun_v1.1_inp_14B": "i2v",
    "fun/wan2.2_fun_a14b_inp": "i2v_a14b",
    "fun/wan2.1_fun_control_1.3B": "fun_control",
    "fun/wan2.1_fun_control_14B": "fun_control",
    "fun/wan2.1_fun_v1.1_control_1.3B": "fun_control",
    "fun/wan2.1_fun_v1.1_control_14B": "fun_control",
    "fun/wan2.1_fun_v1.1_control_camera_1.3B": "fun_camera",
    "fun/wan2.1_fun_v1.1_control_camera_14B": "fun_camera",
    "fun/wan2.2_fun_a14b_control": "fun_control_a14b",
    "fun/wan2.2_fun_a14b_control_camera": "fun_camera_a14b",
    "fun/wan2.2_fun_5b_inp": "fun_inp_5b",
    "fun/wan2.2_fun_5b_control": "fun_control_5b",
    "fun/wan2.2_fun_5b_control_camera": "fun_camera_5b",
    "comfy/scail_14B": "scail",
    "comfy/scail2_14B": "scail2",
    "official/wan2.2_s2v_14B": "s2v",
    "official/humo_17B": "humo",
    "official/humo_1.7B": "humo_1.7b",
    "official/infinitetalk_14B_merged": "infinitetalk",
    "official/wan2.2_animate_14B": "animate",
    "diffusers/wan2.2_animate_14B": "animate",
}
REFUSALS = {
    "official/infinitetalk_14B_adapter": "an InfiniteTalk or MultiTalk model patch, for ModelPatchLoader",
}


@pytest.mark.parametrize("name", FAMILY)
def test_each_member_of_the_family_is_run_as_what_it_is_or_refused_by_name(name):
    tensors = {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in FAMILY[name].items()}
    try:
        found = checkpoint.recognise(tensors)
    except ValueError as error:
        assert "channels" in str(error), (name, error)
        return
    if name in RUN:
        assert found.variant == RUN[name]
    else:
        assert found.variant is None and found.elsewhere == (name != "official/infinitetalk_14B_adapter")
        assert REFUSALS.get(name, "a Wan") in found.holds


def test_a_vace_module_is_its_blocks_alone(golden, tmp_path):
    blocks = {name: tensor for name, tensor in golden("dit_vace").weights().items() if name.startswith("vace_")}
    save_file(blocks | {"num_updates": torch.tensor(5)}, tmp_path / "a.safetensors")
    state_dict, variant, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert variant == "vace_module" and state_dict.keys() == blocks.keys()
