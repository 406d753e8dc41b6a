"""The CLIP image encoder on the host's class: golden states, every layout, pictures of every kind."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def vision(room):
    return room("host.encoders.clip_vision")


@pytest.fixture(scope="module")
def weights(vision, golden):
    """The golden encoder's weights in the host's layout."""
    return {name: weight.contiguous() for name, weight in vision.host_weights(golden("clip_vision").weights()).items()}


@pytest.fixture
def full_precision(monkeypatch):
    """The host keeps text and image encoders in float16 unless told otherwise."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management.args, "fp32_text_enc", True)


@pytest.fixture
def model(vision, weights, full_precision, tmp_path):
    save_file(weights, tmp_path / "clip_vision_h.safetensors")
    return vision.load(str(tmp_path / "clip_vision_h.safetensors"))


def picture(golden):
    return (golden("clip_vision").inputs["image"] + 1).div(2).movedim(1, -1)  # (1, 3, H, W) -> (1, H, W, 3)


def official(weights, golden):
    """The official file: both halves of the CLIP."""
    image_half = {f"visual.{name}": weight for name, weight in golden("clip_vision").weights().items()}
    return image_half | {"textual.head.0.weight": torch.ones(2, 2), "log_scale": torch.ones([])}


def repackaged(weights, golden):
    return weights


def transformers(weights, golden):
    """Names as in a CLIPVisionModel: no prefix and no projection."""
    return {name.removeprefix("vision_model."): w for name, w in weights.items() if "projection" not in name}


@pytest.mark.parametrize(
    ("layout", "name"), [(official, "clip.pth"), (repackaged, "h.safetensors"), (transformers, "h.safetensors")]
)
@pytest.mark.usefixtures("full_precision")
def test_layout_matches_golden(vision, weights, golden, relative_error, tmp_path, layout, name):
    state = layout(weights, golden)
    path = tmp_path / name
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    model = vision.load(str(path))
    output = vision.encode(model, [picture(golden)])
    assert relative_error(output.penultimate_hidden_states, golden("clip_vision").outputs["penultimate"]) < 1e-4


@pytest.mark.parametrize("layout", ["official/clip_xlm_roberta_vit_h_14", "hf/clip_vision_h"])
def test_full_size_names_map_completely(room, vision, layout):
    shapes = json.loads(gzip.decompress((GOLDEN / "checkpoints.json.gz").read_bytes()))[layout]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = room("wan_model.checkpoint").recognise(state)
    assert found.variant == "clip_vision"
    renamed = vision.host_weights(found.tensors)
    config = vision.infer_config(renamed, layout)
    assert {name: tuple(weight.shape) for name, weight in renamed.items()} == vision.expected_shapes(config)
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
    assert [config[name] for name in sizes] == [1280, 5120, 16, 32, 224, 14]


def test_expected_shapes_are_those_of_the_hosts_model(vision, model, weights):
    config = vision.infer_config(weights, "clip_vision_h")
    shapes = {name: tuple(weight.shape) for name, weight in model.model.state_dict().items()}
    assert shapes == vision.expected_shapes(config)


