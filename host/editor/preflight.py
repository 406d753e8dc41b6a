"""Errors of a run, found before it starts: the run's own checks, on the headers of the files that a graph names.

`NODES` is the one table of node classes that the editor knows; the browser asks for it.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from ...wan_model import checkpoint
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.model import WanDiT
from ...wan_model.messages import Message, message_of
from .. import files
from ..clips import conditioning, next_part, vace
from ..encoders import clip
from ..model import lora, precision
from ..sampling import checks, experts
from ..vae import vae as host_vae


@dataclass(frozen=True)
class Dit:
    """A model on a link of the graph. name: of its file."""

    name: str
    config: DiTConfig

    @property
    def channels(self) -> int:
        """As in `experts.Expert`."""
        return self.config.in_dim


@dataclass(frozen=True)
class Node:
    """The editor's knowledge of a node class.

    note: the subject of its note besides problems: its "file", "clip", "run" or "video", or "" for none; None for a
    node of the host, which has no note. check: raises ValueError as the node would; its arguments are the node's
    inputs, as file names or words. folder, file: of a loader, the model folder and the widget that names the file.
    loras: its widgets that name LoRAs, each with the widget of its strength.
    """

    note: str | None = None
    check: Callable[..., None] | None = None
    folder: str | None = None
    file: str | None = None
    loras: Mapping[str, str] = field(default_factory=dict)

    def given(self) -> dict[str, bool]:
        """Return the arguments of the check, and whether it needs each."""
        parameters = inspect.signature(self.check).parameters.values() if self.check else ()
        return {parameter.name: parameter.default is parameter.empty for parameter in parameters}


def table() -> dict[str, dict]:
    """Return `NODES` for JSON; `given` stands for the check."""
    return {
        name: {"note": n.note, "given": n.given(), "folder": n.folder, "file": n.file, "loras": dict(n.loras)}
        for name, n in NODES.items()
    }


def problem(node: str, given: dict[str, str]) -> Message | str | None:
    """Return the error that the node class `node` would raise for these inputs, or None.

    given: arguments of the node's check, by name, as file names or words; a missing one is not checked. Raise
    ValueError for other nodes and names, and for files that are not in the host's folders.
    """
    row = NODES.get(node)
    if row is None or row.check is None:
        checked = ", ".join(name for name, known in NODES.items() if known.check)
        raise ValueError(f"'{node[:80]}' is not a node with a check: ask for one of {checked}.")
    signature = inspect.signature(row.check)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{node} is checked for {', '.join(signature.parameters)}, not so: {error}.") from None
    try:
        readers = {**READERS, "file": partial(files.path, row.folder)}
        values = {name: readers.get(name, str)(text) for name, text in given.items()}
    except checkpoint.CheckpointError:
        return None  # its loader reports it
    try:
        row.check(**values)
    except ValueError as error:
        return message_of(error)
    return None


def read_dit(name: str) -> Dit:
    """Return the model in a file of models/diffusion_models; raise ValueError if it is no Wan model."""
    path = files.path("diffusion_models", name)
    found = checkpoint.expect(path, checkpoint.DIT, "WanModelLoader")
    return Dit(os.path.basename(path), found.config)


def read_channels(name: str) -> int:
    """Return the latent channels of a file of models/vae; raise ValueError if it is no Wan VAE."""
    found = checkpoint.expect(files.path("vae", name), checkpoint.VAE, "WanVAELoader")
    return found.config.latent_channels


def read_lora(name: str) -> tuple[str, dict]:
    """Return (name, tensors) of a LoRA file."""
    path = files.path("loras", name)
    return os.path.basename(path), checkpoint.read(path)


def loader(node: str, kinds: tuple[str, ...], folder: str, widget: str, note: str | None = "file") -> Node:
    """Return the row of a loader that takes the same files as our loader `node`."""
    return Node(note, partial(check_file, kinds, node), folder, widget)


def check_file(kinds: tuple[str, ...], node: str, file: str) -> None:
    """Check as `validate_inputs` of the loader `node` does. file: path of the chosen file."""
    precision.expect(file, kinds, node)


def check_sampler(model: Dit | None = None, low_noise_model: Dit | None = None, vae: int | None = None) -> None:
    """Check as WanSampler does. vae: channels of the VAE that the latent is for."""
    stages = [stage for stage in (model, low_noise_model) if stage is not None]
    if len(stages) == 2:
        experts.check_pair(*stages)
    if vae is not None:
        for stage in stages:
            checks.check_channels(stage.config.out_dim, vae)


def check_stream(model: Dit | None = None, vae: int | None = None) -> None:
    """Check as WanStream does."""
    if model is not None:
        checks.check_causal(model.name, model.config.facts.causal)
        check_sampler(model, vae=vae)


def check_decode(vae: int | None = None, model: Dit | None = None) -> None:
    """Check as the decode nodes do. model: the one that sampled the latent."""
    if vae is not None and model is not None:
        host_vae.check_channels(vae, model.config.out_dim)


def check_vace(vae: int) -> None:
    """Check as WanVACE does."""
    vace.check_vae(vae)


def check_continue(model: Dit) -> None:
    """Check as WanContinue does."""
    next_part.way_of(model.config.variant)


def check_end_image(vae: int, end_image: bool = True) -> None:
    """Check as WanConditioning does. end_image: whether there is one."""
    if end_image:
        conditioning.check_end_image(vae)


def check_lora(model: Dit, lora_name: tuple[str, dict]) -> None:
    """Check as WanLoraLoader does."""
    lora.match(*lora_name, lora.parameter_shapes(WanDiT(model.config, device="meta")))


def check_text(clip_type: str) -> None:
    """Check as WanTextEncode does, for a CLIP of the host's loaders. clip_type: the type chosen in CLIPLoader."""
    clip.check_kind(clip_type == "wan")


