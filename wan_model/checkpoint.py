"""Weights files: recognised by names and shapes alone, then loaded memory-mapped, in official names."""

import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .dit.model import dit_config
from .messages import Message
from .vae import vae_config
from .weights import ggml
from .weights.gguf import read_gguf, read_gguf_header
from .weights.header import CheckpointError, check_archive, corrupt, file_format, read_header
from .weights.layouts import LAYOUTS, OTHERS, PREFIXES, RELATIVES, Layout, rename
from .weights.quantisation import PACKED_MARKER, header_layers, mark_layers
from .weights.tokenizer import spiece_model

DIT = ("t2v", "i2v", "flf2v", "vace", "i2v_a14b", "ti2v")
VACE_MODULE = ("vace_module",)
VAE = ("vae21", "vae22")
TEXT_ENCODER = ("umt5",)
CLIP_VISION = ("clip_vision",)
KINDS = {
    DIT: "a Wan video model",
    VACE_MODULE: "a Wan VACE module",
    VAE: "a Wan VAE",
    TEXT_ENCODER: "a umT5 text encoder",
    CLIP_VISION: "a CLIP vision encoder",
}
FP8 = {torch.float8_e4m3fn: "fp8_e4m3fn", torch.float8_e5m2: "fp8_e5m2"}

# The weights that stay packed when their file is a GGUF: nearly all of them. The others are small, or read from once.
STAYS_PACKED = re.compile(r"(vace_)?blocks\.|token_embedding\.")
PART = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d{1,5})(?P<ending>\.\w+)$")

# What torch's weights-only unpickler raises for a file that is damaged or asks for anything but tensors.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(AssertionError, ArithmeticError, ImportError, OSError, struct.error),
)


@dataclass(frozen=True)
class Inspection:
    """What a file holds, from its header.

    holds: in words. variant: a member of `DIT`, `VAE`, `TEXT_ENCODER` or `CLIP_VISION`, or None for another model.
    quantisation: None for plain float weights, else "fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "comfy_quant" or, for a
    GGUF file, "gguf" and its main format, such as "gguf_q4_k". layout: who names the parameters so, in words.
    names: the file's names to the official ones. tensors: meta tensors by official name; a CLIP vision encoder keeps
    the names of its own layout, which may split or fuse the projections of its attention. layers: the quantised layers
    that the header lists, by official name.
    """

    holds: str
    variant: str | None = None
    quantisation: str | None = None
    layout: str | None = None
    names: Mapping[str, str] | None = None
    tensors: Mapping[str, Tensor] | None = None
    layers: Mapping[str, dict] = field(default_factory=dict)


