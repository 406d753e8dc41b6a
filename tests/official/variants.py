"""One conditioning for each member of the Wan family, made by the host's own nodes on tiny inputs.

For whoever adds a member: a row of `VARIANTS` names a kind of `files.DITS` and a builder. The builder gets a `Bench`
and the MODEL, and returns what a sampler takes: `Inputs(model, positive, negative, latent)`; `Variant.sample` runs it.
The same row runs with the host's MODEL and with ours, so that only the network differs:

    bench = Bench(models, vaes)                      # as tests/host/test_variants_on_host.py makes it
    variant = VARIANTS["humo"]
    path = files.write_dit(folder / "humo.safetensors", variant.kind)
    latent = variant.sample(variant.build(bench, model))     # model: any MODEL loaded from `path`

`EXPECTED` in that test says which rows are not the same yet; delete the entry when the part has landed. Its table:
pytest tests/host/test_variants_on_host.py -v
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import recipe
import torch

import nodes
from . import files
from .runner import run_node

WIDTH, HEIGHT, LENGTH = 64, 96, 13  # pixels and frames: 4 x 12 x 8 latent pixels
STEPS, GUIDANCE, SEED = 2, 3.0, 5


class Inputs(NamedTuple):
    """Inputs of a sampler: MODEL, two CONDITIONINGs and LATENT."""

    model: object
    positive: list
    negative: list
    latent: dict


@dataclass(frozen=True)
class Bench:
    """Tiny inputs. models: the host's models folder. vaes: the host's VAEs by the names of `files.write_vae`."""

    models: Path
    vaes: dict[str, object]

    def text(self, name: str, tokens: int = 40) -> list:
        """CONDITIONING of `tokens` random tokens, padded with zeros to Wan's 512 as the host's text encoder pads."""
        embeds = torch.zeros(1, 512, 4096)
        embeds[:, :tokens] = recipe.tensor(name, (1, tokens, 4096))
        return [[embeds, {}]]

    def video(self, name: str, frames: int = LENGTH, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
        """IMAGE of `frames` random pictures in [0, 1]: smooth, so that resizing keeps something of them."""
        small = recipe.tensor(name, (frames, 3, 12, 12)).sigmoid()
        return torch.nn.functional.interpolate(small, (height, width), mode="bilinear").movedim(1, -1)

    def mask(self, name: str, frames: int = LENGTH) -> torch.Tensor:
        """MASK (frames, height, width) of zeros and ones."""
        return (self.video(name, frames)[..., 0] > 0.5).float()

    def clip_vision(self, name: str):
        """CLIP_VISION_OUTPUT of one picture."""
        import comfy.clip_vision

        output = comfy.clip_vision.Output()
        output["penultimate_hidden_states"] = recipe.tensor(name, (1, 257, 1280))
        return output

    def sound(self, name: str, layers: int, channels: int, seconds: float = 2.0) -> dict:
        """AUDIO_ENCODER_OUTPUT of an encoder with `layers` hidden states of `channels`, 50 a second."""
        count = int(50 * seconds)
        hidden = [recipe.tensor(f"{name} {layer}", (1, count, channels)) for layer in range(layers)]
        return {"encoded_audio": hidden[-1], "encoded_audio_all_layers": hidden, "audio_samples": int(16000 * seconds)}

    def patch(self, write: Callable[[Path], Path]) -> object:
        """MODEL_PATCH of the file that `write` writes."""
        path = write(self.models / "model_patches" / f"{write.__name__}.safetensors")
        return run_node("ModelPatchLoader", name=path.name)[0]

    def condition(self, node: str, vae: str = "wan2.1", **inputs: object) -> tuple:
        """Outputs of one of the host's conditioning nodes at the bench's size."""
        size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}
        prompts = {"positive": self.text("prompt"), "negative": self.text("negative prompt", 12)}
        return run_node(node, **(prompts | {"vae": self.vaes[vae]} | size | inputs))


def node(name: str, vae: str = "wan2.1", **inputs: Callable[[Bench], object]) -> Callable:
    """Builder with the one node `name`, whose outputs are positive, negative, [...] and latent."""

    def build(bench: Bench, model: object) -> Inputs:
        made = bench.condition(name, vae, **{key: make(bench) for key, make in inputs.items()})
        return Inputs(model, made[0], made[1], next(output for output in made if isinstance(output, dict)))

    return build


def picture(name: str, frames: int = 1) -> Callable[[Bench], torch.Tensor]:
    """Input of a node: random pictures."""
    return lambda bench: bench.video(name, frames)


def clip(name: str) -> Callable:
    """Input of a node: what the image encoder sees."""
    return lambda bench: bench.clip_vision(name)


def sound(layers: int, channels: int) -> Callable:
    """Input of a node: what an audio encoder hears."""
    return lambda bench: bench.sound("sound", layers, channels)


def value(constant: object) -> Callable:
    """Input of a node: a constant."""
    return lambda bench: constant


def camera(bench: Bench) -> object:
    """Input of a node: a camera that moves to the left."""
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
    return run_node("WanCameraEmbedding", camera_pose="Pan Left", speed=1.0, fx=0.5, fy=0.5, cx=0.5, cy=0.5, **size)[0]


def plain(bench: Bench, model: object) -> Inputs:
    """Text alone."""
    latent = {"samples": torch.zeros(1, 16, (LENGTH - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)}
    return Inputs(model, bench.text("prompt"), bench.text("negative prompt", 12), latent)


def plain_5b(bench: Bench, model: object) -> Inputs:
    """Text and a start picture held as the first latent frame."""
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}
    latent = run_node("Wan22ImageToVideoLatent", vae=bench.vaes["wan2.2"], start_image=bench.video("start", 1), **size)
    return Inputs(model, bench.text("prompt"), bench.text("negative prompt", 12), latent[0])


def phantom(bench: Bench, model: object) -> Inputs:
    """Two subjects. The node's two negatives are for two scales; here the second, without the subjects, is used."""
    positive, _, negative, latent = bench.condition("WanPhantomSubjectToVideo", images=bench.video("subjects", 2))
    return Inputs(model, positive, negative, latent)


