"""The header of a GGUF file, read defensively: no size in it is trusted beyond the bytes that are there.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (magic, version, counts, key-value pairs, tensor
infos, aligned data). Versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import ggml
from .header import MAX_DIMS, CheckpointError, are_counts, corrupt, truncated

MAX_ITEMS = 2**16  # tensors, or key-value pairs; the largest real files have some thousands
MAX_VALUES = 2**21  # elements of all arrays; umT5's tokenizer has three of 256,384
MAX_HEADER = 32 * 2**20  # bytes; umT5's tokenizer takes 8 MB
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its shape in torch's order, ggml_type, first byte in the file and number of bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class GGUFHeader:
    """Tensors by name, and the key-value pairs: numbers, str, bytes (an array of them) or lists."""

    places: Mapping[str, Place]
    fields: Mapping[str, object]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Meta tensors of the logical shapes; a packed weight is one of bfloat16."""
        return {
            name: torch.empty(place.shape, dtype=ggml.PLAIN.get(place.kind, torch.bfloat16), device="meta")
            for name, place in self.places.items()
        }

    @property
    def format(self) -> str | None:
        """The name of the packed format that holds most of the values, or None where nothing is packed."""
        values: dict[int, int] = {}
        for place in self.places.values():
            if place.kind in ggml.FORMATS:
                values[place.kind] = values.get(place.kind, 0) + math.prod(place.shape)
        return ggml.FORMATS[max(values, key=values.__getitem__)].name if values else None


def read_gguf_header(path: Path) -> GGUFHeader:
    """Return the checked header of the GGUF file `path`.

    Every format is known, every shape fills whole blocks, and no tensor overlaps another or ends outside the file.
    Raise CheckpointError otherwise.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(path, content)
        version = reader.number("I", 4)
        if version not in (2, 3):
            raise CheckpointError(f"{path.name} is a GGUF file of version {version}: choose one of version 2 or 3.")
        tensors, pairs = reader.count("tensors", MAX_ITEMS), reader.count("fields", MAX_ITEMS)
        fields = {reader.text(): reader.value(reader.number("I")) for _ in range(pairs)}
        infos = {reader.text(): reader.info() for _ in range(tensors)}
        if len(infos) != tensors:
            raise corrupt(path, "two of its tensors have the same name")
        end = reader.position
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise corrupt(path, f"its data is aligned to {str(alignment)[:20]} bytes")
    start = -(-end // alignment) * alignment
    places = {name: _place(path, name, info, start, alignment) for name, info in infos.items()}
    _check_places(path, places, size)
    return GGUFHeader(_original_shapes(path, places, fields), fields)


class _Reader:
    """Walks over the bytes of a header; every step is checked against what is left."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.position = path, content, 4
        self.values_left = MAX_VALUES

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > MAX_HEADER:
            raise corrupt(self.path, f"its header has more than {MAX_HEADER} bytes")
        if self.position > len(self.content):
            raise truncated(self.path, self.position, len(self.content))
        return self.content[start : self.position]

    def number(self, code: str, position: int | None = None):
        if position is not None:
            self.position = position
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, limit: int) -> int:
        count = self.number("Q")
        if count > limit:
            raise corrupt(self.path, f"its header claims {count} {what}")
        return count

    def text(self) -> str:
        try:
            return self.take(self.count("bytes in a string", MAX_HEADER)).decode("utf-8")
        except UnicodeDecodeError:
            raise corrupt(self.path, "a text in its header is not UTF-8") from None

    def value(self, kind: int) -> object:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise corrupt(self.path, f"its header has a value of the unknown type {kind}")
        inner, count = self.number("I"), self.count("values in arrays", self.values_left)
        self.values_left -= count
        if inner in SCALARS:
            code = f"<{count}{SCALARS[inner]}"
            data = self.take(struct.calcsize(code))
            return data if inner in (0, 1) else list(struct.unpack(code, data))
        if inner != STRING:
            raise corrupt(self.path, f"its header has an array of the unknown type {inner}")
        return [self.text() for _ in range(count)]

    def info(self) -> tuple[tuple[int, ...], int, int]:
        dims = self.number("I")
        if dims > MAX_DIMS:
            raise corrupt(self.path, f"a tensor in its header has {dims} dimensions")
        sides = [self.number("Q") for _ in range(dims)]
        return tuple(reversed(sides)), self.number("I"), self.number("Q")  # ggml lists the innermost dimension first


def _place(path: Path, name: str, info: tuple, start: int, alignment: int) -> Place:
    shape, kind, offset = info
    count = math.prod(shape)
    if 0 in shape or count >= 2**48:
        raise corrupt(path, f"tensor {name[:80]!r} has the shape {str(list(shape))[:80]}")
    if offset % alignment:
        raise corrupt(path, f"tensor {name[:80]!r} starts at byte {offset}, no multiple of {alignment}")
    if kind in ggml.PLAIN:
        return Place(shape, kind, start + offset, count * ggml.PLAIN[kind].itemsize)
    if kind not in ggml.FORMATS:
        known = ", ".join(layout.name for layout in ggml.FORMATS.values())
        raise CheckpointError(
            f"{path.name} stores {name[:80]!r} in GGUF's number format {kind}, which this pack does not read: choose a "
            f"file in one of {known}, F16, BF16 or F32."
        )
    layout = ggml.FORMATS[kind]
    if not shape or shape[-1] % layout.values:
        raise corrupt(path, f"tensor {name[:80]!r} of shape {shape} does not fill blocks of {layout.values} values")
    return Place(shape, kind, start + offset, count // layout.values * layout.size)


def _check_places(path: Path, places: Mapping[str, Place], size: int) -> None:
    end, before = 0, "the header"
    for name, place in sorted(places.items(), key=lambda item: item[1].start):
        if place.start < end:
            raise corrupt(
                path, f"tensor {name[:80]!r} starts at byte {place.start} where {before[:80]!r} ends at {end}"
            )
        end, before = place.start + place.size, name
    if end > size:
        raise truncated(path, end, size)


def _original_shapes(path: Path, places: dict[str, Place], fields: Mapping[str, object]) -> dict[str, Place]:
    """GGUF stores at most four dimensions; restore 5-D convolution weights from `comfy.gguf.orig_shape.*`."""
    restored = {}
    for name, place in places.items():
        shape = fields.get(f"comfy.gguf.orig_shape.{name}")
        if shape is not None:
            if not are_counts(shape) or not 0 < len(shape) <= MAX_DIMS or math.prod(shape) != math.prod(place.shape):
                raise corrupt(path, f"tensor {name[:80]!r} of shape {place.shape} is declared as {str(shape)[:80]}")
            place = Place(tuple(shape), place.kind, place.start, place.size)
        restored[name] = place
    return restored


def read_gguf(path: Path, places: Mapping[str, Place]) -> dict[str, Tensor | ggml.Packed]:
    """Return the tensors at `places` of the file `path`, memory-mapped.

    A packed 2-D weight stays packed. Others (convolutions, norms) are small and unpacked to float32.
    """
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    tensors: dict[str, Tensor | ggml.Packed] = {}
    for name, place in places.items():
        data = content[place.start : place.start + place.size]
        if place.kind in ggml.PLAIN:
            tensors[name] = data.view(ggml.PLAIN[place.kind]).reshape(place.shape)
        elif len(place.shape) == 2:
            tensors[name] = ggml.Packed(data.reshape(place.shape[0], -1), place.kind)  # (rows, bytes of a row)
        else:
            tensors[name] = ggml.unpack(ggml.Packed(data[None], place.kind), torch.float32).reshape(place.shape)
    return tensors
