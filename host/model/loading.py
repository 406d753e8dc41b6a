"""MODEL: our DiT inside the host's Wan model classes and a real ModelPatcher.

The host's classes stay in charge of what conditionings mean (concat latents, masks, VACE frames, held frames), so its
own Wan nodes, samplers, LoRA loader and offloading work on our model as on its own.
"""

import logging
import os
from collections.abc import Mapping

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from ...wan_model import checkpoint
from ...wan_model.dit.model import dit_config
from ...wan_model.variants import DiTConfig
from ...wan_model.weights import ggml
from ..observe import preview, timing
from . import attention as host_attention
from . import compiled, memory, offload, packed, precision, text
from .dit import HostDiT
from .packed_patcher import PackedPatcher


class HostModel:
    """Mixed into a Wan model class of the host: it holds our DiT in the place of the host's own.

    source: name of the file that the model came from. workspace: bytes that its weights take while they are unpacked.
    """

    source = "a Wan model"
    workspace = 0

    def __init__(self, model_config, config):
        def unet_model(*, operations, dtype, **_):  # without memory: `build` gives it the file's tensors
            device = None if precision.is_quantised(model_config) else "meta"  # quantised layers load to this device
            return HostDiT(config, ops=operations, dtype=dtype, device=device)

        comfy.model_base.BaseModel.__init__(self, model_config, comfy.model_base.ModelType.FLOW, unet_model=unet_model)
        self.image_to_video = config.in_dim > config.out_dim or config.variant == "ti2v"

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.manual_cast_dtype or self.get_dtype()

    def extra_conds(self, **kwargs):
        """What the host hands to the network for one conditioning, without the CLIP tokens where it reads none."""
        conds = super().extra_conds(**kwargs)
        if "c_crossattn" in conds:
            conds["c_crossattn"] = text.without_padding(conds["c_crossattn"].cond)
        if not self.diffusion_model.config.image_tokens and conds.pop("clip_fea", None) is not None:
            logging.warning("%s reads no CLIP vision: what WanClipVision gave is ignored.", self.source)
        return conds

    def extra_conds_shapes(self, **kwargs):
        """Shapes of what one conditioning adds to the clip: all that the host knows when it makes room for a run."""
        shapes = super().extra_conds_shapes(**kwargs)
        if (behind := kwargs.get("time_dim_concat")) is not None:
            shapes["time_dim_concat"] = list(behind.shape)
        if self.diffusion_model.config.vace_layers:
            shapes["vace_context"] = [1, len(kwargs.get("vace_frames") or [None])]  # an empty one where none is given
        return shapes

    def state_dict_for_saving(self, *arguments, **options):
        """What the host writes to a file: `packed.with_values`."""
        saved = super().state_dict_for_saving(*arguments, **options)
        return packed.with_values(self.diffusion_model, saved, self.compute_dtype)

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes to keep free for latents of `input_shape` (B, C, F, H, W): `memory.needed`."""
        shapes = cond_shapes or {}
        behind = max((shape[2] for shape in shapes.get("time_dim_concat", ())), default=0)  # frames behind the clip
        contexts = max((shape[1] for shape in shapes.get("vace_context", ())), default=0)
        batch, channels, frames, *size = input_shape
        shape = (batch, channels, frames + behind, *size)
        return memory.needed(self.diffusion_model.config, shape, self.compute_dtype, contexts) + self.workspace


class Wan21(HostModel, comfy.model_base.WAN21):
    """Text, image and first-last-frame to video, 16 latent channels."""


class Vace(HostModel, comfy.model_base.WAN21_Vace):
    """Text to video with control contexts."""


class TI2V(HostModel, comfy.model_base.WAN22):
    """Wan 2.2 5B: 48 latent channels, a timestep for every latent frame."""


CLASSES = {  # variant -> the model class and the host's configuration of it
    "t2v": (Wan21, comfy.supported_models.WAN21_T2V),
    "i2v": (Wan21, comfy.supported_models.WAN21_I2V),
    "flf2v": (Wan21, comfy.supported_models.WAN21_I2V),
    "i2v_a14b": (Wan21, comfy.supported_models.WAN21_I2V),
    "vace": (Vace, comfy.supported_models.WAN21_Vace),
    "ti2v": (TI2V, comfy.supported_models.WAN22_T2V),
}


def load(
    path: str,
    dtype: str = "auto",
    vace_path: str | None = None,
    attention: str = "auto",
    compile_blocks: bool = False,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a Wan diffusion file.

    dtype: one of `precision.CHOICES`. vace_path: a file with the VACE blocks alone, which a text-to-video model gets.
    attention: one of `attention.CHOICES`. compile_blocks: as `compiled.compile_blocks`. disable_dynamic: as in `build`.
    Raises ValueError for a file that holds no Wan DiT, for blocks of another size, and as `precision.configure`.
    """
    state_dict, found = checkpoint.load_model(path)
    config = found.config
    if vace_path is not None:
        state_dict |= checkpoint.load(vace_path)[0]
        config = dit_config(state_dict)
    # A compiled block's weights stay put.
    patcher = build(state_dict, dtype, disable_dynamic or compile_blocks, config)
    patcher.model.source = os.path.basename(path)
    patcher.model.mapped = offload.names(patcher.model.diffusion_model, state_dict, "diffusion_model.")
    preview.watch(patcher)
    timing.watch(patcher)
    host_attention.choose(patcher, attention)
    if compile_blocks:
        compiled.compile_blocks(patcher)
    # How a newer host makes a second copy: for another device, or with `disable_dynamic`, which it adds.
    patcher.cached_patcher_init = (load, (path, dtype, vace_path, attention, compile_blocks))
    return patcher


