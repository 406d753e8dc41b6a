"""LoRAs as patches of a MODEL, with a count of what they changed."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch

from ...wan_model import checkpoint
from ...wan_model.messages import Message
from ...wan_model.weights import lora as names

SHOWN = 5  # unmatched names that a message spells out
ATTACHMENT = "wan_loras"  # of a MODEL: the names of the LoRA files on it


@dataclass(frozen=True)
class Report:
    """What a LoRA file did: tensors that changed the model, and the names of those that could not."""

    title: str
    strength: float
    matched: int
    unmatched: list[str]

    def __str__(self) -> str:
        text = f"{self.title} (strength {self.strength:g}): {self.matched} of "
        text += f"{self.matched + len(self.unmatched)} keys matched"
        if not self.unmatched:
            return text
        more = len(self.unmatched) - SHOWN
        return f"{text}, not {', '.join(self.unmatched[:SHOWN])}" + (f" and {more} more" if more > 0 else "")


def apply(model, path: str, strength: float) -> tuple[object, Report]:
    """(a clone of the MODEL `model` with the LoRA of the file `path`, what it changed); the weights stay as they are.

    Raises ValueError for a damaged file, a LoRA for another size of Wan and one that matches nothing.
    """
    title = os.path.basename(path)
    tensors = checkpoint.read(path)
    shapes = parameter_shapes(model.model.diffusion_model)
    groups, fitting, unmatched = match(title, tensors, shapes)
    lora = {place + suffix: tensor for place, group in fitting.items() for suffix, tensor in group.items()}
    keys = {place: f"diffusion_model.{place}" + (".weight" if f"{place}.weight" in shapes else "") for place in fitting}
    patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    layers = {name.rpartition(".")[0] for name in shapes}
    used = {
        place
        for place, group in fitting.items()
        if {keys[place], f"diffusion_model.{place}.bias"} & patches.keys() and (place in layers or ".diff" in group)
    }
    if not used:
        raise ValueError(_other_model(title, tensors))
    matched = sum(len(fitting[place]) for place in used)
    for place in groups.keys() - used:
        unmatched += [place + suffix for suffix in groups[place]]
    clone = model.clone()
    clone.set_attachments(ATTACHMENT, (*names_on(model), title))
    clone.add_patches({key: patch for key, patch in patches.items() if key.endswith((".weight", ".bias"))}, strength)
    for place in used - layers:
        _patch_lone(clone, keys[place], fitting[place][".diff"], strength)
    return clone, Report(title, strength, matched, sorted(unmatched))


def names_on(model) -> tuple[str, ...]:
    """Return the names of the LoRA files that `apply` put on the MODEL `model`."""
    return model.attachments.get(ATTACHMENT, ())


def match(title: str, tensors: Mapping, shapes: Mapping) -> tuple[names.Groups, names.Groups, list[str]]:
    """(tensors by the place that they change, those of places with their shape, names without a place).

    shapes: `parameter_shapes` of the model. Raises ValueError where the LoRA `title` is for another size or model.
    """
    groups, unmatched = names.group(tensors, shapes)
    fitting = {place: group for place, group in groups.items() if _fits(group, _shape(shapes, place))}
    if not groups:
        raise ValueError(_other_model(title, tensors))
    if not fitting:
        raise ValueError(_other_size(title, groups, shapes))
    return groups, fitting, unmatched


def parameter_shapes(module) -> dict[str, tuple[int, ...]]:
    """Name to logical shape of every parameter of the DiT `module`, packed ones too."""
    shapes = {}
    for name, parameter in module.named_parameters():
        shapes[name] = tuple(parameter.shape)
        layer = comfy.utils.get_attr(module, name.rpartition(".")[0]) if name.endswith(".weight") else None
        if hasattr(layer, "in_features"):
            shapes[name] = (layer.out_features, layer.in_features)
    return shapes


def _patch_lone(clone, key, difference, strength) -> None:
    """Adds to a parameter that lies in no layer, such as a modulation: the host's patcher passes those over."""
    parameter = clone.get_model_object(key)
    changed = parameter.float() + strength * difference.to(parameter.device).float()
    clone.add_object_patch(key, torch.nn.Parameter(changed.to(parameter.dtype), requires_grad=False))


def _shape(shapes, place):
    return shapes.get(f"{place}.weight", shapes.get(place))


def _fits(group, shape) -> bool:
    change = names.change_shape(group)
    return change is None or shape is None or change == (shape[0], math.prod(shape[1:]))


def _other_model(title, tensors) -> Message:
    return Message(
        "lora_of_other_model",
        "'{file}' has no key of this Wan model (its first is {first}): choose a LoRA made for Wan.",
        file=title, first=next(iter(tensors), "nothing"),
    )  # fmt: skip


def _other_size(title, groups, shapes) -> Message:
    place = next(place for place in groups if not _fits(groups[place], _shape(shapes, place)))
    change, shape = names.change_shape(groups[place]), _shape(shapes, place)
    width, own = next((side for side in change if side in names.SIZES), min(change)), shapes["head.modulation"][-1]
    if width == own:
        return Message(
            "lora_of_other_shape",
            "'{file}' changes {place} of {rows} x {columns}, this model's is {shape}: choose another LoRA.",
            file=title, place=place, rows=change[0], columns=change[1], shape=str(shape),
        )  # fmt: skip
    return Message(
        "lora_of_other_size",
        "'{file}' is for a Wan model of {width}, this one has {own}: choose a LoRA made for this size.",
        file=title, width=names.size_name(width), own=names.size_name(own),
    )  # fmt: skip
