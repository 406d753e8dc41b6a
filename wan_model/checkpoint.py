"""Weights files: recognised by their names and shapes, then loaded memory-mapped under official names."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .dit.config import DiTConfig
from .dit.model import dit_shapes
from .messages import Message
from .vae import VAEConfig, make_vae, vae_config
from .variants import CAUSAL, VARIANTS
from .variants.distilled import Preset
from .variants.rollout import Rollout
from .weights import ggml, marks, wrappings
from .weights.files import File, merged, open_files, parts, read, read_on
from .weights.header import CheckpointError, parse_header
from .weights.layouts import LAYOUTS, LORA, OTHERS, PREFIXES, Layout, assemble, rename
from .weights.marks import LatentRGB
from .weights.quantisation import (
    COMPANION,
    PACKED_MARKER,
    check_marked,
    header_layers,
    mark_layers,
    marked_layers,
    quantisation,
)

__all__ = [
    "CLIP_VISION",
    "DIT",
    "KINDS",
    "TEXT_ENCODER",
    "VACE_MODULE",
    "VAE",
    "CheckpointError",
    "Inspection",
    "expect",
    "inspect",
    "inspect_header",
    "load",
    "load_model",
    "parts",
    "read",
    "recognise",
]

DIT = tuple(VARIANTS)
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
# The weights that stay packed when their file is a GGUF: nearly all. The others are small, or read only once.
STAYS_PACKED = re.compile(r"(vace_)?blocks\.|audio_injector\.|face_adapter\.fuser_blocks\.|token_embedding\.")

# A whole weight that a Wan DiT does not read belongs to another network; anything else beside the weights is harmless.
WEIGHT = re.compile(r"\.(weight|bias)$")
SHOWN = 5  # names that a message spells out


@dataclass(frozen=True)
class Inspection:
    """The content of a file, read from its header.

    holds: a description in words. variant: a member of `DIT`, `VAE`, `TEXT_ENCODER` or `CLIP_VISION`, or None for
    another model. quantisation: None for plain float weights, else "fp8_e4m3fn", "fp8_e5m2", "fp8_scaled",
    "comfy_quant" or, for a GGUF file, "gguf" and its main format, such as "gguf_q4_k". layout: the source that names
    parameters this way, in words. names: map from the file's names to the official ones. tensors: meta tensors by
    official name; a CLIP vision encoder keeps the names of its own layout, which may split or fuse the projections of
    its attention. layers: the form of each quantised layer that the file marks, by official name. config: sizes of a
    whole DiT or a VAE. marks: as `marks.read_marks`. latent_rgb: as `marks.read_latent_rgb`.
    rollout: as `marks.read_rollout`, of a causal model. sampling: as `marks.read_sampling`. notes: sentences for the
    log on what was chosen and what is left out. elsewhere: whether ComfyUI's own loader runs this relative of Wan and
    this pack does not.
    """

    holds: str
    variant: str | None = None
    quantisation: str | None = None
    layout: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, dict] = field(default_factory=dict)
    config: DiTConfig | VAEConfig | None = None
    marks: Mapping[str, object] = field(default_factory=dict)
    latent_rgb: LatentRGB | None = None
    rollout: Rollout | None = None
    sampling: Preset | None = None
    notes: tuple[str, ...] = ()
    elsewhere: bool = False


def inspect(path: str | PathLike, causal: bool | None = None) -> Inspection:
    """Recognise a weights file, or a model in parts, by the names and shapes in it; no weight is read.

    causal: whether its network is a causal one, or None to let the file tell.
    Raise CheckpointError for a file that is missing or damaged, is no weights file, or is a Wan model with sizes that
    contradict one another, weights that are missing or weights that no such model has.
    """
    return _recognise_files(Path(path), open_files(path), causal)


def inspect_header(name: str, text: bytes, size: int) -> Inspection:
    """Recognise a safetensors file that is not here. text: the JSON of its header. size: of the file, in bytes.

    Raise CheckpointError as `inspect` does.
    """
    header = parse_header(Path(name), text, size)
    return _recognise(name, header.tensors, header.metadata)


def _recognise_files(path: Path, files: Mapping[Path, File], causal: bool | None) -> Inspection:
    tensors, metadata, packed_as = merged(files)
    found = _recognise(path.name, tensors, metadata, causal)
    return replace(found, quantisation=f"gguf_{packed_as.lower()}") if packed_as else found


def _recognise(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], causal: bool | None = None
) -> Inspection:
    """As `recognise`, with the name of the file before what is wrong with it."""
    try:
        return recognise(tensors, metadata, causal)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def recognise(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, causal: bool | None = None
) -> Inspection:
    """Return the content of a file with these tensors; meta tensors will do. causal: as in `inspect`.

    Raise ValueError for a Wan model with sizes that contradict one another or that no variant has, with weights that
    are missing or that no such model has, and for a file with several models.
    """
    bare = wrappings.unwrap(tensors)  # name without wrappers -> name in the file
    listing, transformer = "\n".join(bare), marks.read_marks(metadata or {})
    if re.search(LORA[0], listing, re.MULTILINE):
        return Inspection(LORA[1])
    layout, prefixes = _find_layout(bare)
    if layout is None:
        return Inspection(_first_match(OTHERS, listing) or f"{len(tensors)} tensors of no model that this pack knows")
    prefix = wrappings.choose(prefixes)
    inner = {name.removeprefix(prefix): theirs for name, theirs in bare.items() if name.startswith(prefix)}
    names = {inner[name]: official for name, official in rename(inner, layout.table).items()}
    official = assemble({ours: tensors[theirs] for theirs, ours in names.items()})
    transformer = {**layout.header, **transformer}
    forms = header_layers(metadata or {})
    listed = {name.removeprefix(prefix): forms[theirs] for name, theirs in wrappings.unwrap(forms).items()}
    layers = {ours: listed[theirs] for theirs, ours in rename(listed, layout.table).items()} | _marked(official)
    variant, config, expected = _identify_causal(layout.kind, official, transformer, prefix, causal)
    latent_rgb = rollout = sampling = None
    ignored: tuple[str, ...] = ()
    if isinstance(config, DiTConfig):
        latent_rgb, ignored = marks.read_latent_rgb(metadata or {}, config.out_dim)
        sampling, unread = marks.read_sampling(metadata or {})
        ignored += unread
        if config.facts.causal:
            rollout, unread = marks.read_rollout(metadata or {})
            ignored += unread
        other = marks.unsupported(transformer if causal is None else transformer | {CAUSAL: causal}, config.variant)
        if other is not None:
            return Inspection(other, marks=transformer, elsewhere=True)
        check_marked(official, layers)
    left_out = _left_out(official, expected, variant)
    notes = _notes(prefix, prefixes, sorted(left_out) + [n for n in bare if not n.startswith(tuple(prefixes))])
    kind = next(phrase for variants, phrase in KINDS.items() if variant in variants)
    return Inspection(
        holds=f"{kind} ({variant})",
        variant=variant,
        quantisation=quantisation(official, layers),
        layout=layout.source,
        names={theirs: ours for theirs, ours in names.items() if ours not in left_out},
        tensors={name: tensor for name, tensor in official.items() if name not in left_out},
        layers=layers,
        config=config,
        marks=transformer,
        latent_rgb=latent_rgb,
        rollout=rollout,
        sampling=sampling,
        notes=notes + ignored,
    )


def expect(path: str | PathLike, kinds: tuple[str, ...], node: str, causal: bool | None = None) -> Inspection:
    """Return `inspect` of a file that must hold one of `kinds`, a key of `KINDS`.

    node: the loader to name in the message. causal: as in `inspect`. Raise CheckpointError as `inspect` does, and for
    any other content.
    """
    found = inspect(path, causal)
    if found.elsewhere and kinds == DIT:
        raise CheckpointError(_elsewhere(path, found))
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
    """Return the weights of a file in official names, its variant and its quantisation, as in `load_model`."""
    state_dict, found = load_model(path)
    return state_dict, str(found.variant), found.quantisation


def load_model(path: str | PathLike, causal: bool | None = None) -> tuple[dict[str, Tensor], Inspection]:
    """Return the weights of a file in official names, and what the file holds. causal: as in `inspect`.

    The tensors lie in the memory-mapped file: nothing is copied and reading happens on first use. Scaled fp8 layers
    are marked as in `quantisation.mark_layers`; a packed GGUF weight is uint8 (rows, bytes of a row) with its format
    (a key of `ggml.FORMATS`) beside it.
    Raise CheckpointError as `inspect` does, and for a file that holds another model.
    """
    path, files = Path(path), open_files(path)
    found = _recognise_files(path, files, causal)
    if found.elsewhere:
        raise CheckpointError(_elsewhere(path, found))
    if found.variant is None:
        raise CheckpointError(f"{path.name} holds {found.holds}, not a part of Wan: choose another file.")
    for note in found.notes:
        logging.warning("%s: %s", path.name, note)
    tensors, state_dict = read_on(files), {}
    for name, official in found.names.items():
        value = tensors[name]
        if not isinstance(value, ggml.Packed):
            state_dict[official] = value
        elif STAYS_PACKED.match(official):
            state_dict[official] = value.data
            state_dict[official.removesuffix(".weight") + PACKED_MARKER] = torch.tensor(value.kind, dtype=torch.uint8)
        else:
            state_dict[official] = ggml.unpack(value, torch.float32)
    return mark_layers(assemble(state_dict), found.layers), found


def _elsewhere(path: str | PathLike, found: Inspection) -> str:
    return (
        f"{Path(path).name} holds {found.holds}, which this pack does not run: load it with ComfyUI's Load Diffusion "
        "Model node."
    )


def _find_layout(names: Mapping[str, str]) -> tuple[Layout | None, list[str]]:
    """Return the layout of `names`, and every prefix under which a model in it stands."""
    for layout in LAYOUTS:
        found = wrappings.prefixes(names, layout.marks)
        if layout.kind in (*TEXT_ENCODER, *CLIP_VISION):  # other models hold one of these as a part
            found = [prefix for prefix in found if prefix in PREFIXES]
        if found:
            return layout, found
    return None, []


def _first_match(phrases: tuple[tuple[str, str], ...], listing: str) -> str | None:
    return next((phrase for pattern, phrase in phrases if re.search(pattern, listing, re.MULTILINE)), None)


def _identify(
    kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, object]
) -> tuple[str, DiTConfig | VAEConfig | None, set[str] | None]:
    """Return (variant, sizes, names of all weights); the last two are None for models that the host's classes read."""
    if kind == "dit":
        config, shapes = dit_shapes(tensors, header)
        return config.variant, config, set(shapes)
    if kind == "vae":
        vae = vae_config(tensors)
        return "vae" + vae.version.replace(".", ""), vae, set(make_vae(vae, device="meta").state_dict())
    return kind, None, None