def build(
    state_dict: dict, dtype: str = "auto", disable_dynamic: bool = False, config: DiTConfig | None = None
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of weights as `checkpoint.load` gives them; arguments and errors as in `load`.

    disable_dynamic: never the patcher of newer hosts that brings each weight to the device when it is used. config: of
    these weights, where it is known already.
    """
    config = config or dit_config(state_dict)
    model_class, host_config = CLASSES[config.variant]
    model_config = host_config(host_sizes(config))
    state_dict = precision.configure(model_config, state_dict, dtype)
    model = model_class(model_config, config)
    network, is_packed = model.diffusion_model, packed.is_packed(state_dict)
    quantised = precision.is_quantised(model_config)
    plain = not (quantised or is_packed)
    place(network, state_dict, precision.stored(state_dict, network.dtype, model.manual_cast_dtype) if plain else None)
    model.workspace = ggml.WORKSPACE if is_packed else 0
    if quantised:
        precision.restore_float32(network, state_dict)
    offload_device = comfy.model_management.unet_offload_device()
    model.to(offload_device)
    return make_patcher(model, comfy.model_management.get_torch_device(), offload_device, disable_dynamic)


def place(module: torch.nn.Module, state_dict: dict, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Makes the tensors of `state_dict` the parameters of `module`, in `dtypes` or the dtype that each parameter had.

    A tensor that has it already stays where it is, in the memory-mapped file: loading costs no second copy. Packed
    bytes stay as they are.
    Raises ValueError for a name that is missing or left over.
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
    """The host's patcher around `model`. Looked up late: a newer host rebinds its name to its dynamic patcher."""
    # That one brings weights to the device in the types that are noted here.
    getattr(comfy.model_management, "archive_model_dtypes", lambda _: None)(model)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    is_plain = patcher_class is comfy.model_patcher.ModelPatcher
    if packed.holds_packed(model) or (is_plain and packed.holds_quantised(model)):
        patcher_class = PackedPatcher
    elif is_plain:
        patcher_class = offload.MappedPatcher
    return patcher_class(model, load_device=device, offload_device=offload_device)


def host_sizes(config) -> dict:
    """What the host's own code reads from a Wan model's configuration."""
    return {
        "image_model": "wan2.1",
        "model_type": {"vace": "vace", "t2v": "t2v", "ti2v": "t2v"}.get(config.variant, "i2v"),
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "in_dim": config.in_dim,
        "out_dim": config.out_dim,
        "text_dim": config.text_dim,
        "patch_size": (1, 2, 2),
    }
