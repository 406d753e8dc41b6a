"""The tensors of a LoRA file by the parameter of the DiT that they change, whichever trainer named them.

Styles: ComfyUI (`diffusion_model.*`), kohya (`lora_unet_*`), diffusers and peft (`transformer.*`, `base_model.model.*`,
with diffusers' module names), DiffSynth (`pipe.dit.*` or bare), LyCORIS (`lycoris_*`), full differences.
"""

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .layouts import DIT_DIFFUSERS, inverse, rename

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "unet."),
    "model.",
)
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")  # then a path with _ in place of dots
SUFFIX = re.compile(
    r"(\.lora[_.]|_lora\.|\.(lokr|hada)_|\.(alpha|dora_scale|diff|diff_b|diff_m|w_norm|b_norm|set_weight|reshape_weight)$)"
)
SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}  # width of the released models -> what people call them

Groups = dict[str, dict[str, Tensor]]  # module path (or name of a lone parameter) -> suffix -> tensor


def group(lora: Mapping[str, Tensor], parameters: Iterable[str]) -> tuple[Groups, list[str]]:
    """(tensors by the place that they change, names that fit no place).

    parameters: official names of the model's parameters. A place is one of them without `.weight`. Suffixes are those
    that the host knows.
    """
    places = _places(parameters)
    groups, unmatched = {}, []
    for name, tensor in lora.items():
        place, suffix = _split(name, places)
        if place is None:
            unmatched.append(name)
            continue
        if "lora_magnitude_vector" in suffix:  # peft's DoRA
            suffix, tensor = ".dora_scale", tensor.unsqueeze(-1)  # (out,) -> (out, 1)
        groups.setdefault(place, {})[suffix] = tensor
    return groups, unmatched


def change_shape(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(rows, other elements) of the weight that the tensors of one place change; None where they do not tell."""

    def find(*marks: str) -> tuple[int, ...] | None:
        return next((tuple(t.shape) for s, t in tensors.items() if any(mark in s for mark in marks)), None)

    up, down = find("lora_B", "lora_up", "lora.up"), find("lora_A", "lora_down", "lora.down")
    if up and down:
        return up[0], math.prod(down[1:])
    if ".diff" in tensors:
        shape = tensors[".diff"].shape
        return shape[0], math.prod(shape[1:])
    if up := find("hada_w1_a"):
        return up[0], find("hada_w1_b")[-1] if find("hada_w1_b") else 0
    factors = []
    for factor in ("lokr_w1", "lokr_w2"):
        whole, rows, columns = (tensors.get(f".{factor}{part}") for part in ("", "_a", "_b"))
        if whole is None and (rows is None or columns is None):
            return None
        factors.append(whole.shape if whole is not None else (rows.shape[0], math.prod(columns.shape[1:])))
    return factors[0][0] * factors[1][0], math.prod(factors[0][1:]) * math.prod(factors[1][1:])


def size_name(width: int) -> str:
    """A model's width in words."""
    return f"width {width} ({SIZES[width]})" if width in SIZES else f"width {width}"


def _places(parameters: Iterable[str]) -> dict[str, str]:
    """Every name that a place has in one of the styles -> the place.

    Both styles fit in one table: of the norms that diffusers calls otherwise, only one has parameters.
    """
    official = {name.removesuffix(".weight") for name in parameters}
    dotted = {name: name for name in official}
    dotted |= {theirs: ours for ours, theirs in rename(sorted(official), inverse(DIT_DIFFUSERS)).items()}
    flat = {name.replace(".", "_"): place for name, place in dotted.items()}
    return dotted | {prefix + name: place for prefix in FLAT_PREFIXES for name, place in flat.items()}


def _split(name: str, places: Mapping[str, str]) -> tuple[str | None, str]:
    match = SUFFIX.search(name)
    if match is None:
        return None, ""
    path, suffix = name[: match.start()], name[match.start() :].replace(".default.", ".")
    while (prefix := next((p for p in PREFIXES if path.startswith(p)), None)) is not None:
        path = path.removeprefix(prefix)
    if suffix == ".diff_m":  # LightX2V's difference of a block's modulation
        path, suffix = f"{path}.modulation", ".diff"
    return places.get(path), suffix
