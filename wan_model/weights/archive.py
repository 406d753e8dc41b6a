"""PyTorch archives (.pth, .pt, .bin): the tensors that they hold, read without running code.

Trainers save dictionaries in dictionaries, such as {"generator": {...}, "optimizer": {...}, "step": 3}; a tensor's name
here is the path to it, joined by dots.
"""

import argparse
import contextlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .header import CheckpointError, check_archive

# What torch's weights-only unpickler raises for a file that is damaged or asks for anything but tensors.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(AssertionError, ArithmeticError, ImportError, OSError, struct.error),
)
ALLOWED = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)  # torch 2.4 has none
MAX_DEPTH = 8  # nested dictionaries; trainers nest three


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch archive, memory-mapped.

    Its pickle cannot run code. Besides tensors only argparse namespaces are allowed; they are dropped.
    Raise CheckpointError for a damaged archive, for one with other objects, and for one without named tensors.
    """
    check_archive(path)
    if path.suffix.lower() == ".safetensors":  # newer versions of torch.load go by this ending
        raise CheckpointError(f"{path.name} is a PyTorch archive under another name: rename it to {path.stem}.pth.")
    try:
        with ALLOWED([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNPICKLING_ERRORS:
        raise CheckpointError(
            f"{path.name} is damaged or holds more than tensors, which could run code when opened: choose a "
            ".safetensors file of the same model."
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not named weights: choose another file.")
    tensors, size = dict(_walk(content)), path.stat().st_size
    if any(tensor.numel() * tensor.element_size() > size for tensor in tensors.values()):
        raise CheckpointError(f"{path.name} is corrupt: a tensor claims more than its {size} bytes; download it again.")
    return tensors


def _walk(content: Mapping, path: str = "", depth: int = 0):
    """Yield (path, tensor) for each tensor in nested dictionaries."""
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield path + name, value
        elif isinstance(value, Mapping) and depth < MAX_DEPTH:
            yield from _walk(value, f"{path}{name}.", depth + 1)
