"""A MODEL in words: file, options and patches, from which another process makes the same."""

import os
from dataclasses import dataclass

import comfy.weight_adapter
import torch

from .. import files
from ..model import inner, loading
from . import wire

FOLDER = "diffusion_models"
NETWORK = "diffusion_model."
ADAPTERS = {kind.__name__: kind for kind in comfy.weight_adapter.adapters}


@dataclass(frozen=True)
class Source:
    """A model's file and the options of its loader. size, vace_size: bytes of the files, to tell other ones apart."""

    name: str
    size: int
    dtype: str
    vace: str | None
    vace_size: int
    attention: str
    causal: bool | None

    @classmethod
    def of(cls, model) -> "Source":
        """Return the source of the host's model `model`; raise ValueError for one that cannot travel."""
        made_by = getattr(model, "loaded_with", None)
        if made_by is None:
            raise ValueError(
                "Wan Parallel can share a model of WanModelLoader alone, and this one is from another loader: load the "
                "file with WanModelLoader."
            )
        if made_by["compile_blocks"]:
            raise ValueError("Wan Parallel cannot share compiled blocks: switch off compile_blocks in WanModelLoader.")
        names, sizes = [], []
        for path in (made_by["path"], made_by["vace_path"]):
            names.append(path and files.name(FOLDER, path))
            sizes.append(os.path.getsize(path) if path else 0)
        return cls(names[0], sizes[0], made_by["dtype"], names[1], sizes[1], made_by["attention"], made_by["causal"])

    def load(self):
        """Return a MODEL of this source; raise ValueError where the files are others."""
        path, vace = located(FOLDER, self.name, self.size), self.vace and located(FOLDER, self.vace, self.vace_size)
        return loading.load(path, self.dtype, vace, self.attention, causal=self.causal)


def located(folder: str, name: str, size: int) -> str:
    """Return the path of a file in the host's `folder`; raise ValueError where it has not so many bytes."""
    path = files.path(folder, name)
    if os.path.getsize(path) != size:
        raise ValueError(f"{path} has {os.path.getsize(path)} bytes here and {size} in ComfyUI: copy the file.")
    return path


def patches(patcher) -> dict:
    """Return the patches of the MODEL `patcher` as values of `wire`; raise ValueError for one that cannot travel."""
    _refuse(patcher)
    weights = {key: [_entry(key, *entry) for entry in entries] for key, entries in patcher.patches.items()}
    lone = {key: value.data for key, value in patcher.object_patches.items() if key.startswith(NETWORK)}
    return {"weights": weights, "lone": lone}


def apply(patcher, described: dict):
    """Return a clone of the MODEL `patcher` with these patches, and how many weights they change."""
    clone, groups = patcher.clone(), {}
    for key, entries in described["weights"].items():
        for number, (strength, value, strength_model, offset) in enumerate(entries):
            place = key if offset is None else (key, tuple(offset))
            groups.setdefault((number, strength, strength_model), {})[place] = _patch(value)
    for (_, strength, strength_model), group in sorted(groups.items(), key=lambda item: item[0]):
        if len(clone.add_patches(group, strength, strength_model)) < len(group):
            raise ValueError("Some patches fit no weight of this model here: run one version of ComfyUI everywhere.")
    for key, value in described["lone"].items():
        clone.add_object_patch(key, torch.nn.Parameter(value.to(clone.get_model_object(key).device), False))
    return clone, len(described["weights"]) + len(described["lone"])


def check_options(network, options: dict) -> None:
    """Raise ValueError for functions of other nodes among the transformer_options: they cannot travel."""
    for kind in ("patches", "patches_replace"):
        for name, given in options.get(kind, {}).items():
            if given:
                raise ValueError(_refused(f"works inside the network ({name})"))
    if any(map(inner.is_altered, network.blocks)) or any(inner.is_own(network, name) for name in inner.STEPS):
        raise ValueError(_refused("replaces parts of the network's blocks"))


def _refuse(patcher) -> None:
    for key, value in patcher.object_patches.items():
        if key.startswith(NETWORK) and not isinstance(value, torch.nn.Parameter):
            raise ValueError(_refused(f"replaces {key.removeprefix(NETWORK)}"))
    for attribute, what in (
        ("weight_wrapper_patches", "computes weights anew for each use"),
        ("injections", "injects modules into the model"),
        ("hook_patches", "changes weights during a run (hooks)"),
    ):
        if getattr(patcher, attribute, None):
            raise ValueError(_refused(what))


def _refused(what: str) -> str:
    return (
        f"A node before Wan Parallel {what}, which cannot be sent to other devices: take that node off, or connect the "
        "model without Wan Parallel."
    )


def _entry(key: str, strength, value, strength_model, offset, function) -> list:
    """Return one patch of the host's as a value of `wire`."""
    if function is not None:
        raise ValueError(_refused(f"changes {key} by a function"))
    if isinstance(value, comfy.weight_adapter.WeightAdapterBase):
        name = type(value).__name__
        if name not in ADAPTERS:
            raise ValueError(_refused(f"changes {key} by {name}"))
        value = {"adapter": name, "keys": set(value.loaded_keys), "weights": value.weights}
    try:
        wire.pack(value, [])
    except TypeError as error:
        raise ValueError(_refused(f"changes {key} by {error}")) from error
    return [float(strength), value, float(strength_model), offset]


def _patch(value):
    """Return the host's patch from what `_entry` made of it."""
    if isinstance(value, dict):
        return ADAPTERS[value["adapter"]](value["keys"], value["weights"])
    return value
