"""Every example workflow, from the editor's file to frames on disk."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from devtools import demo
from devtools.environment import SetupError
from devtools.workflow import lacking, to_prompt
from tiny import judge

from wan_model.variants import distilled

NAMES = sorted(path.stem for path in demo.WORKFLOWS.glob("*.json"))


def decode(video: Path) -> list:
    """Frames of `video` as (height, width, 3) arrays of bytes."""
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(params=NAMES)
def workflow(request) -> dict:
    """Each file of workflows/ in turn, as the editor reads it."""
    return demo.load_workflow(request.param)


def test_a_workflow_links_to_the_files_it_loads(workflow):
    models = [model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", [])]
    values = {
        value for node in workflow["nodes"] for value in node.get("widgets_values") or [] if isinstance(value, str)
    }
    files = {value for value in values if value.endswith(".safetensors")}
    assert files - set(demo.FAMILY) == {model["name"] for model in models}
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])


def test_the_settings_are_those_of_the_files(workflow, object_info):
    """Distilled files are sampled as their authors do; the others have a negative prompt."""
    if missing := lacking(workflow, object_info):
        pytest.skip(f"this ComfyUI lacks {', '.join(sorted(missing))}")
    nodes = [(node["class_type"], node["inputs"]) for node in to_prompt(workflow, object_info).values()]
    names = [value for _, inputs in nodes for key, value in inputs.items() if key in ("model_name", "lora_1")]
    samplers = [inputs for kind, inputs in nodes if kind in ("WanSampler", "WanStream")]
    preset = distilled.recognise("\n".join(names))
    assert len(samplers) == max(1, sum(kind == "WanContinue" for kind, _ in nodes))
    for sampler in samplers:
        if preset is None:
            assert "negative" in sampler
        else:
            found = [sampler[key] for key in ("steps", "guidance", "shift", "solver")]
            assert found == [preset.steps, preset.guidance[0], preset.shift, preset.solver]


def test_a_workflow_makes_a_video(workflow, client, object_info, base):
    if missing := lacking(workflow, object_info):
        pytest.skip(f"this ComfyUI lacks {', '.join(sorted(missing))}")
    prompt = demo.adapt(to_prompt(workflow, object_info), demo.DEMO_PROMPT)
    files = [base / file["type"] / file["subfolder"] / file["filename"] for file in client.run(prompt)]
    video = next(path for path in files if path.suffix == ".mp4")
    frames = decode(video)
    parts = sum(node["class_type"] == "WanContinue" for node in prompt.values())
    assert len(frames) == 1 + max(1, parts) * (demo.DEMO_VALUES["length"] - 1)  # parts share a frame
    for frame in frames:
        assert frame.shape == (demo.DEMO_VALUES["height"], demo.DEMO_VALUES["width"], 3)
        assert frame.std() > 1, "a frame of one colour"


def test_the_demo_shows_what_its_prompt_says(comfyui, base):
    prompt = "a yellow square moves down on a purple background"
    result = subprocess.run(
        [sys.executable, "-m", "devtools.demo", "--comfyui", comfyui, "--base", base, "--prompt", prompt],
        cwd=demo.ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = result.stdout.strip().splitlines()[-1]
    size = "{width}x{height}, {length} frames".format(**demo.DEMO_VALUES)
    assert f".mp4: {size}" in report
    video = Path(report.partition(".mp4:")[0] + ".mp4")
    assert prompt in json.dumps(av.open(str(video)).metadata)
    clip = torch.from_numpy(np.stack(decode(video))).permute(3, 0, 1, 2) / 127.5 - 1
    assert judge.look(clip) == judge.Seen("square", "yellow", "purple", "down")


def test_an_unknown_workflow_is_answered_with_the_known_ones():
    with pytest.raises(SetupError, match=r"no workflow 'nonsense': choose one of .*wan21_text_to_video"):
        demo.load_workflow("nonsense")
