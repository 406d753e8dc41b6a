"""Marks: entries of a file's header that tell a model apart where names and shapes do not.

ComfyUI reads the `transformer` entry of a safetensors header's `config`, a JSON text, and lets it override what the
weights suggest (`comfy/model_detection.py`, Wan). Some models differ from a plain one only there.
"""

import json
from collections.abc import Mapping

from ..variants import VARIANTS

# Values of model_type that official files, trainers and diffusers write for the models that this pack runs.
KNOWN_TYPES = frozenset({*VARIANTS, *(row.host.type for row in VARIANTS.values()), "t2v_a14b"})
CLIP_PARTS = frozenset({"clip", "clip_positions"})  # headers say "i2v" of models with and without these
NAMES = {  # values of model_type, and boolean entries, that tell a model from a plain one
    "animate2": "a Wan Animate 2 model",
    "causal_ar": "a causal (autoregressive) Wan model",
    "flow_rvs": "a FlowRVS model built on Wan",
    "animate": "a Wan Animate model",
    "s2v": "a Wan speech-to-video model",
    "humo": "a HuMo model built on Wan",
    "camera": "a Wan camera control model",
    "camera_2.2": "a Wan 2.2 camera control model",
    "scail": "a SCAIL model built on Wan",
    "scail2": "a SCAIL 2 model built on Wan",
    "wandancer": "a Wan Dancer model",
}


def read_marks(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the `transformer` entry of a header's `config`; {} if there is none that can be read."""
    try:
        marks = json.loads(metadata.get("config", "{}")).get("transformer", {})
    except (ValueError, TypeError, AttributeError, RecursionError):  # other programs use this name for other things
        return {}
    return marks if isinstance(marks, dict) else {}


def gguf_metadata(fields: Mapping[str, object]) -> dict[str, str]:
    """Return the key-value pairs of a GGUF file in the form of a safetensors header's metadata.

    Marks are in a `config` as there, or prefixed by the architecture, as in "wan.model_type".
    """
    named = {name.rpartition(".")[2]: value for name, value in fields.items() if isinstance(value, str | bool)}
    marks = {name: named[name] for name in ("model_type", *NAMES) if name in named}
    config = named.get("config")
    stated = read_marks({"config": config} if isinstance(config, str) else {})
    return {"config": json.dumps({"transformer": stated | marks})}


def unsupported(marks: Mapping[str, object], variant: str) -> str | None:
    """Return the kind of model that `marks` name if this pack does not run it, else None.

    variant: the one recognised from weights and marks, a key of `VARIANTS`.
    """
    row, kind, image_model = VARIANTS[variant], marks.get("model_type"), marks.get("image_model", "wan2.1")
    stated = [name for name in NAMES if name == kind or marks.get(name) is True]
    if image_model != "wan2.1" or not (kind is None or kind in NAMES or kind in KNOWN_TYPES):
        return f"a model whose header says {str(image_model)[:40]!r}, {str(kind)[:40]!r}"
    if row.mark is None and set(stated) - {variant, row.host.type}:
        return NAMES[stated[0]]
    claimed = VARIANTS.get(str(kind), row)
    if claimed.takes_image != row.takes_image or claimed.parts - row.parts - CLIP_PARTS:
        channels = f"take {row.in_dim} channels and make {row.family.channels}"
        return f"a Wan model whose header says {kind!r} and whose weights {channels}"
    return None