def animate2(cache: bool) -> Callable:
    """A reference and a pose video; `cache` adds the host's node that keeps the pose branch."""

    def build(bench: Bench, model: object) -> Inputs:
        inputs = {"reference_image": bench.video("reference", 1), "pose_video": bench.video("pose")}
        inputs |= {"clip_vision_output": bench.clip_vision("reference"), "video_frame_offset": 0, "pose_strength": 1.0}
        inputs |= {"pose_start_percent": 0.0, "pose_end_percent": 1.0, "reference_image_strength": 1.0}
        positive, negative, latent, *_ = bench.condition("WanAnimate2ToVideo", **inputs)
        if cache:
            model = run_node("WanAnimate2Cache", model=model, device="cpu", dtype="default")[0]
        return Inputs(model, positive, negative, latent)

    return build


def bernini(bench: Bench, model: object) -> Inputs:
    """A source video and two reference pictures, each a stream of tokens of its own."""
    references = {"reference_image_0": bench.video("reference", 1), "reference_image_1": bench.video("another", 1)}
    inputs = {"source_video": bench.video("source"), "reference_images": references, "ref_max_size": 64}
    return Inputs(model, *bench.condition("BerniniConditioning", **inputs))


def move(bench: Bench, model: object) -> Inputs:
    """A start picture whose parts go along generated tracks."""
    path = {"start_x": 0.2, "start_y": 0.2, "end_x": 0.8, "end_y": 0.7, "mid_x": 0.5, "mid_y": 0.5, "bezier": False}
    path |= {"width": WIDTH, "height": HEIGHT, "num_frames": LENGTH, "num_tracks": 3, "track_spread": 0.05}
    tracks = run_node("GenerateTracks", interpolation="linear", **path)[0]
    inputs = {"tracks": tracks, "strength": 1.0, "start_image": bench.video("start", 1)}
    made = bench.condition("WanMoveTrackToVideo", clip_vision_output=bench.clip_vision("start"), **inputs)
    return Inputs(model, *made)


def wandancer(bench: Bench, model: object) -> Inputs:
    """A start picture and a second of music with a beat."""
    time = torch.arange(48000) / 48000
    wave = (torch.sin(2 * torch.pi * 440 * time) * (time * 4 % 1 < 0.3))[None, None]
    audio = {"waveform": wave, "sample_rate": 48000}
    heard = run_node("WanDancerEncodeAudio", audio=audio, video_frames=LENGTH, audio_inject_scale=1.0)[0]
    inputs = {
        "clip_vision_output": bench.clip_vision("start"),
        "clip_vision_output_ref": bench.clip_vision("reference"),
    }
    inputs |= {"vae": bench.vaes["wan2.1"], "start_image": bench.video("start", 1), "audio_encoder_output": heard}
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
    prompts = {"positive": bench.text("prompt"), "negative": bench.text("negative prompt", 12)}
    return Inputs(model, *run_node("WanDancerVideo", **prompts, **inputs, **size))


