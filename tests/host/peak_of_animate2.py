"""Run by test_animate2.py in a process of its own: sample 81 frames with Animate 2 and note how much memory that took.

Its name keeps it out of the suite. The network has all 40 blocks and little width, and the clip is small.
"""

import json
import os
import time
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import recipe
import torch
from official import files, runner, variants

SMALL, LARGE = (
    (1, 4, 4),
    (21, 32, 32),
)  # latent frames, height and width; the large one is 81 frames of 256 x 256 pixels


def inputs(model, size: tuple[int, int, int]) -> variants.Inputs:
    """What WanAnimate2ToVideo would make for `size`, from random latents."""
    clip = comfy.clip_vision.Output()
    clip["penultimate_hidden_states"] = recipe.tensor("clip", (1, 257, 1280))
    text, whole = recipe.tensor("text", (1, 512, 4096)), (size[0] + 1, *size[1:])
    given = {"concat_latent_image": recipe.tensor("image", (1, 16, *whole)), "concat_mask": torch.ones(1, 1, *whole)}
    given |= {"pose_video_latent": recipe.tensor("pose", (1, 16, *size)), "cross_attn_pose": text}
    cond = [[text, given | {"clip_vision_output": clip, "clip_vision_output_pose": clip}]]
    return variants.Inputs(model, cond, cond, {"samples": torch.zeros(1, 16, *whole)})


def resident() -> int:
    """Return the bytes of RAM that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most_resident() -> int:
    """Return the most bytes of RAM that this process had since `clear_refs` was last written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_peak_of_animate2(room, tmp_path):
    runner.load_extra_nodes()
    folder = Path(os.environ["WAN_RESULT"])
    path = str(files.write_dit(folder / "deep.safetensors", "animate2_deep"))
    if os.environ["WAN_CASE"] == "host":
        model = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
        room("host.model.attention").choose(model, "sdpa")
    else:
        model = room("host.model.loading").load(path, "float32", attention="sdpa")
    if os.environ["WAN_CASE"] != "ours alone":
        model = runner.run_node("WanAnimate2Cache", model=model, device="cpu", dtype="default")[0]
    variants.sample(inputs(model, SMALL), 1, 1.0)  # reads all weights from the file
    made = inputs(model, LARGE)
    before, start = resident(), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    torch.save(variants.sample(made, 2, 1.0), folder / f"{os.environ['WAN_CASE']}.pt")
    found = {"bytes": most_resident() - before, "seconds": time.perf_counter() - start}
    (folder / f"{os.environ['WAN_CASE']}.json").write_text(json.dumps(found))
