"""Wan-Animate and Animate 2 in the host: what a run needs, says and takes."""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import recipe
import torch
import writers
from official import files

KNOWN = find_spec("comfy.ldm.wan.model_animate2") is not None  # to this ComfyUI
needs_animate2 = pytest.mark.skipif(not KNOWN, reason="this ComfyUI does not know Animate 2")
SHAPE = (1, 16, 22, 60, 104)  # 81 frames of 832 x 480, and the reference image
POSE = (1, 16, 21, 60, 104)


@pytest.fixture(scope="module")
def path(models):
    """Function from a kind of `files.DITS` to its file in the host's folder."""
    return lambda kind: files.write_dit(models / "diffusion_models" / f"{kind}.safetensors", kind)


@pytest.mark.parametrize("kind", ["animate", pytest.param("animate2", marks=needs_animate2)])
def test_a_file_is_described_and_a_run_estimated(kind, path, room):
    name = path(kind).name
    info = room("host.editor.info").describe("diffusion_models", name)
    assert (info["variant"], info["clip_vision"], info["channels"]) == (kind, "clip_vision_h", 16)
    estimate = room("host.editor.estimate")
    part = estimate.part_of_file(name, "float32")
    found = estimate.estimate([part], SHAPE, 20, True, estimate.here())
    assert found["calls"] == 40 and found["peak"] > part.weights


def test_what_a_face_takes_is_counted(path, room):
    model = room("host.model.loading").load(str(path("animate")), "float32").model
    alone, posed = (model.memory_required(SHAPE, shapes) for shapes in ({}, {"pose_latents": [POSE]}))
    assert posed == alone  # added to the tokens
    faced = model.memory_required(SHAPE, {"face_pixel_values": [(1, 3, 81, 512, 512)]})
    assert faced - alone > 2 * 32 * 512 * 512 * 4  # the first feature map of two faces


@needs_animate2
def test_what_a_pose_branch_takes_is_counted(path, room):
    model = room("host.model.loading").load(str(path("animate2")), "float32").model
    alone, posed = (model.memory_required(SHAPE, shapes) for shapes in ({}, {"pose_latents": [POSE]}))
    tokens = 21 * 30 * 52
    assert 4 * tokens * files.DIM * 4 < posed - alone < 5 * tokens * files.DIM * 4


@pytest.mark.skipif(KNOWN, reason="this ComfyUI knows Animate 2")
def test_an_older_host_is_to_be_updated(path, room):
    with pytest.raises(ValueError, match=r"does not know .*Animate 2 models of Wan: update ComfyUI"):
        room("host.model.loading").load(str(path("animate2")), "float32")


def test_the_shapes_of_a_conditioning_are_told_to_the_host(path, room):
    model = room("host.model.loading").load(str(path("animate")), "float32").model
    given = {"pose_video_latent": torch.empty(1, 16, 3, 8, 6), "face_video_pixels": torch.empty(1, 3, 13, 512, 512)}
    shapes = model.extra_conds_shapes(**given)
    assert shapes["pose_latents"] == [1, 16, 3, 8, 6] and shapes["face_pixel_values"] == [1, 3, 13, 512, 512]


@needs_animate2
def test_the_hosts_cache_is_said_to_keep_nothing(path, room, caplog):
    model = room("host.model.loading").load(str(path("animate2")), "float32").clone()
    model.model_options["transformer_options"]["animate2_cache"] = object()
    given = {"concat_latent_image": torch.ones(1, 16, 4, 8, 6), "clip_vision_output": object()}
    with caplog.at_level(logging.INFO):
        room("host.sampling.checks").check_conditioning(model, [[torch.ones(1, 2, 4096), given]])
    assert "WanAnimate2Cache keeps nothing for animate2.safetensors" in caplog.text


@needs_animate2
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.slow  # minutes
def test_81_frames_take_a_quarter_of_the_hosts_memory(tmp_path, relative_error):
    script, found = Path(__file__).with_name("peak_of_animate2.py"), {}
    for case in ("host", "ours"):
        run = [sys.executable, "-m", "pytest", "-q", script]
        environment = {**os.environ, "WAN_CASE": case, "WAN_RESULT": str(tmp_path)}
        subprocess.run(run, check=True, env=environment, capture_output=True)
        found[case] = json.loads((tmp_path / f"{case}.json").read_text())["bytes"]
    latents = [torch.load(tmp_path / f"{case}.pt") for case in ("ours", "host")]
    assert relative_error(*latents) < 1e-3
    assert found["ours"] < found["host"] / 4


def test_a_gguf_keeps_what_reads_faces_packed(models, room, relative_error):
    projections = ("linear1_kv.weight", "linear1_q.weight", "linear2.weight")
    weights = files.dit("animate")
    meaning = writers.write_gguf(
        models / "diffusion_models" / "animate.gguf", weights, "Q8_0", bulk=(*writers.BULK, *projections)
    )
    packed = room("host.model.loading").load(str(models / "diffusion_models" / "animate.gguf")).model.diffusion_model
    found = {name for name, _ in room("host.model.packed").named_packed_layers(packed)}
    assert {f"face_adapter.fuser_blocks.0.{name.removesuffix('.weight')}" for name in projections} <= found
    plain = room("wan_model.dit").build_dit({name: w for name, w in meaning.items() if not name.endswith(".kernel")})
    x, face = recipe.tensor("x", (1, 24, files.DIM)), recipe.tensor("face", (1, 2, 5, files.DIM))
    sdpa = room("wan_model.dit.attention").sdpa
    ours, expected = (
        network.face_adapter.fuser_blocks[0](x.to(network.dtype), face.to(network.dtype), sdpa, 2).float()
        for network in (packed, plain)
    )
    assert relative_error(ours, expected) < 1e-2  # the host computes in half precision
