"""LoRAs as patches of a MODEL, with a report of what they changed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch

from ...wan_model import checkpoint
from ...wan_model.messages import Message
from ...wan_model.weights import lora as names
from ...wan_model.weights.lora_forms import change_shape

SHOWN = 5  # unmatched names that a message spells out
ATTACHMENT = "wan_loras"  # of a MODEL: the names of its LoRA files


@dataclass(frozen=True)
class Report:
    """The effect of a LoRA file: tensors that changed the model, and names of those that did not match."""

    title: str
    strength: float
    matched: int
    unmatched: list[str]

    def counts(self) -> dict[str, str | int]:
        """Return the name of the file and how many of its keys matched, as plain values for JSON."""
        return {"name": self.title, "matched": self.matched, "keys": self.matched + len(self.unmatched)}

    def __str__(self) -> str:
        text = f"{self.title} (strength {self.strength:g}): {self.matched} of "
        text += f"{self.matched + len(self.unmatched)} keys matched"
        if not self.unmatched:
            return text
        more = len(self.unmatched) - SHOWN
        return f"{text}, not {', '.join(self.unmatched[:SHOWN])}" + (f" and {more} more" if more > 0 else "")


def apply(model, path: str, strength: float) -> tuple[object, Report]:
    """Return (a clone of the MODEL `model` with the LoRA of the file `path`, a report); weights are not changed.

    Raise ValueError for a damaged file, a LoRA for another size of Wan and one that matches nothing.
    """
    title = os.path.basename(path)
    tensors = checkpoint.read(path)
    shapes = parameter_shapes(model.model.diffusion_model)
    changes, unmatched = match(title, tensors, shapes)
    clone, layers = model.clone(), {name.rpartition(".")[0] for name in shapes}
    clone.set_attachments(ATTACHMENT, (*names_on(model), title))
    for change in changes:
        key = f"diffusion_model.{change.parameter}"
        if change.parameter == change.place and change.place not in layers:
            _patch_lone(clone, key, change, strength)
        else:
            clone.add_patches({key: _patch(change, key, shapes[change.parameter])}, strength)
    matched = {name for change in changes for name in change.names}
    return clone, Report(title, strength, len(matched), sorted(unmatched))


def names_on(model) -> tuple[str, ...]:
    """Return the names of the LoRA files that `apply` put on the MODEL `model`."""
    return model.attachments.get(ATTACHMENT, ())


def match(title: str, tensors: Mapping, shapes: Mapping) -> tuple[list[names.Change], list[str]]:
    """Return `names.changes` of the LoRA file `title`.

    shapes: `parameter_shapes` of the model. Raise ValueError if the LoRA is for another size or model.
    """
    changes, unmatched = names.changes(tensors, shapes)
    if not changes:
        groups, _ = names.group(tensors, shapes)
        raise ValueError(_other_size(title, groups, shapes) or _other_model(title, tensors))
    return changes, unmatched


def _patch(change: names.Change, key: str, shape: tuple[int, ...]):
    """Return the host's patch for a change of the parameter `key`."""
    if change.kind != "adapter":
        (tensor,) = change.tensors.values()
        return change.kind, (tensor.reshape(shape),)
    tensors = dict(change.tensors)
    if ".dora_scale" in tensors and tensors[".dora_scale"].ndim == 1:
        tensors[".dora_scale"] = tensors[".dora_scale"].reshape(-1, *[1] * (len(shape) - 1))  # (rows, 1, ...)
    if ".oft_blocks" in tensors:
        tensors.setdefault(".alpha", torch.zeros(()))  # no bound on the rotation; the host needs the number
    named = {change.place + suffix: tensor for suffix, tensor in tensors.items()}
    return comfy.lora.load_lora(named, {change.place: key}, log_missing=False)[key]


def parameter_shapes(module) -> dict[str, tuple[int, ...]]:
    """Return the logical shape of every parameter of the DiT `module` by name, packed ones included."""
    shapes = {}
    for name, parameter in module.named_parameters():
        shapes[name] = tuple(parameter.shape)
        layer = comfy.utils.get_attr(module, name.rpartition(".")[0]) if name.endswith(".weight") else None
        if hasattr(layer, "in_features"):
            shapes[name] = (layer.out_features, layer.in_features)
    return shapes


def _patch_lone(clone, key: str, change: names.Change, strength: float) -> None:
    """Change a parameter outside any layer, such as a modulation, which the host's patcher skips."""
    parameter = clone.get_model_object(key)
    (tensor,) = change.tensors.values()
    tensor = tensor.reshape(parameter.shape).to(parameter.device).float()
    changed = tensor if change.kind == "set" else parameter.float() + strength * tensor
    clone.add_object_patch(key, torch.nn.Parameter(changed.to(parameter.dtype), requires_grad=False))


def _shape(shapes, place):
    return shapes.get(f"{place}.weight", shapes.get(place))


def _other_model(title, tensors) -> Message:
    return Message(
        "lora_of_other_model",
        "'{file}' has no key of this Wan model (its first is {first}): choose a LoRA made for Wan.",
        file=title, first=next(iter(tensors), "nothing"),
    )  # fmt: skip


def _other_size(title, groups, shapes) -> Message | None:
    own = shapes["head.modulation"][-1]
    found = ((place, change_shape(group), _shape(shapes, place)) for place, group in groups.items())
    place, change, shape = next((row for row in found if row[1] and row[2]), (None, None, None))
    if change is None:
        return None
    width = next((side for side in change if side in names.SIZES), min(change))
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
