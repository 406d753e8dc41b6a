"""A long clip in a loop of the host's executor: a prompt, a seed and a LoRA set for each turn, and every frame once."""

from pathlib import Path

import av
import folder_paths
import loop_nodes
import torch
from official import runner

PICTURE = 48, 64  # rows and columns
TURNS = 3
SAMPLER = {"steps": 1, "guidance": 1.0, "shift": 5.0, "solver": "euler", "denoise": 1.0}
PART = {"length": 17, "overlap": 0, "layout": "anchor", "tile_width": 0, "tile_height": 0}


def graph() -> dict:
    """A prompt whose body makes a part, decodes and saves it, and goes around until `TURNS` of them are made."""
    load = {"model_name": "tiny_random_wan2.2_i2v_high_noise.safetensors", "weight_dtype": "float32"}
    text = {"text_encoder_name": "tiny_random_umt5.safetensors"}
    vae = {"vae_name": "tiny_random_wan2.1_vae.safetensors", "decode_dtype": "float32", "encode_dtype": "float32"}
    nodes = {
        "model": ("WanModelLoader", load),
        "clip": ("WanTextEncoderLoader", text),
        "vae": ("WanVAELoader", vae),
        "image": ("EmptyImage", {"height": PICTURE[0], "width": PICTURE[1], "batch_size": 1, "color": 0x4080C0}),
        "picture": ("WanVAEEncode", {"vae": ["vae", 0], "images": ["image", 0], "tile_width": 0, "tile_height": 0}),
        "open": ("TestLoopOpen", {"left": TURNS, "value0": ["picture", 0]}),
        "text": ("WanTextEncode", {"clip": ["clip", 0], "positive": ["open", 3], "negative": ""}),
        "part": (
            "WanContinue",
            {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "previous": ["open", 1]} | PART,
        ),
        "sampler": (
            "WanSampler",
            {"model": ["model", 0], "positive": ["part", 0], "latent": ["part", 2], "seed": ["open", 0]} | SAMPLER,
        ),
        "decode": (
            "WanVAEDecodePart",
            {"vae": ["vae", 0], "samples": ["sampler", 0], "before": ["open", 2], "fps": 16.0}
            | {"tile_width": 0, "tile_height": 0},
        ),
        "save": ("SaveVideo", {"video": ["decode", 0], "filename_prefix": "part", "format": "mp4", "codec": "h264"}),
        "close": (
            "TestLoopClose",
            {"opened": ["open", 0], "left": ["open", 0], "value0": ["sampler", 0], "value1": ["decode", 1]},
        ),
        "keep": ("OfficialKeep", {"samples": ["close", 0], "name": "clip"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def straight(run_node, room, models) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent and the frames (T, H, W, 3) of the same parts by one node after the other."""
    loaded = {name: dict(graph()[name]["inputs"]) for name in ("model", "clip", "vae")}
    model, clip, vae = (run_node(graph()[name]["class_type"], **inputs)[0] for name, inputs in loaded.items())
    image = torch.tensor([0x40, 0x80, 0xC0]).div(255).expand(1, *PICTURE, 3)
    latent = run_node("WanVAEEncode", vae=vae, images=image, tile_width=0, tile_height=0)[0]
    for left in range(TURNS, 0, -1):
        positive, negative = run_node("WanTextEncode", clip=clip, positive=loop_nodes.prompt_of(left), negative="")
        given = {"model": model, "positive": positive}
        part = run_node("WanContinue", **given, negative=negative, previous=latent, **PART)
        given |= {"positive": part[0], "latent": part[2], "seed": left}
        latent = run_node("WanSampler", **given, **SAMPLER)[0]
    return latent["samples"], vae.decode(latent["samples"])[0]


def test_a_loop_makes_the_parts_and_decodes_each_frame_once(pack, run_node, room, models, relative_error, monkeypatch):
    loop_nodes.register()
    runner.load_extra_nodes()
    host_vae, asked, decoded = room("host.vae.vae"), [], []
    chunks = host_vae.HostVAE.decode_chunks

    def counted(self, samples, *arguments, **options):
        asked.append(samples.shape[2])
        for chunk in chunks(self, samples, *arguments, **options):
            decoded.append(chunk[0])
            yield chunk

    monkeypatch.setattr(host_vae.HostVAE, "decode_chunks", counted)
    clip = runner.run_prompt(graph(), ["keep", "save"])["clip"]
    assert asked == [5, 3, 3]
    shown = torch.cat(decoded)
    latent, frames = straight(run_node, room, models)
    assert relative_error(clip, latent) < 1e-5
    assert relative_error(latent[:, :, 5:8], latent[:, :, 8:11]) > 1e-2, "the parts are the same"
    assert relative_error(shown, frames) < 1e-5
    files = sorted(Path(folder_paths.get_output_directory()).glob("part_*.mp4"))
    assert sum(map(count_frames, files)) == len(frames) and len(files) == TURNS


def count_frames(file: Path) -> int:
    """The number of frames of a video file."""
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))
