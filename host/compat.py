"""Every probe of what this ComfyUI can do, one function each; nothing else in the pack asks.

Abilities are probed, not versions, and names are looked up in the call: a newer host rebinds some of them after start.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import comfy.ldm.wan.model as wan
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.quant_ops
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy_api.latest import io

PATCH_MARKS = {  # patch of transformer_options -> the method that calls it on a newer host, and a constant in its code
    "attn1_patch": ("WanSelfAttention", "forward", "attn1_patch"),
    "attn2_patch": ("WanAttentionBlock", "forward", "attn2_patch"),
    "double_block": ("WanModel", "forward_orig", "img_offset"),
}


# Models


def model_class(name: str) -> type | None:
    """Return the class `name` of comfy.model_base, or None on a host that is older than this variant of Wan."""
    return getattr(comfy.model_base, name, None)


def config_class(name: str) -> type | None:
    """Return the class `name` of comfy.supported_models, or None on a host that is older than this variant of Wan."""
    return getattr(comfy.supported_models, name, None)


def wan_patches() -> frozenset[str]:
    """Return the names of the patches in `PATCH_MARKS` that the host's own Wan network calls; 0.3.75 calls none."""
    functions = {name: getattr(getattr(wan, owner), method) for name, (owner, method, _) in PATCH_MARKS.items()}
    return frozenset(name for name, f in functions.items() if PATCH_MARKS[name][2] in str(f.__code__.co_consts))


def is_training() -> bool:
    """Return whether the host is training a LoRA; 0.3.75 does not say so."""
    return getattr(comfy.model_management, "in_training", False)


def kitchen(*backends: str):
    """Return comfy-kitchen if it has `adaln` and one of `backends` works here, else None.

    0.3.75 has no comfy-kitchen, and some later hosts have one without `adaln`.
    """
    package = getattr(comfy.quant_ops, "ck", None)
    return package if hasattr(package, "adaln") and any(map(package.registry.is_available, backends)) else None


# Memory


def patcher_class(dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """Return the patcher class for a model; a newer host may have one that loads each weight when it is used.

    dynamic: whether that one is wanted. The host binds it to CoreModelPatcher when it starts, after our import.
    """
    plain = comfy.model_patcher.ModelPatcher
    return getattr(comfy.model_patcher, "CoreModelPatcher", plain) if dynamic else plain


def is_dynamic(patcher) -> bool:
    """Return whether a patcher loads and unloads weights by itself; 0.3.75 has no such patcher."""
    return getattr(patcher, "is_dynamic", lambda: False)()


def archive_dtypes(model: torch.nn.Module) -> None:
    """Note the dtype of each weight for the dynamic patcher of a newer host."""
    getattr(comfy.model_management, "archive_model_dtypes", lambda _: None)(model)


def free_memory(device: torch.device) -> int:
    """Return the free bytes on `device`; a newer host adds the weights that its dynamic patchers can unload."""
    of_patcher = getattr(comfy.model_patcher.ModelPatcher, "get_free_memory", None)  # reads nothing of the patcher
    return int(of_patcher(None, device) if of_patcher else comfy.model_management.get_free_memory(device))


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Keep the host from raising where the user has cancelled: its operations ask for themselves, each on its own.

    `processing_interrupted` still tells. It holds for the whole process, so it must be short.
    """
    management, name = comfy.model_management, "throw_exception_if_processing_interrupted"
    raising = getattr(management, name)
    setattr(management, name, lambda: None)
    try:
        yield
    finally:
        setattr(management, name, raising)


def on_device(device: torch.device) -> AbstractContextManager:
    """Return the context in which a newer host uses `device`, which may not be the first GPU."""
    return getattr(comfy.model_management, "cuda_device_context", nullcontext)(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the host takes `error` for one of memory; a newer host then clears the error of the device."""
    known = getattr(comfy.model_management, "is_oom", None)
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def is_accelerator_error(error: RuntimeError) -> bool:
    """Return whether `error` is torch's AcceleratorError, which the torch of an older host does not have."""
    return isinstance(error, getattr(torch, "AcceleratorError", ()))


# Quantised weights


def reads_markers() -> bool:
    """Return whether the host reads the marker beside each quantised layer; 0.3.75 reads a table in the config."""
    return not hasattr(comfy.supported_models_base.BASE, "layer_quant_config")


def convert_quantised(state_dict: dict, metadata: dict) -> dict | None:
    """Return a text encoder's quantised weights in the newest form; None on 0.3.75, which reads fp8_scaled alone."""
    convert = getattr(comfy.utils, "convert_old_quants", None)
    return convert(state_dict, metadata=metadata)[0] if convert else None


# Images, video, text and nodes


def image_dtype() -> torch.dtype:
    """Return the dtype of the host's images: float32 on 0.3.75, an option of newer hosts."""
    return getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()


def trim_window(video) -> tuple[float, float]:
    """Return start and duration in seconds of the part of a VIDEO in use, 0.0 for all; 0.3.75 does not trim."""
    return getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()


def make_clip(target, state_dict: dict, **options) -> comfy.sd.CLIP:
    """Return the host's CLIP of `target` with the weights `state_dict`, without options that the host does not know.

    0.3.75 loads the weights in a second step and knows no `disable_dynamic`.
    """
    known = inspect.signature(comfy.sd.CLIP.__init__).parameters
    options["state_dict"] = [state_dict]
    clip = comfy.sd.CLIP(target, **{name: value for name, value in options.items() if name in known})
    if "state_dict" not in known:
        clip.load_sd(state_dict)
    return clip


def has_search_aliases() -> bool:
    """Return whether a node's schema can list other words for the editor's search; that of 0.3.75 cannot."""
    return any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema))
