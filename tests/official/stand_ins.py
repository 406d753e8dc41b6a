"""Writes what a template loads as tiny files under the names that it asks for, and puts our loaders in."""

import re
import wave
import zlib
from pathlib import Path

import av
import numpy as np
import recipe
import torch
from PIL import Image

from . import files, templates

DITS = (  # what a file's name holds -> its kind, first match
    ("animate_2", "animate2"),
    ("scail_2", "scail2"),
    ("bernini", "t2v_a14b"),
    ("causal_forcing", "causal"),
    ("dancer", "wandancer"),
    ("humo_17b", "humo"),
    ("i2v-ati", "ati"),
    ("wanmove", "wan_move"),
    ("i2v-14b-480p", "i2v_talk"),  # the infinite-talk template's
    ("chrono_edit", "i2v"),
    ("flf2v", "flf2v"),
    ("s2v", "s2v"),
    ("vace_14b", "vace"),
    ("vace_1.3b", "vace_1.3B"),
    ("2.2_fun_control_5b", "fun_control_5b"),
    ("2.2_fun_inpaint_5b", "fun_inp_5b"),
    ("2.2_fun_control", "fun_control_a14b"),
    ("2.2_fun_inpaint", "fun_inp_a14b"),
    ("2.2_fun_camera", "fun_camera_a14b"),
    ("fun_control_1.3b", "fun_control_1.3B"),
    ("fun_inp_1.3b", "fun_inp_1.3B"),
    ("fun_camera_v1.1_14b", "fun_camera"),
    ("fun_camera_v1.1_1.3b", "fun_camera_1.3B"),
    ("ti2v_5b", "ti2v"),
    ("2.2_i2v", "i2v_a14b"),
    ("2.2_t2v", "t2v_a14b"),
    ("i2v", "i2v"),
    ("t2v_1.3b", "t2v_1.3B"),
    ("t2v", "t2v"),
)
PRECISION = {"weight_dtype": "default"}
OURS = {  # host's loader -> ours and its inputs by the host's
    "UNETLoader": ("WanModelLoader", {"model_name": "unet_name"}, {"weight_dtype": "auto"}),
    "VAELoader": ("WanVAELoader", {"vae_name": "vae_name"}, {"decode_dtype": "float32", "encode_dtype": "float32"}),
    "CLIPLoader": ("WanTextEncoderLoader", {"text_encoder_name": "clip_name"}, {}),
    "CLIPVisionLoader": ("WanClipVisionLoader", {"clip_vision_name": "clip_name"}, {}),
}


def kind(name: str) -> str:
    """The kind of `files.DITS` that stands in for the file `name`."""
    return next(kind for part, kind in DITS if part in name.lower())


def write(made: dict, models: Path, inputs: Path) -> None:
    """Write every file that the prompt `made` reads into the folders of `models` and into `inputs`."""
    width = next((files.DITS[kind(node["inputs"]["unet_name"])].width for node in _of(made, "UNETLoader")), files.DIM)
    for node in made.values():
        given = node["inputs"]
        match node["class_type"]:
            case "UNETLoader":
                name = given["unet_name"]
                files.write_dit(models / "diffusion_models" / name, kind(name), zlib.crc32(name.encode()) % 100)
            case "VAELoader":
                generation = "wan2.2" if "2.2" in given["vae_name"] else "wan2.1"
                files.write_vae(models / "vae" / given["vae_name"], generation)
            case "CLIPLoader":
                files.write_umt5(models / "text_encoders" / given["clip_name"])
            case "CLIPVisionLoader":
                files.write_clip_vision(models / "clip_vision" / given["clip_name"])
            case "LoraLoaderModelOnly" | "LoraLoader":
                files.write_lora(models / "loras" / given["lora_name"], width)
            case "ModelPatchLoader":
                files.write_infinitetalk(models / "model_patches" / given["name"])
            case "LoadImage" | "LoadImageMask":
                write_picture(inputs / _plain(given["image"]))
            case "LoadVideo":
                write_video(inputs / _plain(given["file"]))
            case "LoadAudio":
                write_sound(inputs / _plain(given["audio"]))


def _of(made: dict, class_type: str) -> list[dict]:
    return [node for node in made.values() if node["class_type"] == class_type]


def _plain(name: str) -> str:
    """A file's name without the folder that the editor notes behind it."""
    return re.sub(r" \[\w+\]$", "", name)


def write_picture(path: Path) -> None:
    """Write a smooth picture with an alpha channel where the format has one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (_frames(path.name, 1)[0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)


def write_video(path: Path, frames: int = 97) -> None:
    """Write a clip of smooth frames, 16 a second."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = templates.WIDTH, templates.HEIGHT, "yuv420p"
        for picture in _frames(path.name, frames):
            frame = av.VideoFrame.from_ndarray((picture * 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path: Path, seconds: int = 10, rate: int = 16000) -> None:
    """Write a tone that beats twice a second."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(seconds * rate) / rate
        tone = np.sin(2 * np.pi * 440 * time) * (time * 2 % 1 < 0.3)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((tone * 20000).astype("<i2").tobytes())


def _frames(name: str, count: int) -> np.ndarray:
    """(count, height, width, 3) in [0, 1]."""
    small = recipe.tensor(name, (count, 3, 8, 8)).sigmoid()
    size = (templates.HEIGHT, templates.WIDTH)
    return torch.nn.functional.interpolate(small, size, mode="bilinear").movedim(1, -1).numpy()


def with_loaders(made: dict, ours: set[str]) -> dict:
    """`made` with our loader in the place of each of the host's in `ours`."""
    replaced = {}
    for id, node in made.items():
        if node["class_type"] in ours:
            name, inputs, settings = OURS[node["class_type"]]
            given = {mine: node["inputs"][theirs] for mine, theirs in inputs.items()}
            node = {"class_type": name, "inputs": given | settings}
        elif node["class_type"] == "UNETLoader":
            node = node | {"inputs": node["inputs"] | PRECISION}
        replaced[id] = node
    return replaced


def loaders(made: dict) -> tuple[set[str], set[str]]:
    """(the loaders of ours that the host's run needs, those of our run).

    The host knows umT5 and CLIP vision at full size alone, and the VAE of 2.2 too: there ours stand in both runs.
    """
    both = {"CLIPLoader", "CLIPVisionLoader"}
    if any("2.2" in node["inputs"]["vae_name"] for node in _of(made, "VAELoader")):
        both.add("VAELoader")
    return both, set(OURS)
