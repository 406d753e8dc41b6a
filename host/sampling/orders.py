"""From the inputs of a node to what a video of any length is made with; all checks come before any weight is loaded."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...wan_model import geometry
from ...wan_model.causal import parse_prompts
from ...wan_model.variants.rollout import Rollout
from ..clips import images
from ..clips.conditioning import Clip, new_clip
from ..encoders.clip import encode_prompts
from ..observe.preview import frame_rate_of
from ..vae.vae import AUTO, HostVAE
from . import blockwise, checks, presets, saved
from .experts import Expert
from .schedule import Schedule
from .stream import Order

OF_MODEL = -1  # window and sink: the model's own
NODE = "WanStream"
NEGATIVE = "negative"


@dataclass(frozen=True)
class Scene:
    """The content of a video. clip: the host's CLIP. start: images (N, H, W, C) in [0, 1] at its beginning, or None."""

    clip: object
    prompts: str
    negative: str
    width: int
    height: int
    start: torch.Tensor | None


def make(
    stage: Expert, schedule: Schedule, vae, scene: Scene, seconds: float, seed: int, memory: Mapping[str, int]
) -> Order:
    """Return the order of a video of `seconds`, 0 for no end.

    memory: window and sink in latent frames, `OF_MODEL` for the model's own. Raise ValueError for a model that is not
    causal, a VAE that does not stream or is of another family, and inputs that do not go together.
    """
    checks.check_causal(stage.name, blockwise.is_causal(stage.model))
    check_vae(stage, vae)
    prompts = parse_prompts(scene.prompts)
    rollout = rollout_of(stage, memory)
    clip = new_clip(vae, scene.width, scene.height, 1, 1)
    titled = {f"{prompt.start:g} s": prompt.text for prompt in prompts}
    texts = titled | ({NEGATIVE: scene.negative} if stage.reads_negative else {})
    encoded = dict(zip(texts, encode_prompts(scene.clip, texts), strict=True))
    given = None if scene.start is None else encode_start(vae, scene.start, clip)
    for title in titled:
        checks.check_conditioning(stage.model, encoded[title])
    return Order(
        stage=stage,
        schedule=schedule,
        rollout=rollout,
        vae=vae,
        prompts=[(prompt.start, encoded[title]) for prompt, title in zip(prompts, titled, strict=True)],
        negative=encoded.get(NEGATIVE),
        latent=(clip.latent[1], *clip.latent[3:]),
        given=given,
        seconds=seconds,
        rate=frame_rate_of(stage.model.model),
        seed=seed,
        identity=identity(stage, vae)
        | {
            "the size": f"{clip.width}x{clip.height}",
            "the prompts": "; ".join(f"{title}: {text}" for title, text in texts.items()),
            "the settings": f"{schedule.solver} at {schedule.sigmas.tolist()}, guidance {stage.guidance:g}",
            "the memory": str(rollout),
            "the start image": saved.digest_of(given),
        },
    )


def check_vae(stage: Expert, vae) -> None:
    """Raise ValueError unless `vae` decodes the model's latents as a stream."""
    channels = stage.model.get_model_object("latent_format").latent_channels
    checks.check_channels(channels, vae.latent_channels)
    if not isinstance(vae, HostVAE):
        raise ValueError(
            f"{NODE} decodes each block as it comes, and this VAE of ComfyUI's own decodes whole clips: load the file "
            "in WanVAELoader."
        )


def rollout_of(stage: Expert, memory: Mapping[str, int]) -> Rollout:
    """Return how the model is run; raise ValueError for numbers that do not go together."""
    own = blockwise.rollout_for(stage.model)
    given = {name: value for name, value in memory.items() if value != OF_MODEL}
    return dataclasses.replace(own, **given)


def encode_start(vae: HostVAE, start: torch.Tensor, clip: Clip) -> torch.Tensor:
    """Return the latent (1, C, n, h, w) of the images (N, H, W, C) that a video begins with: the first 4n+1."""
    start = images.rgb(start, f"start_image of {NODE}", clip.width, clip.height)
    frames = geometry.snap_length(start.shape[0])
    return images.encode_pieces(vae, images.fit(start[:frames], clip.width, clip.height), frames, AUTO)


def identity(stage: Expert, vae: HostVAE) -> dict[str, str]:
    """Return names of the weights, by which a video is made with the same ones after a break."""
    patcher, prefix = stage.model, "diffusion_model."
    patches = {name.removeprefix(prefix): patches for name, patches in patcher.patches.items()}
    return {
        "the model": ", ".join(presets.file_names(patcher)) or stage.name,
        "the model's weights": saved.fingerprint(patcher.model.diffusion_model, patches),
        "the VAE": saved.fingerprint(vae.first_stage_model.decoder),
    }
