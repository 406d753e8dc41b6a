"""Facts about a model file and the files that go with it, from its header alone."""

import os

from ...wan_model import checkpoint
from ...wan_model.messages import Message
from ...wan_model.variants import FAMILIES, VARIANTS
from ...wan_model.weights.files import PART
from ...wan_model.weights.layouts import LORA
from ...wan_model.weights.lora import SIZES
from .. import files

FOLDERS = ("diffusion_models", "vae", "text_encoders", "clip_vision")
PLACES = {  # kinds of `checkpoint` -> the model folder that they lie in, and the node that loads them
    checkpoint.DIT: ("diffusion_models", "Wan Model Loader"),
    checkpoint.VACE_MODULE: ("diffusion_models", "Wan Model Loader (vace_name)"),
    checkpoint.VAE: ("vae", "Wan VAE Loader"),
    checkpoint.TEXT_ENCODER: ("text_encoders", "Wan Text Encoder Loader"),
    checkpoint.CLIP_VISION: ("clip_vision", "Wan CLIP Vision Loader"),
}
LORAS = ("loras", "Wan LoRA Loader")
GIB = 2**30


def describe(folder: str, name: str) -> dict[str, object]:
    """Return the content of the file `name` in the model folder `folder`; no weight is read.

    Always `file`, `holds` and `bytes` (of all its parts, which is what its weights take in memory as they are); for a
    part of Wan also `variant`, `layout`, `precision`, `parameters` and `notes`, sentences on what of the file is left
    out; for a DiT and a VAE `channels` of their latents; for a DiT `size`, `vae`, `text_encoder` and `clip_vision`, the
    files that go with it; for a VAE, of the clips of its models, `frame_rate` and `side_step`, the pixels that sides
    are multiples of. Raise ValueError for another folder, a name that is not in it and a file that is damaged.
    """
    if folder not in FOLDERS:
        raise ValueError(f"'{folder[:80]}' is not a folder of Wan models: choose one of {', '.join(FOLDERS)}.")
    path = files.path(folder, name)
    found = checkpoint.inspect(path)
    info = {"file": name, "holds": found.holds, "bytes": sum(os.path.getsize(part) for part in checkpoint.parts(path))}
    if found.variant is None:
        return info
    weights = {name: tensor for name, tensor in found.tensors.items() if tensor.is_floating_point()}
    by_type = {}
    for tensor in weights.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.numel()
    forms = ", ".join(sorted({str(form.get("format")) for form in found.layers.values()}))
    info |= {
        "variant": found.variant,
        "layout": found.layout,
        "precision": forms or found.quantisation or str(max(by_type, key=by_type.get)).removeprefix("torch."),
        "parameters": sum(by_type.values()),
        "notes": list(found.notes),
    }
    if found.variant in checkpoint.DIT:
        config = found.config
        info |= {
            "channels": config.out_dim,
            "size": SIZES.get(config.dim, f"width {config.dim}"),
            "vae": "{0.vae_file} ({0.channels} channels)".format(VARIANTS[found.variant].family),
            "text_encoder": "umt5_xxl",
            "clip_vision": "clip_vision_h" if config.part("clip") else None,
        }
    if found.variant in checkpoint.VAE:
        config = found.config
        info |= {
            "channels": config.latent_channels,
            "side_step": FAMILIES[config.latent_channels].side_step,
            "frame_rate": FAMILIES[config.latent_channels].frame_rate,
        }
    return info


def place(name: str, header: bytes, size: int) -> Message | str:
    """Return a sentence on what the safetensors file `name` holds, and on the folder and node that it belongs to.

    header: its JSON. size: of the file, in bytes. Of a damaged file, and one that lacks weights, it says that.
    """
    if PART.search(name):
        return Message(
            "one_part",
            "{file} is a part of a model: put all parts into one folder of models, press R and choose the first.",
            file=name,
        )
    try:
        found = checkpoint.inspect_header(name, header, size)
    except checkpoint.CheckpointError as error:
        return str(error)
    home = next((home for kinds, home in PLACES.items() if found.variant in kinds), None)
    if found.holds == LORA[1]:
        home = LORAS
    if home is None:
        return Message(
            "foreign_file", "{file} holds {holds}: no node of this pack loads it.", file=name, holds=found.holds
        )
    return Message(
        "file_place",
        "{file} holds {holds}: put it into models/{folder}, press R and choose it in {node}.",
        file=name, holds=found.holds, folder=home[0], node=home[1],
    )  # fmt: skip


def sentence(info: dict[str, object]) -> str:
    """Return the result of `describe` as sentences."""
    lines = [f"{info['file']} holds {info['holds']}, {info['bytes'] / GIB:.2f} GiB."]
    if "variant" in info:
        lines.append(f"{info['parameters'] / 1e9:.2f}B weights in {info['precision']}, named as {info['layout']}.")
    if "size" in info:
        lines.append(
            f"Size {info['size']}. Goes with {info['vae']}, {info['text_encoder']} and "
            f"{info['clip_vision'] or 'no CLIP vision'}."
        )
    lines += info.get("notes", [])
    return "\n".join(lines)
