"""The tensors of a LoRA file by the parameter of the DiT that they change, whichever trainer named them.

Styles: ComfyUI (`diffusion_model.*`), kohya (`lora_unet_*`), diffusers and peft (`transformer.*`, `base_model.model.*`,
with diffusers' module names), DiffSynth (`pipe.dit.*` or bare), LyCORIS (`lycoris_*`), full differences.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layouts import DIT_DIFFUSERS, inverse, rename
from .lora_forms import FORMS, Form, scale

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "unet."),
    "model.",
)
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")  # then a path with _ in place of dots
SUFFIX = re.compile(
    r"(\.lora[_.]|_lora\.|\.(lokr|hada)_|\.[ab][12]\.weight$|\.(alpha|dora_scale|diff|diff_b|diff_m|w_norm|b_norm|set_weight"
    r"|reshape_weight|oft_blocks|rescale)$)"
)
SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}  # width of the released models -> common name

ONE = torch.ones(())

Groups = dict[str, dict[str, Tensor]]  # module path (or name of a lone parameter) -> suffix -> tensor


@dataclass(frozen=True)
class Change:
    """One change of one parameter.

    kind: "adapter" (factors, which the host's loader reads), "diff" (is added) or "set" (replaces the parameter).
    tensors: by suffix. names: of these tensors in the file.
    """

    place: str
    parameter: str
    kind: str
    tensors: Mapping[str, Tensor]
    names: tuple[str, ...]


def split(lora: Iterable[str], parameters: Iterable[str]) -> dict[str, tuple[str, str] | None]:
    """Map each name in a LoRA file to (place, suffix), or None where it fits no place.

    parameters: official names of the model's parameters. A place is one of them without `.weight`. Suffixes are those
    that the host knows.
    """
    places = _places(parameters)
    return {name: _split(name, places) for name in lora}


def group(lora: Mapping[str, Tensor], parameters: Iterable[str]) -> tuple[Groups, list[str]]:
    """Return (tensors by the place that they change, names that fit no place); arguments as of `split`."""
    groups: Groups = {}
    unmatched: list[str] = []
    for name, where in split(lora, parameters).items():
        if where is None:
            unmatched.append(name)
        else:
            groups.setdefault(where[0], {})[where[1]] = lora[name]
    return groups, unmatched


def changes(lora: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Change], list[str]]:
    """Return (changes that a LoRA file makes to a model with parameters of `shapes`, names without effect on it)."""
    where = {name: found for name, found in split(lora, shapes).items() if found is not None}
    names, made, used = {found: name for name, found in where.items()}, [], set()
    for place, tensors in group(lora, shapes)[0].items():
        for form in FORMS:
            change = _change(form, place, tensors, names, shapes)
            if change is not None:
                made.append(change)
                used |= set(change.names)
    return made, [name for name in lora if name not in used]


def _change(form: Form, place: str, tensors, names, shapes) -> Change | None:
    """Return the change of one place in one form; None if its tensors are of another form or do not fit."""
    own = {suffix: tensor for suffix, tensor in tensors.items() if form.suffixes.fullmatch(suffix)}
    parameter = f"{place}.bias" if form.of_bias else place if place in shapes else f"{place}.weight"
    if not own or parameter not in shapes or (form.kind == "adapter" and parameter == place):
        return None
    if any(tensor.ndim < form.dims for tensor in own.values()) or tensors.get(".alpha", ONE).numel() != 1:
        return None
    if form.is_factor:
        own = {suffix: tensor * scale(tensors) for suffix, tensor in own.items()}
    own |= {suffix: tensors[suffix] for suffix in form.options if suffix in tensors}
    if not form.fits(own, shapes[parameter]):
        return None
    return Change(place, parameter, form.kind, own, tuple(names[place, suffix] for suffix in own))


def size_name(width: int) -> str:
    """Return a model's width in words."""
    return f"width {width} ({SIZES[width]})" if width in SIZES else f"width {width}"


def _places(parameters: Iterable[str]) -> dict[str, str]:
    """Return a map from the name of a place in any style to the place.

    One table serves both: of the norms that diffusers names differently, only one has parameters.
    """
    official = {name.removesuffix(".weight") for name in parameters}
    dotted = {name: name for name in official}
    dotted |= {theirs: ours for ours, theirs in rename(sorted(official), inverse(DIT_DIFFUSERS)).items()}
    flat = {name.replace(".", "_"): place for name, place in dotted.items()}
    return dotted | {prefix + name: place for prefix in FLAT_PREFIXES for name, place in flat.items()}


def _split(name: str, places: Mapping[str, str]) -> tuple[str, str] | None:
    match = SUFFIX.search(name)
    if match is None:
        return None
    path, suffix = name[: match.start()], name[match.start() :].replace(".default.", ".")
    while (prefix := next((p for p in PREFIXES if path.startswith(p)), None)) is not None:
        path = path.removeprefix(prefix)
    if suffix == ".diff_m":  # LightX2V's difference of a block's modulation
        path, suffix = f"{path}.modulation", ".diff"
    if "lora_magnitude_vector" in suffix:  # peft's DoRA
        suffix = ".dora_scale"
    return None if path not in places else (places[path], suffix)