def infinitetalk(two: bool, clip_vision: bool = True) -> Callable:
    """A start picture and the sound of one speaker or two."""

    def build(bench: Bench, model: object) -> Inputs:
        first, second = (bench.sound(name, 13, 768) for name in ("first", "second"))
        mode = {"mode": "single_speaker"}
        if two:
            left = torch.zeros(1, HEIGHT, WIDTH)
            left[:, :, : WIDTH // 2] = 1
            mode = {"mode": "two_speakers", "audio_encoder_output_2": second, "mask_1": left, "mask_2": 1 - left}
        inputs = {"mode": mode, "model": model, "model_patch": bench.patch(files.write_infinitetalk)}
        inputs |= {"positive": bench.text("prompt"), "negative": bench.text("negative prompt", 12)}
        inputs |= {"vae": bench.vaes["wan2.1"], "start_image": bench.video("start", 1), "audio_scale": 1.0}
        inputs |= {"audio_encoder_output_1": first, "motion_frame_count": 1}
        inputs |= {"clip_vision_output": bench.clip_vision("start")} if clip_vision else {}
        made = run_node("WanInfiniteTalkToVideo", width=WIDTH, height=HEIGHT, length=LENGTH, **inputs)
        return Inputs(*made[:4])

    return build


def uni3c(bench: Bench, model: object) -> Inputs:
    """A start picture, and a render of the camera's path through the host's patch."""
    made = node("WanImageToVideo", start_image=picture("start"), clip_vision_output=clip("start"))(bench, model)
    inputs = {"model_patch": bench.patch(files.write_uni3c), "vae": bench.vaes["wan2.1"], "strength": 1.0}
    inputs |= {"render_video": bench.video("render"), "start_percent": 0.0, "end_percent": 1.0}
    return made._replace(model=run_node("WanUni3CControlnetApply", model=model, **inputs)[0])


def causal(start: bool) -> Callable:
    """Text, or a start picture that goes into the cache of keys and values first; for `sample_causal`."""

    def build(bench: Bench, model: object) -> Inputs:
        made = plain(bench, model)
        if start:
            size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}
            inputs = {"vae": bench.vaes["wan2.1"], "start_image": bench.video("start", 1)}
            made = made._replace(model=run_node("ARVideoI2V", model=model, **inputs, **size)[0])
        return made

    return build


def sample(inputs: Inputs, steps: int = STEPS, guidance: float = GUIDANCE) -> torch.Tensor:
    """The latent after a few steps of the host's sampler with classifier-free guidance."""
    given = (SEED, steps, guidance, "euler", "simple", inputs.positive, inputs.negative, inputs.latent)
    return nodes.common_ksampler(inputs.model, *given)[0]["samples"]


def sample_causal(block: int) -> Callable[[Inputs], torch.Tensor]:
    """As `sample`, by the host's sampler for causal models in blocks of `block` latent frames."""

    def run(inputs: Inputs) -> torch.Tensor:
        given = {"model": inputs.model, "positive": inputs.positive, "negative": inputs.negative}
        given["sampler"] = run_node("SamplerARVideo", num_frame_per_block=block)[0]
        given["sigmas"] = run_node("BasicScheduler", model=inputs.model, scheduler="simple", steps=4, denoise=1.0)[0]
        settings = {"add_noise": True, "noise_seed": SEED, "cfg": 1.0, "latent_image": inputs.latent}
        return run_node("SamplerCustom", **given, **settings)[0]["samples"]

    return run


@dataclass(frozen=True)
class Variant:
    """kind: of `files.DITS`. build: (bench, model) -> Inputs. sample: Inputs -> latent."""

    kind: str
    build: Callable[[Bench, object], Inputs]
    sample: Callable[[Inputs], torch.Tensor] = sample


I2V = {"start_image": picture("start"), "clip_vision_output": clip("start")}
TRACKS = str([[{"x": 4 * t, "y": 3 * t} for t in range(121)]]).replace("'", '"')
HUMO = {"audio_encoder_output": sound(33, 1280), "ref_image": picture("reference")}
S2V = {"audio_encoder_output": sound(25, 1024), "ref_image": picture("reference")}
SCAIL = {
    "reference_image": picture("reference"),
    "pose_video": picture("pose", LENGTH),
    "clip_vision_output": clip("reference"),
    **{"pose_strength": value(1.0), "pose_start": value(0.0), "pose_end": value(1.0)},
    **{"video_frame_offset": value(0), "previous_frame_count": value(5)},
}
SCAIL2 = SCAIL | {
    "pose_video_mask": picture("pose mask", LENGTH),
    "reference_image_mask": picture("reference mask"),
    "replacement_mode": value(False),
}
ANIMATE = {
    "reference_image": picture("reference"),
    "pose_video": picture("pose", LENGTH),
    "face_video": picture("face", 5),
    "clip_vision_output": clip("reference"),
    **{"continue_motion_max_frames": value(5), "video_frame_offset": value(0)},
    "length": value(5),  # each frame's face is read at 512 x 512
}
CONTROL = {"control_video": picture("control", LENGTH)}
TALKING = partial(sample, guidance=1.0)  # the host's patch takes no batch of both prompts
CAMERA = I2V | {"camera_conditions": camera}

