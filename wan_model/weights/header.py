"""The header of a weights file, read defensively: no size in it is trusted and no code is run.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON, data).
"""

import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

MAX_HEADER = 16 * 2**20  # bytes; the largest real checkpoints stay below 1 MB
MAX_DIMS = 8
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7: the scales of mxfp8
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NOT_WEIGHTS = (  # first bytes of other files that people save under a checkpoint's name
    (b"version https://git-lfs", "a git-lfs pointer and not the weights: download the file itself"),
    (b"<", "a web page and not weights: download the file again, logged in if its site asks for that"),
    (b"{", "a JSON text and not weights: choose the .safetensors or .pth file beside it"),
    (b"\x80", "a bare pickle, which could run code when opened: choose a .safetensors file of the same model"),
)


class CheckpointError(ValueError):
    """A weights file that cannot be loaded; the message is a sentence for the person who chose it."""


@dataclass(frozen=True)
class Header:
    """Names, shapes and dtypes of a safetensors file, as meta tensors in the file's order, and its text metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def file_format(path: Path) -> str:
    """Return the format of a file: "torch" (a PyTorch archive), "gguf" or "safetensors".

    Raise CheckpointError if the file is missing, or of another format, which the message names.
    """
    head, size = _read(path, 0, 32), path.stat().st_size
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head.startswith(b"GGUF"):
        return "gguf"
    if size < 10:
        raise CheckpointError(f"{path.name} has only {size} bytes and is no weights file: download it again.")
    length = struct.unpack("<Q", head[:8])[0]
    if head[8:9] == b"{" and length <= MAX_HEADER:
        return "safetensors"
    for start, what in NOT_WEIGHTS:
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path.name} is {what}.")
    raise CheckpointError(
        f"{path.name} is no safetensors file, GGUF file or PyTorch archive, or its start is damaged: download it again."
    )


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file (see `file_format`), checked as `parse_header` does.

    Raise CheckpointError where that does, and for a file that ends in its header.
    """
    size = path.stat().st_size
    length = struct.unpack("<Q", _read(path, 0, 8))[0]
    if 8 + length > size:
        raise truncated(path, 8 + length, size)
    return parse_header(path, _read(path, 8, length), size)


def parse_header(path: Path, text: bytes, size: int) -> Header:
    """Return the header `text`, JSON, of a safetensors file of `size` bytes. path: names it in messages, is not opened.

    Every dtype is known, every shape fills its bytes, and the tensors cover the rest of the file without gap or
    overlap. Raise CheckpointError otherwise.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise corrupt(path, "its header is not valid JSON")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(path, "the metadata in its header is not text")
    spans = {name: _span(path, name, entry) for name, entry in entries.items()}
    _check_cover(path, spans, 8 + len(text), size)
    return Header({name: _meta_tensor(path, name, entries[name], spans[name]) for name in spans}, metadata)


def check_archive(path: Path) -> None:
    """Check that a PyTorch archive stores its members uncompressed and within the file, so that it cannot expand.

    Raise CheckpointError otherwise.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        raise CheckpointError(
            f"{path.name} is truncated: the list of contents at its end is missing from its {size} bytes; download it "
            "again."
        ) from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"{path.name} is a compressed zip, not a PyTorch file: unpack it and choose what is inside."
        )
    if sum(member.file_size for member in members) > size:
        raise corrupt(path, f"its members claim more than its {size} bytes")
    if any(member.file_size > MAX_HEADER for member in members if member.filename.endswith(".pkl")):
        raise corrupt(path, f"its index has more than {MAX_HEADER} bytes")


def _read(path: Path, start: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}): choose another file.") from None


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not are_counts(span) or len(span) != 2 or span[0] > span[1]:
        raise corrupt(path, f"tensor {name[:80]!r} has no valid place in the file")
    return span[0], span[1]


def _check_cover(path: Path, spans: dict[str, tuple[int, int]], offset: int, size: int) -> None:
    end, before, data_size = 0, "the header", size - offset
    for name, span in sorted(spans.items(), key=lambda item: item[1]):
        if span[0] != end:
            raise corrupt(path, f"tensor {name[:80]!r} starts at byte {span[0]} where {before[:80]!r} ends at {end}")
        end, before = span[1], name
    if end > data_size:
        raise truncated(path, offset + end, size)
    if end < data_size:
        raise corrupt(path, f"its tensors fill {end} of {data_size} bytes")


def _meta_tensor(path: Path, name: str, entry: dict, span: tuple[int, int]) -> Tensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path.name} stores {name[:80]!r} as {str(dtype)[:20]!r}, a number format that this pack does not read: "
            "choose a float or fp8 file of the same model."
        )
    if not are_counts(shape) or len(shape) > MAX_DIMS:
        raise corrupt(path, f"tensor {name[:80]!r} has no valid shape")
    if math.prod(shape) * DTYPES[dtype].itemsize != span[1] - span[0]:
        raise corrupt(path, f"tensor {name[:80]!r} of shape {shape} does not fill its {span[1] - span[0]} bytes")
    if math.prod(max(side, 1) for side in shape) >= 2**48:  # an empty tensor may still claim huge dimensions
        raise corrupt(path, f"tensor {name[:80]!r} is empty with the sides {shape}")
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


def are_counts(value: object) -> TypeGuard[list[int]]:
    """Return whether a value of a header is a list of integers that are not negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def truncated(path: Path, wanted: int, found: int) -> CheckpointError:
    """Return the error for a file of `found` bytes whose header asks for `wanted`."""
    return CheckpointError(
        f"{path.name} is truncated: its header says {wanted} bytes, the file has {found}; download it again."
    )


def corrupt(path: Path, why: str) -> CheckpointError:
    """Return the error for an inconsistent file; `why` is a clause."""
    return CheckpointError(f"{path.name} is corrupt: {why}; download it again.")
