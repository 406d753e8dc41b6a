"""Weights files of any format, or models in parts: their headers first, then their tensors, memory-mapped."""

import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import ggml, marks
from .archive import read_archive
from .fused import split_fused
from .gguf import read_gguf, read_gguf_header
from .header import CheckpointError, corrupt, file_format, read_header
from .quantisation import MARKER
from .tokenizer import spiece_model

PART = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d{1,5})(?P<ending>\.\w+)$")


Tensors = dict[str, Tensor | ggml.Packed]
Read = Callable[[], Mapping[str, Tensor | ggml.Packed]]


class File(NamedTuple):
    """One file with its header read: meta tensors (markers with values), texts, a GGUF's format, a function to load."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    packed_as: str | None
    read: Read


def parts(path: str | PathLike) -> list[Path]:
    """Return the files that `path` stands for: all parts of a model in parts, such as x-00001-of-00006.safetensors.

    Raise CheckpointError if one of them is missing.
    """
    path = Path(path)
    part = PART.search(path.name)
    if part is None:
        return [path]
    paths = []
    for number in range(1, int(part["count"]) + 1):
        name = f"{path.name[: part.start()]}-{number:0{len(part['number'])}}-of-{part['count']}{part['ending']}"
        paths.append(path.with_name(name))
        if not paths[-1].is_file():
            raise CheckpointError(
                f"{path.name} is one of {part['count']} parts and {name} is missing: put it beside it."
            )
    return paths or [path]


def read(path: str | PathLike) -> Tensors:
    """Return the tensors of a weights file, or of a model in parts, by their names in the file, memory-mapped.

    Raise CheckpointError for a file that is missing or damaged or is no weights file.
    """
    return read_on(open_files(path))


def open_files(path: str | PathLike) -> dict[Path, File]:
    """Read the header of each part of the model `path`."""
    files = {part: OPENERS[file_format(part)](part) for part in parts(path)}
    return {
        part: file._replace(tensors=split_fused(file.tensors), read=_splitting(file.read))
        for part, file in files.items()
    }


def _splitting(read: Read) -> Read:
    return lambda: split_fused(read())


def merged(files: Mapping[Path, File]) -> tuple[dict[str, Tensor], dict[str, str], str | None]:
    """Return the tensors, texts and packed format in the headers of all parts."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part, file in files.items():
        _merge(tensors, file.tensors, part)
        metadata |= file.metadata
    return tensors, metadata, next((file.packed_as for file in files.values() if file.packed_as), None)


def read_on(files: Mapping[Path, File]) -> Tensors:
    """Return the tensors of parts whose headers are read."""
    tensors: Tensors = {}
    for part, file in files.items():
        _merge(tensors, file.read(), part)
    return tensors


def _merge(tensors: dict, more: Mapping, part: Path) -> None:
    twice = next((name for name in more if name in tensors), None)
    if twice is not None:
        raise corrupt(part, f"it repeats {twice[:80]!r} of another part of the model")
    tensors |= more


def _open_archive(path: Path) -> File:
    tensors = read_archive(path)
    return File({name: tensor.to("meta") for name, tensor in tensors.items()}, {}, None, lambda: tensors)


def _open_gguf(path: Path) -> File:
    header = read_gguf_header(path)
    model = spiece_model(header.fields)

    def read_tensors():
        tokenizer = {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)} if model else {}
        return read_gguf(path, header.places) | tokenizer

    tokenizer = {"spiece_model": torch.empty(0, device="meta")} if model else {}
    return File(header.tensors | tokenizer, marks.gguf_metadata(header.fields), header.format, read_tensors)


def _open_safetensors(path: Path) -> File:
    header = read_header(path)

    def read_tensors(names=tuple(header.tensors)):
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise corrupt(path, str(error)) from None

    markers = [name for name in header.tensors if name.endswith(MARKER)]  # a few bytes each
    tensors = header.tensors | (read_tensors(markers) if markers else {})
    return File(tensors, header.metadata, None, read_tensors)


OPENERS = {"torch": _open_archive, "gguf": _open_gguf, "safetensors": _open_safetensors}
