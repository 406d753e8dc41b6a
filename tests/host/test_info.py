"""Facts about a file: the node, the route, and names that must not lead out of the model folders."""

import asyncio
import json

import pytest
import torch
import writers
from aiohttp.test_utils import make_mocked_request
from safetensors.torch import save, save_file


@pytest.fixture(scope="module")
def info(room):
    return room("host.editor.info")


@pytest.fixture
def folder(models):
    """The host's folder of diffusion models; what a test leaves there as info* is removed."""
    yield models / "diffusion_models"
    for path in (models / "diffusion_models").glob("info*"):
        path.unlink()


def ask(room, query):
    request = make_mocked_request("GET", f"/wan/info?{query}", match_info={"question": "info"})
    response = asyncio.run(room("host.editor.routes").answer(request))
    return response.status, json.loads(response.text)


@pytest.mark.parametrize(
    "case, variant, vae, clip",
    [
        ("dit_t2v", "t2v", "wan_2.1_vae (16 channels)", None),
        ("dit_i2v", "i2v", "wan_2.1_vae (16 channels)", "clip_vision_h"),
        ("dit_ti2v", "ti2v", "wan2.2_vae (48 channels)", None),
    ],
)
def test_a_model_and_what_goes_with_it(info, golden, folder, case, variant, vae, clip):
    weights = golden(case).weights()
    save_file(weights, folder / f"info_{case}.safetensors")
    found = info.describe("diffusion_models", f"info_{case}.safetensors")
    assert (found["variant"], found["vae"], found["clip_vision"]) == (variant, vae, clip)
    assert (found["layout"], found["precision"], found["size"]) == ("official", "float32", "width 256")
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert found["bytes"] == (folder / f"info_{case}.safetensors").stat().st_size


def test_gguf_and_parts(info, golden, folder):
    weights = golden("dit_t2v").weights()
    writers.write_gguf(folder / "info.gguf", weights, "Q4_K")
    assert info.describe("diffusion_models", "info.gguf")["precision"] == "gguf_q4_k"
    first = writers.write_parts(folder / "info_parts.safetensors", weights)
    found = info.describe("diffusion_models", first.name)
    assert found["bytes"] == sum(path.stat().st_size for path in first.parent.glob("info_parts-*"))


def test_the_node_lists_a_model_in_parts_once(room, run_node, folder, golden):
    writers.write_parts(folder / "info_parts.safetensors", golden("dit_t2v").weights())
    listed = [name for name in room("host.files").names("diffusion_models") if "info_parts" in name]
    assert listed == ["info_parts-00001-of-00003.safetensors"]
    (text,) = run_node("WanModelInfo", file="vae/tiny_random_wan2.1_vae.safetensors")
    assert "holds a Wan VAE (vae21)" in text and "named as official" in text


def test_the_route(room, models):
    status, answer = ask(room, "folder=vae&name=tiny_random_wan2.1_vae.safetensors")
    assert status == 200 and answer["variant"] == "vae21"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "folder=vae",
        "folder=vae&name=../diffusion_models/x.safetensors",
        "folder=vae&name=/etc/passwd",
        "folder=custom_nodes&name=x",
        "folder=../models/vae&name=tiny_random_wan2.1_vae.safetensors",
        "folder=vae&name=%00",
    ],
)
def test_a_bad_question_gets_a_sentence(room, models, query):
    status, answer = ask(room, query)
    assert status == 400 and answer["error"].endswith(".")


@pytest.mark.parametrize(
    ("weights", "folder", "node"),
    [
        ("diffusion_models/tiny_random_wan2.1_i2v", "diffusion_models", "Wan Model Loader"),
        ("diffusion_models/tiny_random_wan2.1_vace", "diffusion_models", "Wan Model Loader"),
        ("vae/tiny_random_wan2.2_vae", "vae", "Wan VAE Loader"),
        ("text_encoders/tiny_random_umt5", "text_encoders", "Wan Text Encoder Loader"),
    ],
)
def test_a_header_alone_says_where_its_file_belongs(info, models, weights, folder, node):
    whole = (models / f"{weights}.safetensors").read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    said = info.place("my.safetensors", header, len(whole))
    assert (said.values["folder"], said.values["node"]) == (folder, node)
    assert "my.safetensors is truncated" in info.place("my.safetensors", header, len(whole) - 1)
    assert info.place("my-00001-of-00002.safetensors", header, len(whole)).code == "one_part"


def test_a_header_of_a_lora_and_of_another_model(info):
    lora = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 4)}
    flux = {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 4), "single_blocks.0.linear1.weight": torch.ones(2, 4)}
    for weights, text in [(lora, "put it into models/loras"), (flux, "a Flux model: no node of this pack loads it")]:
        whole = save(weights)
        header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
        assert text in str(info.place("my.safetensors", header, len(whole)))
