"""The way from the editor's JSON to files on disk, with ComfyUI's own nodes."""

import av
import pytest
from PIL import Image

from devtools.client import PromptError
from devtools.workflow import to_prompt


def editor_workflow() -> dict:
    """EmptyImage -> (bypassed) ImageInvert -> Reroute -> ImageScale -> SaveImage and SaveVideo, and a note."""
    image = {"name": "image", "type": "IMAGE"}
    return {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "mode": 0, "inputs": [], "widgets_values": [64, 48, 5, 0xFF8000]},
            {"id": 2, "type": "ImageInvert", "mode": 4, "inputs": [{**image, "link": 1}]},
            {"id": 3, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "type": "*", "link": 2}]},
            {
                "id": 4,
                "type": "ImageScale",
                "mode": 0,
                "inputs": [{**image, "link": 3}],
                "widgets_values": ["bilinear", 32, 16, "disabled"],
            },
            {
                "id": 5,
                "type": "SaveImage",
                "mode": 0,
                "inputs": [{"name": "images", "type": "IMAGE", "link": 4}],
                "widgets_values": ["plumbing"],
            },
            {
                "id": 6,
                "type": "CreateVideo",
                "mode": 0,
                "inputs": [
                    {"name": "images", "type": "IMAGE", "link": 5},
                    {"name": "audio", "type": "AUDIO", "link": None},
                ],
                "widgets_values": [16],
            },
            {
                "id": 7,
                "type": "SaveVideo",
                "mode": 0,
                "inputs": [{"name": "video", "type": "VIDEO", "link": 6}],
                "widgets_values": ["video/plumbing", "auto", "auto"],
            },
            {"id": 8, "type": "Note", "mode": 0, "widgets_values": ["nothing to run"]},
            {"id": 9, "type": "PreviewImage", "mode": 2, "inputs": [{"name": "images", "type": "IMAGE", "link": 7}]},
        ],
        "links": [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 0, 3, 0, "IMAGE"],
            [3, 3, 0, 4, 0, "IMAGE"],
            [4, 4, 0, 5, 0, "IMAGE"],
            [5, 4, 0, 6, 0, "IMAGE"],
            [6, 6, 0, 7, 0, "VIDEO"],
            {"id": 7, "origin_id": 4, "origin_slot": 0, "target_id": 9, "target_slot": 0, "type": "IMAGE"},
        ],
    }


def test_conversion_follows_links_and_widgets(object_info):
    prompt = to_prompt(editor_workflow(), object_info)
    assert set(prompt) == {"1", "4", "5", "6", "7"}
    assert prompt["1"]["inputs"] == {"width": 64, "height": 48, "batch_size": 5, "color": 0xFF8000}
    assert prompt["4"]["inputs"]["image"] == ["1", 0]
    assert prompt["4"]["inputs"]["width"] == 32
    assert prompt["6"]["inputs"] == {"images": ["4", 0], "fps": 16}


def test_conversion_skips_the_widgets_that_only_the_editor_has(object_info):
    sampler = {"id": 1, "type": "KSampler", "widgets_values": [7, "randomize", 20, 8.0, "euler", "simple", 1.0]}
    image = {"id": 2, "type": "LoadImage", "widgets_values": ["example.png", "image"]}
    prompt = to_prompt({"nodes": [sampler, image], "links": []}, object_info)
    assert prompt["1"]["inputs"] == {
        **{"seed": 7, "steps": 20, "cfg": 8.0},
        **{"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    }
    assert prompt["2"]["inputs"] == {"image": "example.png"}


def test_conversion_names_the_node_that_does_not_fit(object_info):
    stale = {"id": 3, "type": "EmptyImage", "widgets_values": [64, 48, 1, 0, 0]}
    with pytest.raises(ValueError, match=r"Node 3 \(EmptyImage\) has 1 widget values more than its 4 widgets"):
        to_prompt({"nodes": [stale], "links": []}, object_info)
    with pytest.raises(ValueError, match=r"no node NoSuchNode \(node 4\)"):
        to_prompt({"nodes": [{"id": 4, "type": "NoSuchNode"}], "links": []}, object_info)


def test_a_workflow_writes_its_image_and_its_video(client, object_info, base):
    events = []
    prompt = to_prompt(editor_workflow(), object_info)
    files = client.run(prompt, lambda event, data: events.append((event, data)))
    paths = {path.suffix: path for path in (base / "output" / file["subfolder"] / file["filename"] for file in files)}
    with Image.open(paths[".png"]) as image:
        assert image.size == (32, 16)
        assert image.getpixel((8, 8)) == (0xFF, 0x80, 0x00)
    with av.open(str(paths[".mp4"])) as container:
        assert len(list(container.decode(video=0))) == 5
    assert {data["node"] for event, data in events if event == "executing"} >= {"1", "4", "5", "6", "7"}


def test_an_uploaded_image_can_be_loaded(client, tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (24, 40), (255, 0, 0)).save(path)
    files = client.run(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": client.upload(path)}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "uploaded"}},
        }
    )
    assert [file["filename"].startswith("uploaded") for file in files] == [True]


def test_a_refused_prompt_names_node_and_value(client):
    with pytest.raises(PromptError, match=r"EmptyImage \(node 1\).*width"):
        client.run(
            {
                "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 8, "batch_size": 1, "color": 0}},
                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            }
        )


def test_a_failing_node_is_named(client, base):
    (base / "models" / "vae" / "corrupt.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(PromptError, match=r"VAELoader \(node 1\): .*"):
        client.run(
            {
                "1": {"class_type": "VAELoader", "inputs": {"vae_name": "corrupt.safetensors"}},
                "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
                "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
                "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
            }
        )
