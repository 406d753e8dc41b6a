"""What a file's header says about its model beyond names and shapes.

ComfyUI reads the `transformer` entry of a safetensors header's `config`, a JSON text, and lets it override what the
weights look like (`comfy/model_detection.py`, Wan). Some models differ from a plain one by this alone.
"""

import json
from collections.abc import Mapping

# Values of model_type that official files, trainers and diffusers write for the models that this pack runs.
PLAIN_TYPES = ("t2v", "i2v", "flf2v", "ti2v", "vace", "t2v_a14b", "i2v_a14b")
NAMES = {  # other values of it, and entries of their own that are true
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
    """Return the `transformer` entry of a header's `config`; {} where there is none that can be read."""
    try:
        marks = json.loads(metadata.get("config", "{}")).get("transformer", {})
    except (ValueError, TypeError, AttributeError, RecursionError):  # other programs keep other things under this name
        return {}
    return marks if isinstance(marks, dict) else {}


def gguf_metadata(fields: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of a safetensors header that says what the key-value pairs of a GGUF file say.

    Marks stand in a `config` as there, or behind the architecture, as in "wan.model_type".
    """
    named = {name.rpartition(".")[2]: value for name, value in fields.items() if isinstance(value, str | bool)}
    marks = {name: named[name] for name in ("model_type", *NAMES) if name in named}
    return {"config": json.dumps({"transformer": read_marks({"config": named.get("config", "{}")}) | marks})}


def unsupported(marks: Mapping[str, object], in_dim: int, out_dim: int, has_vace: bool) -> str | None:
    """Return what `marks` say a model is where that is none that this pack runs, else None.

    in_dim, out_dim, has_vace: channels into and out of the model and whether it has VACE blocks, from its weights.
    """
    kind, image_model = marks.get("model_type"), marks.get("image_model", "wan2.1")
    stated = next((name for name in NAMES if name == kind or marks.get(name) is True), None)
    if stated is not None:
        return NAMES[stated]
    if image_model != "wan2.1" or (kind is not None and kind not in PLAIN_TYPES):
        return f"a model whose header says {str(image_model)[:40]!r}, {str(kind)[:40]!r}"
    takes_image = in_dim != out_dim
    contradictions = {"t2v": takes_image, "ti2v": takes_image, "i2v": not takes_image, "flf2v": not takes_image}
    contradictions |= {"vace": not has_vace, "t2v_a14b": takes_image, "i2v_a14b": not takes_image}
    if contradictions.get(kind, False):
        return f"a Wan model whose header says {kind!r} and whose weights take {in_dim} channels and make {out_dim}"
    return None
