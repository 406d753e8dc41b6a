"""What a run would fail with, told before it from the files that a graph names: the run's own checks, on headers."""

import inspect
import os
from dataclasses import dataclass
from functools import partial

from ...wan_model import checkpoint
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.model import WanDiT, dit_config
from ...wan_model.vae import vae_config
from .. import files
from ..clips import conditioning, vace
from ..encoders import clip
from ..model import lora
from ..sampling import sampling
from ..vae import vae as host_vae


@dataclass(frozen=True)
class Dit:
    """A model on a wire. name: of its file."""

    name: str
    config: DiTConfig

    @property
    def channels(self) -> int:
        """As of `sampling.Expert`."""
        return self.config.in_dim


def problem(node: str, given: dict[str, str]) -> str | None:
    """The sentence that the node class `node` would fail with for what reaches it, or None.

    given: arguments of the node's function in `CHECKS`, by name, as file names or words; what is left out is not
    checked. Raises ValueError for other nodes and names, and for files that are not in the host's folders.
    """
    if node not in CHECKS:
        raise ValueError(f"'{node[:80]}' is no node that is checked: ask for one of {', '.join(CHECKS)}.")
    signature = inspect.signature(CHECKS[node])
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{node} is checked for {', '.join(signature.parameters)}, not so: {error}.") from None
    try:
        values = {name: (READERS.get(name) or READERS.get(node, str))(text) for name, text in given.items()}
    except checkpoint.CheckpointError:
        return None  # its loader has a sentence for it
    try:
        CHECKS[node](**values)
    except ValueError as error:
        return str(error)
    return None


def read_dit(name: str) -> Dit:
    """A file of diffusion models; raises ValueError for one that holds no Wan model."""
    path = files.path("diffusion_models", name)
    found = checkpoint.expect(path, checkpoint.DIT, "WanModelLoader")
    return Dit(os.path.basename(path), dit_config(found.tensors))


def read_channels(name: str) -> int:
    """Latent channels of a VAE file; raises ValueError for one that holds no Wan VAE."""
    found = checkpoint.expect(files.path("vae", name), checkpoint.VAE, "WanVAELoader")
    return vae_config(found.tensors).latent_channels


def read_lora(name: str) -> tuple[str, dict]:
    """(name, tensors) of a LoRA file."""
    path = files.path("loras", name)
    return os.path.basename(path), checkpoint.read(path)


def check_file(kinds: tuple[str, ...], node: str, file: str) -> None:
    """As `validate_inputs` of the loader `node`. file: path of what is chosen in it."""
    checkpoint.expect(file, kinds, node)


def check_sampler(model: Dit | None = None, low_noise_model: Dit | None = None, vae: int | None = None) -> None:
    """As WanSampler. vae: channels of the VAE that the latent is for."""
    stages = [stage for stage in (model, low_noise_model) if stage is not None]
    if len(stages) == 2:
        sampling.check_pair(*stages)
    if vae is not None:
        for stage in stages:
            sampling.check_channels(stage.config.out_dim, vae)


def check_decode(vae: int | None = None, model: Dit | None = None) -> None:
    """As the nodes that decode. model: the one that sampled the latent."""
    if vae is not None and model is not None:
        host_vae.check_channels(vae, model.config.out_dim)


def check_vace(vae: int) -> None:
    """As WanVACE."""
    vace.check_vae(vae)


def check_end_image(vae: int) -> None:
    """As WanConditioning with an end image."""
    conditioning.check_end_image(vae)


def check_lora(model: Dit, lora_name: tuple[str, dict]) -> None:
    """As WanLoraLoader."""
    lora.match(*lora_name, lora.parameter_shapes(WanDiT(model.config, device="meta")))


def check_text(clip_type: str) -> None:
    """As WanTextEncode with a CLIP of the host's loaders. clip_type: what CLIPLoader was told it is."""
    clip.check_kind(clip_type == "wan")


READERS = {  # argument, or node with a single one -> how it is read; others are words
    "model": read_dit,
    "low_noise_model": read_dit,
    "vae": read_channels,
    "lora_name": read_lora,
    "WanModelLoader": partial(files.path, "diffusion_models"),
    "WanVAELoader": partial(files.path, "vae"),
    "WanTextEncoderLoader": partial(files.path, "text_encoders"),
    "WanClipVisionLoader": partial(files.path, "clip_vision"),
}
CHECKS = {
    "WanModelLoader": partial(check_file, checkpoint.DIT, "WanModelLoader"),
    "WanVAELoader": partial(check_file, checkpoint.VAE, "WanVAELoader"),
    "WanTextEncoderLoader": partial(check_file, checkpoint.TEXT_ENCODER, "WanTextEncoderLoader"),
    "WanClipVisionLoader": partial(check_file, checkpoint.CLIP_VISION, "WanClipVisionLoader"),
    "WanSampler": check_sampler,
    "WanVAEDecode": check_decode,
    "WanVAEDecodeToVideo": check_decode,
    "WanVACE": check_vace,
    "WanConditioning": check_end_image,
    "WanLoraLoader": check_lora,
    "WanTextEncode": check_text,
}
