"""MODEL: our DiT inside the host's Wan model classes and a real ModelPatcher."""

import os
from collections.abc import Mapping

import comfy.model_management
import comfy.model_patcher
import torch

from ...wan_model import checkpoint
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.model import dit_config
from ...wan_model.weights import ggml
from .. import compat
from ..observe import preview, timing
from . import attention as host_attention
from . import compiled, offload, packed, precision, references
from .classes import configuration, model_class
from .packed_patcher import PackedPatcher

CAUSAL = {"auto": None, "causal": True, "not causal": False}  # choices of whether a network is a causal one


def load(
    path: str,
    dtype: str = "auto",
    vace_path: str | None = None,
    attention: str = "auto",
    compile_blocks: bool = False,
    causal: bool | None = None,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """Return the MODEL of a Wan diffusion file.

    dtype: one of `precision.CHOICES`. vace_path: a file of VACE blocks to add to a text-to-video model.
    attention: one of `attention.CHOICES`. compile_blocks: as `compiled.compile_blocks`. causal: whether the
    network is a causal one, or None to let the file tell. disable_dynamic: as in `build`.
    Raise ValueError for a file that holds no Wan DiT, or none that can be causal, for a file of no VACE blocks or of
    another size, and as `precision.configure`.
    """
    if causal and vace_path is not None:
        raise ValueError("VACE blocks make a model that is not causal: set causal to auto, or vace_name to none.")
    state_dict, found = checkpoint.load_model(path, causal)
    config = found.config
    if vace_path is not None:
        precision.expect(vace_path, checkpoint.VACE_MODULE, "vace_name of WanModelLoader")
        state_dict |= checkpoint.load(vace_path)[0]
        config = dit_config(state_dict)
    # The weights of compiled blocks must not move.
    patcher = build(state_dict, dtype, disable_dynamic or compile_blocks, config)
    patcher.model.source = os.path.basename(path)
    made_by = {"path": path, "dtype": dtype, "vace_path": vace_path, "attention": attention}
    patcher.model.loaded_with = made_by | {"compile_blocks": compile_blocks, "causal": causal}
    patcher.model.mapped = offload.names(patcher.model.diffusion_model, state_dict, "diffusion_model.")
    patcher.model.rollout, patcher.model.preset = found.rollout, found.sampling
    if found.latent_rgb is not None:
        preview.colour(patcher.model, found.latent_rgb)
    preview.watch(patcher)
    timing.watch(patcher)
    host_attention.choose(patcher, attention)
    if compile_blocks:
        compiled.compile_blocks(patcher)
    # A newer host calls this for a second copy: for another device, or with `disable_dynamic`, which it adds.
    patcher.cached_patcher_init = (load, (path, dtype, vace_path, attention, compile_blocks, causal))
    return patcher


def build(
    state_dict: dict, dtype: str = "auto", disable_dynamic: bool = False, config: DiTConfig | None = None
) -> comfy.model_patcher.ModelPatcher:
    """Return the MODEL of weights as `checkpoint.load` gives them; arguments and errors as in `load`.

    disable_dynamic: avoid the patcher of newer hosts that loads each weight when it is used. config: of these weights,
    if it is known already.
    """
    config = config or dit_config(state_dict)
    model_config = configuration(config)
    state_dict = precision.configure(model_config, state_dict, dtype)
    model = model_class(config.variant)(model_config, config)
    network, is_packed = model.diffusion_model, packed.is_packed(state_dict)
    quantised = precision.is_quantised(model_config)
    plain = not (quantised or is_packed)
    place(network, state_dict, precision.stored(state_dict, network.dtype, model.manual_cast_dtype) if plain else None)
    model.workspace = ggml.WORKSPACE if is_packed else 0
    if quantised:
        precision.restore_float32(network, state_dict)
    offload_device = comfy.model_management.unet_offload_device()
    model.to(offload_device)
    patcher = make_patcher(model, comfy.model_management.get_torch_device(), offload_device, disable_dynamic)
    if "ref_latents" in model.reads:
        references.watch(patcher)
    return patcher


def place(module: torch.nn.Module, state_dict: dict, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Make the tensors of `state_dict` the parameters of `module`, in `dtypes` or the dtype that each parameter had.

    A tensor that has this dtype already stays in the memory-mapped file and is not copied. Packed bytes stay packed.
    Raise ValueError for missing and unexpected names.
    """
    wanted = dtypes or {name: parameter.dtype for name, parameter in module.named_parameters()}
    tensors = {
        name: tensor if tensor.dtype == torch.uint8 else tensor.to(wanted.get(name, tensor.dtype))
        for name, tensor in state_dict.items()
    }
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(
            f"The file lacks {len(missing)} weights of this model {missing[:3]} and has {len(unexpected)} that it does "
            f"not know {unexpected[:3]}: download it again, or choose another file."
        )
    module.requires_grad_(False)


def make_patcher(model, device, offload_device, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Return the host's patcher around `model`; disable_dynamic as in `build`."""
    compat.archive_dtypes(model)
    patcher_class = compat.patcher_class(dynamic=not disable_dynamic)
    is_plain = patcher_class is comfy.model_patcher.ModelPatcher
    if packed.holds_packed(model) or (is_plain and packed.holds_quantised(model)):
        patcher_class = PackedPatcher
    elif is_plain:
        patcher_class = offload.MappedPatcher
    return patcher_class(model, load_device=device, offload_device=offload_device)
