"""Weights of the encoders that run on the host's own classes: their file read and their shapes checked."""

import os
import re

import comfy.utils

from ...wan_model import checkpoint
from ...wan_model.weights import quantisation


def read(path: str, kinds: tuple[str, ...], node: str) -> tuple[dict, dict]:
    """Return (state dict, metadata) of the file `path`, with names as `checkpoint.Inspection` gives them.

    A safetensors file is read by the host, which may stream the weights from it; others are memory-mapped.
    node: the loader that a message names. Raise ValueError for a damaged file and for one that holds none of `kinds`.
    """
    found = checkpoint.expect(path, kinds, node)
    if not path.lower().endswith((".safetensors", ".sft")):
        return checkpoint.load(path)[0], {}
    state, metadata = {}, {}
    for part in checkpoint.parts(path):
        tensors, more = comfy.utils.load_torch_file(str(part), return_metadata=True)
        state, metadata = state | tensors, metadata | (more or {})
    return {ours: state[name] for name, ours in found.names.items()}, metadata


def count_layers(state: dict, prefix: str) -> int:
    """Return how many different numbers follow `prefix` in the names of `state`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, state) if match})


def shape(state: dict, name: str, path: str, dims: int) -> tuple[int, ...]:
    """Return the shape of the weight `name`, from which sizes are read.

    Raise ValueError if `state`, read from `path`, lacks it, or if it does not have `dims` dimensions.
    """
    found = tuple(state[name].shape) if name in state else ()
    if len(found) != dims or 0 in found:
        raise ValueError(f"'{os.path.basename(path)}' has no usable weight {name}: download the file again.")
    return found


def check_shapes(state: dict, shapes: dict[str, tuple[int, ...]], path: str) -> None:
    """Raise ValueError if `state`, read from `path`, lacks a name of `shapes` or has it with another shape.

    The shape of a quantised weight, which may be packed, is left to the host.
    """
    title = os.path.basename(path)
    for name, wanted in shapes.items():
        if name not in state:
            raise ValueError(f"'{title}' lacks the weight {name}: download the file again.")
        layer = name.removesuffix(".weight")
        packed = layer + quantisation.MARKER in state or layer + quantisation.PACKED_MARKER in state
        if tuple(state[name].shape) != wanted and not packed:
            raise ValueError(
                f"'{title}' has the weight {name} of shape {tuple(state[name].shape)} where the rest of the file wants "
                f"{wanted}: download the file again."
            )