def _identify_causal(
    kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, object], prefix: str, causal: bool | None
) -> tuple[str, DiTConfig | VAEConfig | None, set[str] | None]:
    """As `_identify`, with the mark of a causal model where the caller asks for it, or the file's prefix tells one.

    Raise ValueError where the caller asks for it of other weights.
    """
    found = _identify(kind, tensors, header if causal is None else {**header, CAUSAL: False})
    if found[0] != "t2v":
        if causal and found[0] in DIT:
            raise ValueError(
                f"it is a Wan {found[0]} model, and only text-to-video weights are run as a causal model: set causal "
                "to auto."
            )
        return found
    told = causal if causal is not None else wrappings.is_causal(prefix) and CAUSAL not in header
    return _identify(kind, tensors, {**header, CAUSAL: True}) if told else found


def _marked(tensors: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return the layers whose marker has a value; a meta tensor has none."""
    return marked_layers({name: t for name, t in tensors.items() if t.dtype == torch.uint8 and not t.is_meta})


def _left_out(tensors: Mapping[str, Tensor], expected: set[str] | None, variant: str) -> set[str]:
    """Return the names outside the model. Raise ValueError for missing weights and those of another network."""
    if variant in VACE_MODULE:
        return {name for name in tensors if not name.startswith("vace_")}
    if expected is None:
        return set()
    missing = sorted(expected - tensors.keys())
    if missing:
        raise ValueError(
            f"it lacks {len(missing)} weights of a Wan {variant} model ({_some(missing)}): download it again, or "
            "choose another file."
        )
    left = [n for n in tensors if n not in expected and COMPANION.sub(".weight", n) not in expected]
    left = [name for name in left if name != "scaled_fp8"]
    foreign = [n for n in left if WEIGHT.search(n) and tensors[n].ndim > 1 and not wrappings.is_aside(n)]
    if foreign and variant in DIT:
        raise ValueError(
            f"it has {len(foreign)} weights that no Wan {variant} model reads ({_some(foreign)}), so it is another "
            "model built on Wan: load it with ComfyUI's Load Diffusion Model node."
        )
    return set(left)


def _notes(prefix: str, prefixes: list[str], left_out: list[str]) -> tuple[str, ...]:
    notes = []
    if len(prefixes) > 1:
        what = "the averaged weights (EMA)" if wrappings.is_averaged(prefix) else "the trained weights"
        listed = ", ".join(repr(name.removesuffix(".")) for name in prefixes)
        notes.append(f"of the models {listed} in it, {prefix.removesuffix('.')!r} is loaded: {what}.")
    if left_out:
        notes.append(f"{len(left_out)} tensors that the model does not read are left out: {_some(left_out)}.")
    return tuple(notes)


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(name[:80] for name in names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
