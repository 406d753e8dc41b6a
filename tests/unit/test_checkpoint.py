"""Weights files: every layout loads to the same tensors, and what is no Wan file is named before a weight is read."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wan_model import checkpoint
from wan_model.checkpoint import CheckpointError
from wan_model.weights import layouts

GOLDEN = Path(__file__).parents[1] / "golden"
FULL_SIZE = {
    "wan2.1_t2v_1.3B": "t2v",
    "wan2.1_t2v_14B": "t2v",
    "wan2.1_i2v_14B": "i2v",
    "wan2.1_flf2v_14B": "flf2v",
    "wan2.1_vace_1.3B": "vace",
    "wan2.1_vace_14B": "vace",
    "wan2.2_t2v_A14B": "t2v",
    "wan2.2_i2v_A14B": "i2v_a14b",
    "wan2.2_ti2v_5B": "ti2v",
    "wan2.1_vae": "vae21",
    "wan2.2_vae": "vae22",
    "umt5_xxl": "umt5",
    "umt5_xxl_encoder": "umt5",
    "clip_xlm_roberta_vit_h_14": "clip_vision",
    "clip_vision_h": "clip_vision",
}
TABLES = {"dit_i2v": layouts.DIT_DIFFUSERS, "vae21": layouts.VAE21_DIFFUSERS, "umt5": layouts.UMT5_HF}
VARIANTS = {"dit_i2v": "i2v", "vae21": "vae21", "vae22": "vae22", "umt5": "umt5"}


def meta(shapes, dtype=torch.bfloat16):
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


def assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(state_dict[name], expected[name]) for name in expected)


def raw_safetensors(path, entries, data=b"", length=None):
    """A safetensors file with this header, whatever it says."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(path.name) and "\n" not in message
    return message


# Recognition


def test_every_full_size_checkpoint_is_recognised_with_all_its_names():
    everything = json.loads(gzip.decompress((GOLDEN / "checkpoints.json.gz").read_bytes()))
    for name, shapes in everything.items():
        layout, _, model = name.partition("/")
        found = checkpoint.recognise(meta(shapes))
        assert (found.variant, found.quantisation) == (FULL_SIZE[model], None), name
        if layout == "diffusers":
            assert {n: list(t.shape) for n, t in found.tensors.items()} == everything[f"official/{model}"], name
        elif model == "umt5_xxl_encoder":
            assert {n: list(t.shape) for n, t in found.tensors.items()} == everything["official/umt5_xxl"]


@pytest.mark.parametrize("prefix", layouts.PREFIXES)
@pytest.mark.parametrize("case", VARIANTS)
def test_official_names_load_bit_for_bit_under_every_prefix(case, prefix, golden, tmp_path):
    weights = golden(case).weights()
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "a.safetensors")
    state_dict, variant, quantisation = checkpoint.load(tmp_path / "a.safetensors")
    assert (variant, quantisation) == (VARIANTS[case], None)
    assert_same(state_dict, weights)


@pytest.mark.parametrize("case", TABLES)
def test_foreign_layouts_load_bit_for_bit(case, golden, tmp_path):
    weights = golden(case).weights()
    names = layouts.rename(weights, layouts.inverse(TABLES[case]))
    assert names.keys() == weights.keys() and list(names) != list(names.values())
    save_file({names[name]: tensor for name, tensor in weights.items()}, tmp_path / "a.safetensors")
    assert_same(checkpoint.load(tmp_path / "a.safetensors")[0], weights)


def test_the_tokenizer_rides_along_and_the_tied_embedding_does_not(golden, tmp_path):
    weights = golden("umt5").weights() | {"spiece_model": torch.arange(9, dtype=torch.uint8)}
    names = layouts.rename(weights, layouts.inverse(layouts.UMT5_HF))
    foreign = {names[name]: tensor for name, tensor in weights.items()}
    foreign["encoder.embed_tokens.weight"] = foreign["shared.weight"].clone()
    save_file(foreign, tmp_path / "umt5.safetensors")
    assert_same(checkpoint.load(tmp_path / "umt5.safetensors")[0], weights)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model_state": w}, lambda w: {"a": {"b": w}}])
def test_archives_load_bit_for_bit(wrap, golden, tmp_path):
    weights = golden("vae21").weights()
    torch.save(wrap(weights), tmp_path / "Wan2.1_VAE.pth")
    state_dict, variant, _ = checkpoint.load(tmp_path / "Wan2.1_VAE.pth")
    assert variant == "vae21"
    assert_same(state_dict, weights)


def test_the_content_decides_the_format(golden, tmp_path):
    weights = golden("vae21").weights()
    save_file(weights, tmp_path / "b.pth")
    assert_same(checkpoint.load(tmp_path / "b.pth")[0], weights)
    torch.save(weights, tmp_path / "a.safetensors")
    assert "rename it to a.pth" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("write", [save_file, lambda w, path: torch.save(w, path)], ids=["safetensors", "pth"])
