"""Runs one of the example workflows with the demo family on a server of its own, and reports the video.

`dev.py demo` starts this with the environment's Python.
"""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import av
import torch

from tiny import GUIDANCE, SHIFT, STEPS, examples, random_weights, scenes

from .client import Client, PromptError
from .environment import ROOT, SetupError, step
from .server import Server
from .workflow import to_prompt

WORKFLOWS = ROOT / "workflows"

# What a run with the demo family changes in a workflow made for the real models. Variants that are not in the family
# have stand-ins of random weights.
FAMILY = {
    "wan_tiny_t2v.safetensors": ("wan2.1_t2v_", "wan2.2_t2v_low_noise"),
    "wan_tiny_t2v_high_noise.gguf": ("wan2.2_t2v_high_noise",),
    "wan_tiny_ti2v.gguf": ("wan2.2_ti2v",),
    "wan_tiny_i2v.gguf": ("wan2.2_i2v_high_noise", "wan2.2_i2v_low_noise"),
    "wan_tiny_causal.safetensors": ("causal_forcing-framewise",),
    "wan_tiny_umt5.safetensors": ("umt5",),
    "wan_tiny_vae.safetensors": ("wan_2.1_vae",),
    "wan_tiny_vae22.safetensors": ("wan2.2_vae",),
    "wan_tiny_t2v_4step_lora.safetensors": ("wan2.2_t2v_lightx2v_4steps", "lightx2v_T2V_14B"),
}
DEMO_FILES = {real: tiny.name for tiny in random_weights.FILES for real in tiny.stands_in_for}
DEMO_FILES |= {real: name for name, starts in FAMILY.items() for real in DEMO_FILES if real.startswith(starts)}
DEMO_VALUES = {
    "width": scenes.SIDE,
    "height": scenes.SIDE,
    "length": scenes.FRAMES,
    "seconds": (scenes.FRAMES - 1) / 16,
}
SAMPLING = {"steps": STEPS, "shift": SHIFT, "guidance": GUIDANCE, "low_noise_guidance": 0.0}  # 0: as guidance
DEMO_VALUES |= SAMPLING
DEMO_WORKFLOW = "Try it - tiny text to video"
DEMO_PROMPT = "a red circle moves right on a blue background"
PROMPT_INPUTS = ("positive", "prompts")  # of WanTextEncode and WanStream

log = logging.getLogger("dev")


def load_workflow(name: str) -> dict:
    """The example workflow `name`, in the editor's format."""
    path = WORKFLOWS / f"{name}.json"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in WORKFLOWS.glob("*.json")))
        raise SetupError(f"There is no workflow {name!r}: choose one of {names}.")
    return json.loads(path.read_text(encoding="utf-8"))


def values(connected: Collection[str]) -> dict[str, float]:
    """Return what a run changes where the sampler has the inputs `connected`.

    One without a negative prompt works at guidance 1, in few steps: it keeps its settings.
    """
    return {name: value for name, value in DEMO_VALUES.items() if "negative" in connected or name not in SAMPLING}


def adapt(prompt: dict, text: str) -> dict:
    """`prompt` with the demo family's files and values, and `text` as its prompt."""
    adapted = json.loads(json.dumps(prompt))
    for node in adapted.values():
        inputs = node["inputs"]
        wanted = values(inputs)
        for name, value in inputs.items():
            if isinstance(value, str):
                inputs[name] = DEMO_FILES.get(value, value)
            elif name in wanted and not isinstance(value, list):
                inputs[name] = wanted[name]
        inputs |= {name: text for name in PROMPT_INPUTS if isinstance(inputs.get(name), str)}
    return adapted


def with_demo_files(workflow: dict) -> dict:
    """`workflow` (the editor's JSON) with the demo family's files in the place of the real ones and of their links."""
    adapted = json.loads(json.dumps(workflow))
    for node in adapted["nodes"]:
        node.get("properties", {}).pop("models", None)
        values = node.get("widgets_values")
        if isinstance(values, list):
            node["widgets_values"] = [
                DEMO_FILES.get(value, value) if isinstance(value, str) else value for value in values
            ]
    return adapted


def names_stand_ins(workflow: dict) -> bool:
    """Whether `workflow` names a file for which a stand-in of random weights is taken."""
    text = json.dumps(workflow)
    return any(real in text for real, name in DEMO_FILES.items() if name not in FAMILY)


def reporter(prompt: dict) -> Callable[[str, dict], None]:
    """Event handler that logs each node as it begins and its steps as they pass."""
    start = time.monotonic()

    def report(event: str, data: dict) -> None:
        elapsed = time.monotonic() - start
        if event == "executing" and data["node"] in prompt:
            log.info("  %5.1f s  %s", elapsed, prompt[data["node"]]["_meta"]["title"])
        elif event == "progress":
            log.info("  %5.1f s    %d of %d", elapsed, data["value"], data["max"])

    return report


def describe(video: Path) -> str:
    """Path, size, frame count and duration of `video`, counted by decoding it."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        rate = stream.average_rate
    return (
        f"{video}: {stream.width}x{stream.height}, {frames} frames, {float(frames / rate):.2f} s at {float(rate):g} fps"
    )


def run(comfyui: Path, base: Path, workflow: dict, text: str) -> list[Path]:
    """Run `workflow` on a server of the host `comfyui` with the files under `base`; return the files it wrote."""
    with step("Pictures to begin with, and stand-ins for variants that are not in the demo family"):
        examples.write(base / "input")
        if names_stand_ins(workflow):
            random_weights.write(base / "models")
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    with Server(sys.executable, comfyui, base, cpu=cpu) as server:
        client = Client(server.url)
        prompt = adapt(to_prompt(workflow, client.get("/object_info")), text)
        files = client.run(prompt, reporter(prompt))
    return [base / file["type"] / file["subfolder"] / file["filename"] for file in files]


def main() -> int:
    """Run the demo and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--workflow", default=DEMO_WORKFLOW)
    parser.add_argument("--prompt", default=DEMO_PROMPT)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the blocks that stop the server
    try:
        videos = run(options.comfyui, options.base, load_workflow(options.workflow), options.prompt)
    except (SetupError, PromptError, ValueError, TimeoutError) as error:
        log.error("The demo failed. %s\nThe server's log is %s.", error, options.base / "server.log")
        return 1
    except KeyboardInterrupt:
        log.error("Stopped.")
        return 130
    videos = [path for path in videos if path.suffix == ".mp4"]
    if not videos:
        log.error("The demo failed. The workflow %s wrote no mp4.", options.workflow)
        return 1
    for video in videos:
        log.info("%s", describe(video))
    return 0


if __name__ == "__main__":
    sys.exit(main())