def test_two_pictures_follow_one_another(room, vision, model, golden):
    start, end = picture(golden), picture(golden).flip(1)
    node = room("nodes.clip_vision").WanClipVision
    both = node.execute(model, start, end).args[0].penultimate_hidden_states
    alone = [node.execute(model, image).args[0].penultimate_hidden_states for image in (start, end)]
    assert both.shape == (1, 34, 80)
    assert torch.allclose(both, torch.cat(alone, dim=1), atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_two_pictures_are_what_the_hosts_node_makes_of_one_each(room, model, golden, models, run_node):
    from comfy_extras.nodes_wan import WanFirstLastFrameToVideo

    start, end = picture(golden), picture(golden).flip(1)
    node = room("nodes.clip_vision").WanClipVision
    outputs = [node.execute(model, *images).args[0] for images in ((start,), (end,), (start, end))]
    name = "tiny_random_wan2.1_vae.safetensors"
    (vae,) = run_node("WanVAELoader", vae_name=name, decode_dtype="auto", encode_dtype="auto")
    empty = [[torch.zeros(1, 1, 1), {}]]
    positive, *_ = WanFirstLastFrameToVideo.execute(
        empty,
        empty,
        vae,
        32,
        32,
        5,
        1,
        start,
        end,
        clip_vision_start_image=outputs[0],
        clip_vision_end_image=outputs[1],
    ).args
    theirs = positive[0][1]["clip_vision_output"].penultimate_hidden_states
    assert torch.allclose(theirs, outputs[2].penultimate_hidden_states, atol=1e-5)


def test_first_frame_of_the_start_and_last_of_the_end_are_read(room, model, golden):
    start = picture(golden)
    clip = torch.cat([start, start.flip(1), start.flip(2)])
    node = room("nodes.clip_vision").WanClipVision
    video = node.execute(model, clip, clip).args[0].penultimate_hidden_states
    frames = node.execute(model, clip[:1], clip[2:]).args[0].penultimate_hidden_states
    assert torch.equal(video, frames)


def test_grey_becomes_rgb_and_alpha_is_left_out(vision):
    image = torch.rand(1, 32, 32, 4)
    assert torch.equal(vision.check_picture(image, "start_image"), image[..., :3])
    assert torch.equal(vision.check_picture(image[..., :1], "start_image"), image[..., :1].repeat(1, 1, 1, 3))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 1, 3), "start_image.*1x1"),
        ((1, 10, 20000, 3), "20000x10"),
        ((1, 100, 20000, 3), "10 to 1"),
        ((1, 32, 32, 2), "2 channels"),
    ],
)
def test_picture_that_says_nothing_is_refused(room, model, shape, message):
    with pytest.raises(ValueError, match=message):
        room("nodes.clip_vision").WanClipVision.execute(model, torch.rand(shape))


def test_loader_reads_the_hosts_folder(room, weights, models):
    (models / "clip_vision").mkdir(exist_ok=True)
    save_file(weights, models / "clip_vision" / "tiny_h.safetensors")
    loader = room("nodes.clip_vision").WanClipVisionLoader
    assert loader.validate_inputs("tiny_h.safetensors") is True
    assert loader.execute("tiny_h.safetensors").args[0].image_size == 56
    assert "not in the models/clip_vision folder" in loader.validate_inputs("../vae/tiny_random_wan2.1_vae.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4)}, "a language model, not a CLIP vision"),
        (lambda s: {k: v for k, v in s.items() if "layers.1.mlp.fc2.weight" not in k}, "lacks"),
        (lambda s: s | {"vision_model.encoder.layers.1.mlp.fc1.bias": torch.ones(7)}, r"\(7,\).*\(320,\)"),
        (lambda s: s | {"vision_model.embeddings.position_embedding.weight": torch.ones(17, 1024)}, "1024.*1280"),
    ],
)
def test_bad_file_gets_one_sentence(vision, weights, tmp_path, change, message):
    save_file(change(weights), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message):
        vision.load(str(tmp_path / "bad.safetensors"))


def test_other_image_encoder_of_the_host_is_refused(room, full_precision):
    from types import SimpleNamespace

    import comfy.clip_model
    import comfy.ops

    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 1024) | {"num_hidden_layers": 1}
    config = sizes | {"num_attention_heads": 16, "patch_size": 14, "image_size": 224, "num_channels": 3}
    config |= {"model_type": "clip_vision_model", "hidden_act": "gelu"}
    network = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.manual_cast)
    with pytest.raises(ValueError, match=r"1024 channels.*1280"):
        room("host.encoders.clip_vision").encode(SimpleNamespace(model=network), [torch.rand(1, 32, 32, 3)])
