"""Storage and compute dtypes of a MODEL's weights, through the host's own operations."""

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import comfy.utils
import torch

from ...wan_model import checkpoint
from ...wan_model.dit.model import FLOAT32_NAMES
from ...wan_model.weights import quantisation
from .. import compat
from . import packed

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
CHOICES = ("auto", *FLOATS, *FP8)


def configure(model_config, state_dict: dict, choice: str) -> dict:
    """Set dtypes and quantisation in the host's `model_config`; return `state_dict` as its operations load it.

    choice: one of `CHOICES`. "auto" lets the host choose from the file's type and the device. A float type
    converts a plain file; quantised layers stay quantised and compute in it. fp8 converts a plain file but for small
    and sensitive weights; "fast" also multiplies in fp8 if the device can. Layers may differ in form.
    Raise ValueError for an fp8 choice on a quantised file and for a form of quantisation that this host cannot read.
    """
    state_dict = quantisation.unscale(state_dict, FLOAT32_NAMES)
    layers = quantisation.marked_layers(state_dict)
    is_packed = packed.is_packed(state_dict)
    weights, compute = dtypes(model_config, state_dict, choice, bool(layers) or is_packed)
    if not layers and not is_packed:
        model_config.set_inference_dtype(weights, compute)
        if choice.endswith("_fast"):
            model_config.optimizations = {**model_config.optimizations, "fp8": True}
        return state_dict
    if choice in FP8:
        raise ValueError(f"The file is quantised already and cannot become {choice}: choose auto as weight_dtype.")
    model_config.set_inference_dtype(compute, compute)
    if layers:
        state_dict = _mark(model_config, layers, state_dict)
    if is_packed:
        base = _operations(model_config, compute) if layers else comfy.ops.manual_cast
        model_config.custom_operations = packed.operations(base)
    return state_dict


def _operations(model_config, compute):
    """Return the host's operations for the quantised layers that `model_config` knows."""
    device = comfy.model_management.get_torch_device()
    return comfy.ops.pick_operations(compute, compute, load_device=device, model_config=model_config)


def dtypes(
    model_config, state_dict: dict, choice: str, quantised: bool
) -> tuple[torch.dtype | None, torch.dtype | None]:
    """Return the dtype in which weights are stored and that to which they are cast, for a `choice` of `CHOICES`.

    None for the first keeps them as they are, None for the second casts nothing. model_config: the host's, or its
    class. state_dict may hold meta tensors. Raise ValueError for quantised fp8 weights and an fp8 choice where the
    device has no fp8; a plain fp8 file becomes a 16-bit one there.
    """
    device = comfy.model_management.get_torch_device()
    supported = sorted(model_config.supported_inference_dtypes, key=lambda dtype: dtype != torch.bfloat16)  # Wan's own
    if quantised:
        check_fp8(device, {tensor.dtype for tensor in state_dict.values()})
        return None, FLOATS.get(choice) or comfy.model_management.unet_manual_cast(None, device, supported)
    weights = FLOATS.get(choice) or FP8.get(choice) or _file_dtype(state_dict, supported)
    check_fp8(device, {weights})
    return weights, comfy.model_management.unet_manual_cast(weights, device, supported)


def has_fp8(device: torch.device) -> bool:
    """Return whether `device` can hold fp8 tensors: Apple's GPUs cannot."""
    return device.type != "mps"


def check_fp8(device: torch.device, kinds: set[torch.dtype]) -> None:
    """Raise ValueError if there is fp8 among the dtypes `kinds` and `device` has none."""
    if not has_fp8(device) and not kinds.isdisjoint(FP8.values()):
        raise ValueError(
            "The weights would be fp8, and Apple's GPUs have no fp8: choose auto as weight_dtype, and a float16, "
            "bfloat16 or GGUF file."
        )


def stored(state_dict: dict, weights: torch.dtype, compute: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the storage dtype of each weight of a plain file; arguments as `dtypes` gives them.

    If weights are fp8, only those of linear layers are; the others are in `compute`.
    """

    def of(name: str, tensor: torch.Tensor) -> torch.dtype:
        if FLOAT32_NAMES.match(name):
            return torch.float32
        return compute if weights.itemsize == 1 and tensor.ndim != 2 else weights

    return {name: of(name, tensor) for name, tensor in state_dict.items()}


def is_quantised(model_config) -> bool:
    """Return whether `configure` found layers for the host's own operations on quantised weights."""
    return bool(model_config.quant_config if compat.reads_markers() else model_config.layer_quant_config)


def restore_float32(module: torch.nn.Module, state_dict: dict) -> None:
    """Restore the float32 weights of `module`, which the host's quantised layers load in their compute dtype."""
    layers = quantisation.marked_layers(state_dict)
    for name, tensor in state_dict.items():
        if FLOAT32_NAMES.match(name) and tensor.is_floating_point() and name.rpartition(".")[0] not in layers:
            comfy.utils.set_attr_param(module, name, tensor.float())


def _file_dtype(state_dict, supported):
    """Return the host's storage dtype for a plain file, preferring the file's own half precision."""
    size, own = comfy.utils.calculate_parameters(state_dict), comfy.utils.weight_dtype(state_dict)
    if own in FP8.values() and not has_fp8(comfy.model_management.get_torch_device()):
        own = None
    supported = sorted(supported, key=lambda dtype: dtype != own)
    return comfy.model_management.unet_dtype(model_params=size, supported_dtypes=supported, weight_dtype=own)


def expect(path: str, kinds: tuple[str, ...], node: str, causal: bool | None = None) -> checkpoint.Inspection:
    """Return `checkpoint.expect` after `check_forms`."""
    found = checkpoint.expect(path, kinds, node, causal)
    check_forms(found.layers)
    return found


def check_forms(layers: dict[str, dict]) -> None:
    """Raise ValueError for layers in a form that this host cannot read. layers: as `checkpoint.Inspection` has them."""
    unknown = {str(form.get("format")) for form in layers.values()} - comfy.quant_ops.QUANT_ALGOS.keys()
    if not compat.reads_markers():
        unknown -= quantisation.FP8_FORMATS
    if unknown:
        raise ValueError(
            f"The file is quantised as {', '.join(sorted(unknown))}, this ComfyUI reads "
            f"{', '.join(comfy.quant_ops.QUANT_ALGOS)}: update ComfyUI, or choose another file."
        )


def _mark(model_config, layers, state_dict):
    """Bring quantised layers into the host's form: 0.3.75 reads a table of them, newer hosts read the markers."""
    check_forms(layers)
    if compat.reads_markers():
        model_config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
        return state_dict
    # 0.3.75 has one fp8 layout, named float8_e4m3fn, which reads both fp8 types but multiplies only in that one.
    e4m3, others = "float8_e4m3fn", {name for name, form in layers.items() if form["format"] != "float8_e4m3fn"}
    model_config.layer_quant_config = {name: {**form, "format": e4m3} for name, form in layers.items()}
    dropped = (quantisation.MARKER, *(f"{name}.input_scale" for name in others))
    return {name: tensor for name, tensor in state_dict.items() if not name.endswith(dropped)}