def test_weights_stay_in_the_mapped_file(write, golden, tmp_path):
    weights = golden("dit_t2v").weights()
    write(weights, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    state_dict = checkpoint.load(tmp_path / "a")[0]
    start = {name: content.index(tensor.numpy().tobytes()) for name, tensor in weights.items()}
    shifts = {state_dict[name].data_ptr() - start[name] for name in weights}
    assert len(shifts) == 1  # every tensor lies at its place of one image of the file


@pytest.mark.parametrize(
    "extra, dtype, quantisation",
    [
        ({}, torch.float8_e4m3fn, "fp8_e4m3fn"),
        ({}, torch.float8_e5m2, "fp8_e5m2"),
        ({"scaled_fp8": torch.ones(0)}, torch.float8_e4m3fn, "fp8_scaled"),
        ({"blocks.0.self_attn.q.scale_weight": torch.ones(1)}, torch.float8_e4m3fn, "fp8_scaled"),
        ({"blocks.0.self_attn.q.weight_scale": torch.ones(1)}, torch.float8_e4m3fn, "fp8_scaled"),
        ({"blocks.0.self_attn.q.comfy_quant": torch.ones(4)}, torch.float8_e4m3fn, "comfy_quant"),
    ],
)
def test_quantised_weights_are_named(extra, dtype, quantisation, golden):
    tensors = meta(golden("dit_t2v").shapes) | extra
    tensors["blocks.0.self_attn.q.weight"] = tensors["blocks.0.self_attn.q.weight"].to(dtype)
    found = checkpoint.recognise(tensors)
    assert (found.variant, found.quantisation) == ("t2v", quantisation)


# Other models


OTHER_MODELS = [
    (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"], "Stable Diffusion"),
    (["conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.input_blocks.0.0.bias"], "Diffusion XL"),
    (["double_blocks.0.img_attn.norm.key_norm.scale", "guidance_in.in_layer.weight"], "Flux"),
    (["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_q.weight"], "Flux"),
    (["double_blocks.0.img_attn.norm.key_norm.scale", "txt_in.individual_token_refiner.blocks.0.a"], "HunyuanVideo"),
    (["model.diffusion_model.patchify_proj.weight", "vae.decoder.conv_in.conv.weight"], "LTX"),
    (["joint_blocks.0.context_block.attn.qkv.weight"], "Stable Diffusion 3"),
    (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "a LoRA"),
    (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "a LoRA"),
    (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"], "a language model"),
    (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "a CLIP text encoder"),
    (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder of another family"),
    (["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"], "a VAE of another family"),
    (["decoder.22.bias", "encoder.0.weight"], "a small autoencoder for previews"),
    (["vace_blocks.0.self_attn.q.weight"], "the VACE blocks of a Wan model"),
    (["alpha", "beta"], "2 tensors of no model that this pack knows"),
]


@pytest.mark.parametrize("names, what", OTHER_MODELS, ids=[what for _, what in OTHER_MODELS])
def test_other_models_are_named(names, what, tmp_path):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "x.safetensors")
    assert what in refusal(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=what) as caught:
        checkpoint.expect(tmp_path / "x.safetensors", checkpoint.DIT, "WanModelLoader")
    assert str(caught.value).endswith("not a Wan video model: choose a Wan video model in WanModelLoader.")


@pytest.mark.parametrize("extra", ["blocks.0.lynx.weight", "face_adapter.fuser_blocks.0.weight", "ref_conv.weight"])
def test_relatives_of_wan_are_not_taken_for_it(extra, golden, tmp_path):
    weights = golden("dit_t2v").weights() | {extra: torch.ones(4, 4)}
    save_file(weights, tmp_path / "relative.safetensors")
    with pytest.raises(CheckpointError, match=r"no Wan t2v model reads|holds a Wan|holds a .* built on Wan"):
        checkpoint.load(tmp_path / "relative.safetensors")


def test_a_wan_file_in_the_wrong_place_is_named(golden, tmp_path):
    save_file(golden("vae22").weights(), tmp_path / "vae.safetensors")
    assert checkpoint.expect(tmp_path / "vae.safetensors", checkpoint.VAE, "WanVAELoader").variant == "vae22"
    with pytest.raises(CheckpointError, match=r"holds a Wan VAE \(vae22\), not a umT5 text encoder: choose a umT5"):
        checkpoint.expect(tmp_path / "vae.safetensors", checkpoint.TEXT_ENCODER, "WanTextEncoderLoader")


def write_parts(weights, folder, name="diffusion_pytorch_model", count=3):
    """The paths of `weights` dealt out over `count` files."""
    paths = [folder / f"{name}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        save_file({key: weights[key] for key in list(weights)[number::count]}, path)
    return paths


def test_a_model_in_parts_is_loaded_from_any_of_them(golden, tmp_path):
    weights = golden("dit_t2v").weights()
    for path in write_parts(weights, tmp_path):
        state_dict, variant, _ = checkpoint.load(path)
        assert variant == "t2v"
        assert_same(state_dict, weights)


def test_a_missing_or_repeated_part_is_named(golden, tmp_path):
    first, second, third = write_parts(golden("dit_t2v").weights(), tmp_path)
    second.unlink()
    assert f"{second.name} is missing" in refusal(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointError, match="repeats"):
        checkpoint.load(first)


def test_contradicting_shapes_are_named_with_the_file(golden, tmp_path):
    weights = golden("dit_t2v").weights()
    weights["blocks.1.ffn.0.weight"] = weights["blocks.1.ffn.0.weight"][:-1].clone()
    save_file(weights, tmp_path / "x.safetensors")
    assert "blocks.1.ffn.0.weight" in refusal(tmp_path / "x.safetensors")


# Damage


def test_a_missing_file_is_named(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "gone.safetensors")
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.1, 0.001])
@pytest.mark.parametrize("write", [save_file, lambda w, path: torch.save(w, path)], ids=["safetensors", "pth"])
def test_a_truncated_file_is_named(write, keep, golden, tmp_path):
    write(golden("vae21").weights(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[: int(keep * len(content))])
    message = refusal(tmp_path / "a.safetensors")
    assert "is truncated" in message and "download it again" in message


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "has only 0 bytes"),
        (b"<!DOCTYPE html><html><body>Sign in to download</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 28577071\n", "a git-lfs pointer"),
        (b'{"error": "Invalid credentials in Authorization header"}', "a JSON text"),
        (pickle.dumps({"w": [1.0] * 99}), "a bare pickle"),
        (bytes(range(200)), "no safetensors file, GGUF file or PyTorch archive"),
        (struct.pack("<Q", 2**40) + b"{" + bytes(64), "no safetensors file"),
    ],
    ids=["empty", "html", "lfs", "json", "pickle", "noise", "huge header"],
)
def test_what_is_no_weights_file_is_named(content, what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert what in refusal(tmp_path / "model.safetensors")


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header, what",
    [
        (b'{"a": [1, 2', "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": "\xff\xfe"}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ({"a": 3}, "no valid place"),
        ({"a": entry(0, 8) | {"data_offsets": [8, 0]}}, "no valid place"),
        ({"a": entry(0, 8) | {"data_offsets": [0, 8.0]}}, "no valid place"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "'b' starts at byte 4 where 'a' ends at 8"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, "'b' starts at byte 8 where 'a' ends at 4"),
        ({"a": entry(0, 2**60)}, "is truncated"),
        ({"a": entry(0, 8)}, "fill 8 of 12 bytes"),
        ({"a": entry(0, 12, [2])}, "does not fill its 12 bytes"),
        ({"a": entry(0, 12, [2**62, 2**62, 2**62])}, "does not fill its 12 bytes"),
        ({"a": entry(0, 12, [-3])}, "no valid shape"),
        ({"a": entry(0, 12, [1] * 64 + [3])}, "no valid shape"),
        ({"a": entry(0, 12), "b": entry(12, 12, [0, 2**62, 2**62])}, "is empty with the sides"),
        ({"a": entry(0, 12, [3], "F4")}, "'F4', a number format"),
        ({"a": entry(0, 12, [3], ["F32"])}, "a number format"),
        ({"a": entry(0, 12), "__metadata__": {"format": 1}}, "metadata in its header is not text"),
        ({"a": entry(0, 12), "__metadata__": []}, "metadata in its header is not text"),
    ],
)
def test_a_header_that_lies_is_refused(header, what, tmp_path):
    assert what in refusal(raw_safetensors(tmp_path / "a.safetensors", header, bytes(12)))


class Mischief:
    """Pickles to a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"w": torch.ones(3), "x": Mischief(trap)}, tmp_path / "evil.pth")
    with pytest.raises(FileNotFoundError):
        trap.stat()
    assert "could run code" in refusal(tmp_path / "evil.pth")
    assert not trap.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert trap.exists()  # the trap works


def test_a_zip_bomb_is_refused(golden, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    assert "a compressed zip" in refusal(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(3), 7])
def test_an_archive_without_named_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    assert "not named weights" in refusal(tmp_path / "a.pth")


def test_a_damaged_archive_is_refused(golden, tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    content = buffer.getvalue()
    start = content.index(b"\x80\x02", 4)
    (tmp_path / "a.pth").write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])
    assert "damaged" in refusal(tmp_path / "a.pth")
