"""ComfyUI's own Wan templates, from its own package, with this pack's loaders in the place of its own."""

import av
import pytest

from devtools import demo
from devtools.workflow import to_prompt

TEMPLATES = ("text_to_video_wan", "image_to_video_wan", "wan2.1_flf2v_720_f16", "video_wan2_2_5B_ti2v")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_comfyui_runs_with_our_loaders(migrated, client, object_info, base, name):
    prompt = demo.adapt(to_prompt(migrated(name), object_info), "a red ball")
    kinds = {node["class_type"] for node in prompt.values()}
    assert {"WanModelLoader", "WanTextEncoderLoader", "WanVAELoader", "KSampler", "VAEDecode"} <= kinds
    files = [base / file["type"] / file["subfolder"] / file["filename"] for file in client.run(prompt)]
    with av.open(str(next(path for path in files if path.suffix == ".mp4"))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == demo.DEMO_VALUES["length"]
    assert all(frame.std() > 1 for frame in frames)