def parts(path: str | PathLike) -> list[Path]:
    """The files that `path` stands for: all parts of a model in parts, such as x-00001-of-00006.safetensors.

    Raises CheckpointError where one of them is missing.
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


def inspect(path: str | PathLike) -> Inspection:
    """Recognise a weights file, or a model in parts, by the names and shapes in it; no weight is read.

    Raises CheckpointError for a file that is missing or damaged, is no weights file, or is a Wan model with sizes that
    contradict one another.
    """
    path = Path(path)
    tensors, metadata, packed = {}, {}, None
    for part in parts(path):
        found, more, packed_as = _inspect_part(part)
        _merge(tensors, found, part)
        metadata |= more
        packed = packed or packed_as
    try:
        found = recognise(tensors, metadata)
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    return replace(found, quantisation=f"gguf_{packed.lower()}") if packed else found


def read(path: str | PathLike) -> dict[str, Tensor | ggml.Packed]:
    """The tensors of a weights file, or of a model in parts, by their names in the file, memory-mapped.

    Raises CheckpointError for a file that is missing or damaged or is no weights file.
    """
    tensors = {}
    for part in parts(path):
        _merge(tensors, _read_part(part), part)
    return tensors


def _merge(tensors: dict, more: dict, part: Path) -> None:
    twice = next((name for name in more if name in tensors), None)
    if twice is not None:
        raise corrupt(part, f"it repeats {twice[:80]!r} of another part of the model")
    tensors |= more


def _inspect_part(path: Path) -> tuple[dict[str, Tensor], dict, str | None]:
    """Meta tensors and text metadata of one file, and the packed format of a GGUF."""
    kind = file_format(path)
    if kind == "torch":
        return _load_archive(path, "meta"), {}, None
    if kind == "gguf":
        header = read_gguf_header(path)
        tokenizer = {"spiece_model": torch.empty(0, device="meta")} if spiece_model(header.fields) else {}
        return header.tensors | tokenizer, {}, header.format
    header = read_header(path)
    return header.tensors, header.metadata, None


def _read_part(path: Path) -> dict[str, Tensor | ggml.Packed]:
    kind = file_format(path)
    if kind == "torch":
        return _load_archive(path, "cpu")
    if kind == "gguf":
        header = read_gguf_header(path)
        model = spiece_model(header.fields)
        tokenizer = {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)} if model else {}
        return read_gguf(path, header.places) | tokenizer
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except SafetensorError as error:
        raise corrupt(path, str(error)) from None


def recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Inspection:
    """What tensors of these names, shapes and dtypes are; meta tensors will do.

    Raises ValueError for a Wan model with sizes that contradict one another or that no variant has.
    """
    listing = "\n".join(tensors)
    other = _first_match(RELATIVES, listing)
    if other:
        return Inspection(other)
    layout, prefix = _find_layout(tensors)
    if layout is None:
        return Inspection(_first_match(OTHERS, listing) or f"{len(tensors)} tensors of no model that this pack knows")
    inner = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    names = {inner[name]: official for name, official in rename(inner, layout.table).items()}
    official = {names[name]: tensors[name] for name in names}
    listed = {name.removeprefix(prefix): form for name, form in header_layers(metadata or {}).items()}
    layers = {ours: listed[theirs] for theirs, ours in rename(listed, layout.table).items()}
    variant = _variant(layout.kind, official)
    kind = next(phrase for variants, phrase in KINDS.items() if variant in variants)
    return Inspection(
        f"{kind} ({variant})", variant, _quantisation(official, layers), layout.source, names, official, layers
    )


def expect(path: str | PathLike, kinds: tuple[str, ...], node: str) -> Inspection:
    """`inspect`, for a place that takes only `kinds`, a key of `KINDS`; `node` is what that place is called.

    Raises CheckpointError as `inspect` does, and for a file that holds anything else.
    """
    found = inspect(path)
    if found.variant not in kinds:
        raise CheckpointError(
            Message(
                "other_kind",
                "{file} holds {holds}, not {wanted}: choose {wanted} in {node}.",
                file=Path(path).name, holds=found.holds, wanted=KINDS[kinds], node=node,
            )
        )  # fmt: skip
    return found


def load(path: str | PathLike) -> tuple[dict[str, Tensor], str, str | None]:
    """The weights of a file in official names, its variant and its quantisation, as in `Inspection`.

    The tensors lie in the memory-mapped file: nothing is copied and reading happens on first use. Scaled fp8 layers
    are marked as in `quantisation.mark_layers`; a packed GGUF weight is uint8 (rows, bytes of a row) with its format
    (a key of `ggml.FORMATS`) beside it.
    Raises CheckpointError as `inspect` does, and for a file that holds another model.
    """
    path, found = Path(path), inspect(path)
    if found.variant is None:
        raise CheckpointError(f"{path.name} holds {found.holds}, not a part of Wan: choose another file.")
    tensors, state_dict = read(path), {}
    for name, official in found.names.items():
        value = tensors[name]
        if not isinstance(value, ggml.Packed):
            state_dict[official] = value
        elif STAYS_PACKED.match(official):
            state_dict[official] = value.data
            state_dict[official.removesuffix(".weight") + PACKED_MARKER] = torch.tensor(value.kind, dtype=torch.uint8)
        else:
            state_dict[official] = ggml.unpack(value, torch.float32)
    return mark_layers(state_dict, found.layers), found.variant, found.quantisation


def _load_archive(path: Path, device: str) -> dict[str, Tensor]:
    """Tensors of a PyTorch archive: memory-mapped ("cpu") or only their shapes ("meta"). Its pickle can run no code."""
    check_archive(path)
    if path.suffix.lower() == ".safetensors":  # newer versions of torch.load go by this ending
        raise CheckpointError(f"{path.name} is a PyTorch archive under another name: rename it to {path.stem}.pth.")
    try:
        content = torch.load(path, map_location=device, mmap=True, weights_only=True)
    except UNPICKLING_ERRORS:
        raise CheckpointError(
            f"{path.name} is damaged or holds more than tensors, which could run code when opened: choose a "
            ".safetensors file of the same model."
        ) from None
    while isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), dict):
        (content,) = content.values()  # {"model_state": {...}} and the like
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not named weights: choose another file.")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    size = path.stat().st_size
    if any(tensor.numel() * tensor.element_size() > size for tensor in tensors.values()):
        raise CheckpointError(f"{path.name} is corrupt: a tensor claims more than its {size} bytes; download it again.")
    return tensors


def _find_layout(names: Mapping[str, Tensor]) -> tuple[Layout | None, str]:
    for layout in LAYOUTS:
        for prefix in PREFIXES:
            if all(prefix + mark in names for mark in layout.marks):
                return layout, prefix
    return None, ""


def _first_match(phrases: tuple[tuple[str, str], ...], listing: str) -> str | None:
    return next((phrase for pattern, phrase in phrases if re.search(pattern, listing, re.MULTILINE)), None)


def _variant(kind: str, tensors: Mapping[str, Tensor]) -> str:
    if kind == "dit":
        return dit_config(tensors).variant
    if kind == "vae":
        return "vae" + vae_config(tensors).version.replace(".", "")
    return kind


def _quantisation(tensors: Mapping[str, Tensor], layers: Mapping[str, dict]) -> str | None:
    if layers or any(name.endswith(".comfy_quant") for name in tensors):
        return "comfy_quant"
    if "scaled_fp8" in tensors or any(name.endswith((".scale_weight", ".weight_scale")) for name in tensors):
        return "fp8_scaled"
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return next((name for dtype, name in FP8.items() if dtype in dtypes), None)