READERS = {  # argument of a check -> how it is read; others are words
    "model": read_dit,
    "low_noise_model": read_dit,
    "vae": read_channels,
    "lora_name": read_lora,
    "end_image": "true".__eq__,
}
NODES = {
    "WanModelLoader": loader("WanModelLoader", checkpoint.DIT, "diffusion_models", "model_name"),
    "WanVAELoader": loader("WanVAELoader", checkpoint.VAE, "vae", "vae_name"),
    "WanTextEncoderLoader": loader(
        "WanTextEncoderLoader", checkpoint.TEXT_ENCODER, "text_encoders", "text_encoder_name"
    ),
    "WanClipVisionLoader": loader("WanClipVisionLoader", checkpoint.CLIP_VISION, "clip_vision", "clip_vision_name"),
    "WanLoraLoader": Node("", check_lora, loras={f"lora_{slot}": f"strength_{slot}" for slot in (1, 2, 3, 4)}),
    "WanStepCache": Node(""),
    "WanTextEncode": Node("", check_text),
    "WanConditioning": Node("clip", check_end_image),
    "WanVACE": Node("clip", check_vace),
    "WanContinue": Node("", check_continue),
    "WanEmptyLatent": Node("clip"),
    "WanSampler": Node("run", check_sampler),
    "WanStream": Node("video", check_stream),
    "WanVAEDecode": Node("", check_decode),
    "WanVAEDecodeToVideo": Node("", check_decode),
    "WanVAEDecodePart": Node("", check_decode),
    # Nodes of the host, upstream of one of ours:
    "UNETLoader": loader("WanModelLoader", checkpoint.DIT, "diffusion_models", "unet_name", note=None),
    "VAELoader": loader("WanVAELoader", checkpoint.VAE, "vae", "vae_name", note=None),
    "LoraLoader": Node(loras={"lora_name": "strength_model"}),
    "LoraLoaderModelOnly": Node(loras={"lora_name": "strength_model"}),
}
