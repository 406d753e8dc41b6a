"""Weights of the encoders that run on the host's own classes: their file read and checked."""

import os
import re

import comfy.utils


def read(path: str) -> tuple[dict, dict]:
    """(state dict, metadata) of the file `path`, through the host's reader, which runs no code of a pickle."""
    state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    return state, metadata or {}


def count_layers(state: dict, prefix: str) -> int:
    """How many different numbers follow `prefix` in the names of `state`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, state) if match})


def check_shapes(state: dict, shapes: dict[str, tuple[int, ...]], path: str, advice: str) -> None:
    """Raises ValueError where `state`, read from `path`, lacks a name of `shapes` or has it with another shape.

    A quantised weight may be packed: its shape is the host's business.
    """
    title = os.path.basename(path)
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"'{title}' lacks the weight {name}: download the file again, or {advice}.")
        packed = name.removesuffix("weight") + "comfy_quant" in state
        if tuple(state[name].shape) != shape and not packed:
            raise ValueError(
                f"'{title}' has the weight {name} of shape {tuple(state[name].shape)} where the rest of the file wants "
                f"{shape}: {advice}."
            )
