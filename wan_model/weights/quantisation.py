"""Scaled fp8 weights, brought from any naming of their scales to one form.

ComfyUI's current form has, beside a quantised `X.weight`, a `X.weight_scale`, perhaps a `X.input_scale`, and a marker
`X.comfy_quant`: a JSON text as bytes, such as {"format": "float8_e4m3fn"}.
"""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
FP8_FORMATS = frozenset(FP8.values())
INTEGERS = {torch.int8: "int8", torch.uint8: "4-bit or other packed", torch.int32: "packed 32-bit"}
OLD_NAMES = {".scale_weight": ".weight_scale", ".scale_input": ".input_scale"}
MARKER = ".comfy_quant"
PACKED_MARKER = ".ggml_type"  # this pack's own: beside a `X.weight` of GGUF bytes, the number of their format

# The companions of a quantised `X.weight`.
COMPANION = re.compile(
    r"\.(weight_scale(_2)?|weight_s_rel|weight_s_channel|weight_codebook|input_scale|pre_quant_scale|scale_weight"
    r"|scale_input|comfy_quant)$"
)


def quantisation(tensors: Mapping[str, Tensor], layers: Mapping[str, dict]) -> str | None:
    """Return how the weights of a model are stored, None for plain floats. layers: the forms that the file marks."""
    if layers or any(name.endswith(MARKER) for name in tensors):
        return "comfy_quant"
    if "scaled_fp8" in tensors or any(name.endswith((".scale_weight", ".weight_scale")) for name in tensors):
        return "fp8_scaled"
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return next((name.replace("float8", "fp8") for dtype, name in FP8.items() if dtype in dtypes), None)


def check_marked(tensors: Mapping[str, Tensor], layers: Mapping[str, dict]) -> None:
    """Raise ValueError for integer weights without a mark: their scale and format are unknown."""
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        marked = layer == name or layer in layers or layer + MARKER in tensors
        if tensor.dtype in INTEGERS and not marked:
            raise ValueError(
                f"its weights are {INTEGERS[tensor.dtype]} numbers without a mark of their format (comfy_quant), so "
                "nothing says what they stand for: choose a file that is quantised for ComfyUI, a GGUF or a plain one."
            )


def header_layers(metadata: Mapping[str, str]) -> dict[str, dict]:
    """Return the quantised layers that a safetensors header lists, by their name in the file.

    Raise ValueError if the entry is not such a list.
    """
    try:
        layers = json.loads(metadata.get("_quantization_metadata", '{"layers": {}}'))["layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        layers = None
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise ValueError("the list of quantised layers in its header is damaged: download it again.")
    return layers


def mark_layers(state_dict: Mapping[str, Tensor], layers: Mapping[str, dict]) -> dict[str, Tensor]:
    """Return `state_dict` in the current form. layers: those that the file marks, by official name.

    A scale beside plain floats is multiplied into the weight.
    """
    whole = state_dict.get("scaled_fp8")  # the old form's mark of the whole file; two values: multiply in float
    common = {"full_precision_matrix_mult": True} if whole is not None and whole.numel() == 2 else {}
    marked = {}
    for name, tensor in state_dict.items():
        suffix = next((old for old in OLD_NAMES if name.endswith(old)), None)
        if name == "scaled_fp8" or (suffix == ".scale_input" and tensor.numel() == 1 and tensor.item() == 1):
            continue
        marked[name.removesuffix(suffix) + OLD_NAMES[suffix] if suffix else name] = tensor
    for layer in [name.removesuffix(".weight_scale") for name in marked if name.endswith(".weight_scale")]:
        weight = marked.get(layer + ".weight")
        if weight is None or layer in layers or layer + MARKER in marked:
            continue
        if weight.dtype in FP8:
            marked[layer + MARKER] = _as_bytes({"format": FP8[weight.dtype], **common})
        else:
            marked[layer + ".weight"] = (weight * marked.pop(layer + ".weight_scale")).to(weight.dtype)
            marked.pop(layer + ".input_scale", None)
    for layer, form in layers.items():
        marked.setdefault(layer + MARKER, _as_bytes(form))
    return marked


def unscale(state_dict: Mapping[str, Tensor], names: re.Pattern) -> dict[str, Tensor]:
    """Return `state_dict` with the scaled fp8 weights of the layers that match `names` as float32, unmarked."""
    extras = (".weight_scale", ".input_scale", MARKER)
    forms = marked_layers({name: tensor for name, tensor in state_dict.items() if names.match(name)})
    layers = {layer for layer, form in forms.items() if form.get("format") in FP8_FORMATS}
    unscaled = {}
    for name, tensor in state_dict.items():
        layer, _, last = name.rpartition(".")
        if layer not in layers:
            unscaled[name] = tensor
        elif last == "weight":
            scale = state_dict.get(name + "_scale")
            unscaled[name] = tensor.float() if scale is None else tensor.float() * scale.float()
        elif "." + last not in extras:
            unscaled[name] = tensor
    return unscaled


def marked_layers(state_dict: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return the form of each layer of `state_dict` that has a marker. Raise ValueError for a damaged marker."""
    forms = {}
    for name, tensor in state_dict.items():
        if name.endswith(MARKER):
            try:
                forms[name.removesuffix(MARKER)] = dict(json.loads(tensor.numpy().tobytes()))
            except (ValueError, TypeError, RecursionError):
                raise ValueError(f"The weights are corrupt: {name} is no JSON text; download the file again.") from None
    return forms


def _as_bytes(form: dict) -> Tensor:
    return torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