VARIANTS = {
    "t2v": Variant("t2v", plain),
    "i2v": Variant("i2v", node("WanImageToVideo", **I2V)),
    "i2v without CLIP vision": Variant("i2v", node("WanImageToVideo", start_image=picture("start"))),
    "i2v_a14b": Variant("i2v_a14b", node("WanImageToVideo", start_image=picture("start"))),
    "ti2v": Variant("ti2v", plain_5b),
    "fun_inp": Variant("fun_inp", node("WanFunInpaintToVideo", end_image=picture("end"), **I2V)),
    "fun_inp_a14b": Variant("fun_inp_a14b", node("WanFunInpaintToVideo", start_image=picture("start"))),
    "fun_inp_5b": Variant("fun_inp_5b", node("WanFunInpaintToVideo", "wan2.2", start_image=picture("start"))),
    "fun_control": Variant("fun_control", node("WanFunControlToVideo", **CONTROL, **I2V)),
    "fun_control_1.3B": Variant("fun_control_1.3B", node("WanFunControlToVideo", **CONTROL, **I2V)),
    "fun_control_ref": Variant("fun_control_ref", node("WanFunControlToVideo", **CONTROL, **I2V)),
    "fun_control_a14b": Variant("fun_control_a14b", node("Wan22FunControlToVideo", **CONTROL)),
    "fun_control_a14b with a reference": Variant(
        "fun_control_a14b", node("Wan22FunControlToVideo", ref_image=picture("reference"), **CONTROL)
    ),
    "fun_control_5b": Variant("fun_control_5b", node("Wan22FunControlToVideo", "wan2.2", **CONTROL)),
    "fun_control_5b with a reference": Variant(
        "fun_control_5b", node("Wan22FunControlToVideo", "wan2.2", ref_image=picture("reference"), **CONTROL)
    ),
    "fun_camera": Variant("fun_camera", node("WanCameraImageToVideo", **CAMERA)),
    "fun_camera_1.3B": Variant("fun_camera_1.3B", node("WanCameraImageToVideo", **CAMERA)),
    "fun_camera_a14b": Variant(
        "fun_camera_a14b",
        node("WanCameraImageToVideo", start_image=picture("start"), camera_conditions=camera),
    ),
    "vace_fun": Variant("vace_fun", node("WanVaceToVideo", strength=value(0.8), **CONTROL)),
    "s2v": Variant("s2v", node("WanSoundImageToVideo", **S2V)),
    "s2v with pose and motion": Variant(
        "s2v", node("WanSoundImageToVideo", ref_motion=picture("motion", 73), **CONTROL, **S2V)
    ),
    "animate": Variant("animate", node("WanAnimateToVideo", **ANIMATE), partial(sample, steps=1, guidance=1.0)),
    "animate2": Variant("animate2", animate2(cache=False)),
    "animate2 with the cache": Variant("animate2", animate2(cache=True)),
    "humo": Variant("humo", node("WanHuMoImageToVideo", **HUMO)),
    "humo_1.7B": Variant("humo_1.7B", node("WanHuMoImageToVideo", **HUMO)),
    "phantom": Variant("phantom", phantom),
    "scail": Variant("scail", node("WanSCAILToVideo", **SCAIL)),
    "scail2": Variant("scail2", node("WanSCAILToVideo", **SCAIL2)),
    "ati": Variant(
        "ati",
        node("WanTrackToVideo", tracks=value(TRACKS), temperature=value(220.0), topk=value(2), **I2V),
    ),
    "wan_move": Variant("wan_move", move),
    "bernini": Variant("t2v_a14b", bernini),
    "wandancer": Variant("wandancer", wandancer),
    "infinitetalk": Variant("i2v_talk", infinitetalk(two=False), TALKING),
    "infinitetalk without CLIP vision": Variant("i2v_talk", infinitetalk(two=False, clip_vision=False), TALKING),
    "infinitetalk with two speakers": Variant("i2v_talk", infinitetalk(two=True), TALKING),
    "uni3c": Variant("i2v", uni3c),
    "causal": Variant("causal", causal(start=False), sample_causal(1)),
    "causal in blocks": Variant("causal", causal(start=False), sample_causal(3)),
    "causal from a picture": Variant("causal", causal(start=True), sample_causal(1)),
}
