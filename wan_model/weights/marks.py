"""Marks: entries of a file's header that tell a model apart where names and shapes do not.

ComfyUI reads the `transformer` entry of a safetensors header's `config`, a JSON text, and lets it override what the
weights suggest (`comfy/model_detection.py`, Wan). Some models differ from a plain one only there.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple, TypeGuard

from ..solvers import SAMPLERS
from ..variants import VARIANTS
from ..variants.distilled import Preset
from ..variants.rollout import Rollout

# Values of model_type that official files, trainers and diffusers write for the models that this pack runs.
KNOWN_TYPES = frozenset({*VARIANTS, *(row.host.type for row in VARIANTS.values()), "t2v_a14b"})
CLIP_PARTS = frozenset({"clip", "clip_positions"})  # headers say "i2v" of models with and without these
PLAIN_TYPES = frozenset({"t2v", "i2v", "vace"})  # the weights tell these themselves
MARKS = frozenset().union(*(row.marks for row in VARIANTS.values())) - PLAIN_TYPES
NAMES = {"flow_rvs": "a FlowRVS model built on Wan"}  # marks of models that this pack does not run

ROLLOUT = "rollout"  # key of a header: how a causal model is run in blocks
SAMPLING = "sampling"  # key of a header: how the model is sampled
LATENT_RGB = "latent_rgb"  # key of a header
LARGEST = 1e3  # of the numbers under it
TEXTS = (ROLLOUT, SAMPLING, LATENT_RGB)


class LatentRGB(NamedTuple):
    """A linear map from normalised latents to RGB in [-1, 1].

    factors: three numbers for each latent channel. bias: three numbers.
    """

    factors: list[list[float]]
    bias: list[float]


def read_latent_rgb(metadata: Mapping[str, str], channels: int) -> tuple[LatentRGB | None, tuple[str, ...]]:
    """Return the map of latents with as many channels that a header carries, or None; and notes on why not.

    It is a JSON text under `LATENT_RGB`: {"factors": [[r, g, b], ...], "bias": [r, g, b]}.
    """
    if LATENT_RGB not in metadata:
        return None, ()
    try:
        given = json.loads(metadata[LATENT_RGB])
        found = LatentRGB(given["factors"], given["bias"])
    except (ValueError, TypeError, KeyError, RecursionError):
        found = LatentRGB([], [])
    if _is_list(found.factors, channels) and all(_is_colour(row) for row in (*found.factors, found.bias)):
        return found, ()
    wanted = f"{channels} x 3 factors and 3 biases, finite numbers"
    return None, (f"the {LATENT_RGB} in its header is not {wanted}: previews are in the colours of other models.",)


def read_rollout(metadata: Mapping[str, str]) -> tuple[Rollout | None, tuple[str, ...]]:
    """Return how the header of a causal model says that it is run in blocks, or None; and notes on why not.

    It is a JSON text under `ROLLOUT`: {"block": 1, "window": 8, "sink": 1, "near_sink": true, "context_noise": 0.15},
    of which what is left out is as `Rollout` has it.
    """
    if ROLLOUT not in metadata:
        return None, ()
    try:
        given = json.loads(metadata[ROLLOUT])
        kinds = {field.name: type(field.default) for field in fields(Rollout)}
        if all(_is_a(value, kinds[name]) for name, value in given.items()):
            return Rollout(**given), ()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None, (f"the {ROLLOUT} in its header cannot be read: it is run as its name tells.",)


def read_sampling(metadata: Mapping[str, str]) -> tuple[Preset | None, tuple[str, ...]]:
    """Return how the header of a model says that it is sampled, or None; and notes on why not.

    It is a JSON text under `SAMPLING`: {"solver": "unipc", "steps": 8, "shift": 3.0, "guidance": 2.5}.
    """
    if SAMPLING not in metadata:
        return None, ()
    try:
        given = json.loads(metadata[SAMPLING])
        solver, steps, shift, guidance = (given[name] for name in ("solver", "steps", "shift", "guidance"))
    except (ValueError, TypeError, KeyError, RecursionError):
        solver = steps = shift = guidance = None
    numbers = _is_a(steps, int) and _is_a(shift, float) and _is_a(guidance, float)
    if (
        isinstance(solver, str)
        and solver in SAMPLERS
        and numbers
        and 1 <= steps <= 1000
        and 0 < shift <= 100
        and 1 <= guidance <= 30
    ):
        about = f"The file's own settings: {steps} steps, guidance {guidance:g}, shift {shift:g}, {solver}."
        guidances = (float(guidance), float(guidance))
        return Preset("of the file", about, solver, steps, float(shift), "the file's header", guidance=guidances), ()
    return None, (f"the {SAMPLING} in its header cannot be read: it is sampled as its name tells.",)


def _is_a(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _is_colour(value: object) -> bool:
    return _is_list(value, 3) and all(type(part) in (int, float) and -LARGEST < part < LARGEST for part in value)


def _is_list(value: object, length: int) -> TypeGuard[list]:
    return isinstance(value, list) and len(value) == length


def read_marks(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the `transformer` entry of a header's `config`; {} if there is none that can be read."""
    try:
        marks = json.loads(metadata.get("config", "{}")).get("transformer", {})
    except (ValueError, TypeError, AttributeError, RecursionError):  # other programs use this name for other things
        return {}
    return marks if isinstance(marks, dict) else {}


def gguf_metadata(fields: Mapping[str, object]) -> dict[str, str]:
    """Return the key-value pairs of a GGUF file in the form of a safetensors header's metadata.

    Marks are in a `config` as there, or prefixed by the architecture, as in "wan.model_type"; so are the JSON texts.
    """
    named = {name.rpartition(".")[2]: value for name, value in fields.items() if isinstance(value, str | bool)}
    marks = {name: named[name] for name in ("model_type", *NAMES, *MARKS) if name in named}
    config = named.get("config")
    stated = read_marks({"config": config} if isinstance(config, str) else {})
    texts = {key: text for key in TEXTS if isinstance(text := named.get(key), str)}
    return texts | {"config": json.dumps({"transformer": stated | marks})}


def unsupported(marks: Mapping[str, object], variant: str) -> str | None:
    """Return the kind of model that `marks` name if this pack does not run it, else None.

    variant: the one recognised from weights and marks, a key of `VARIANTS`.
    """
    row, kind, image_model = VARIANTS[variant], marks.get("model_type"), marks.get("image_model", "wan2.1")
    stated = {name for name in (*NAMES, *MARKS) if name == kind or marks.get(name) is True}
    if image_model != "wan2.1" or not (kind is None or kind in NAMES or kind in KNOWN_TYPES):
        return f"a model whose header says {str(image_model)[:40]!r}, {str(kind)[:40]!r}"
    if stated & NAMES.keys():
        return NAMES[(stated & NAMES.keys()).pop()]
    other, claimed = stated - {variant} - row.marks, VARIANTS.get(str(kind), row)
    if other or claimed.takes_image != row.takes_image or claimed.parts - row.parts - CLIP_PARTS:
        channels = f"take {row.in_dim} channels and make {row.family.channels}"
        return f"a Wan model whose header says {(other.pop() if other else kind)!r} and whose weights {channels}"
    return None
