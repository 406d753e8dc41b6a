"""The host's Wan model classes with our DiT in place of the host's own.

The host's classes still interpret conditionings (concat latents, masks, VACE frames, given first frames), so its Wan
nodes, samplers, LoRA loader and offloading work on our model as on its own.
"""

import functools
import logging

import comfy.conds
import comfy.model_base
import torch

from ...wan_model.dit.config import DiTConfig
from ...wan_model.variants import PATCH, TIME_STRIDE, VARIANTS
from ...wan_model.variants.distilled import Preset
from ...wan_model.variants.models import Host
from ...wan_model.variants.rollout import Rollout
from .. import compat
from . import conditions, memory, packed, precision, references
from .causal import CausalDiT
from .dit import HostDiT

BLOCKS = "wan_blocks"  # entry of a conditioning: the `memory.Blocks` of a causal run, for the memory that it needs


class HostModel:
    """Mixin over a Wan model class of the host that puts our DiT in place of the host's own.

    source: name of the model's file. loaded_with: the arguments of `loading.load`, None if it was not made so.
    workspace: temporary bytes for unpacking its weights. rollout, preset: how the file's header says that it is run in
    blocks, and sampled. devices: that share each forward of the run that goes on.
    """

    source = "a Wan model"
    loaded_with: dict | None = None
    workspace = 0
    rollout: Rollout | None = None
    preset: Preset | None = None
    devices = 1

    def __init__(self, model_config, config: DiTConfig):
        def unet_model(*, operations, dtype, **_):  # on the meta device: `build` assigns the file's tensors
            device = None if precision.is_quantised(model_config) else "meta"  # quantised layers load to this device
            network = CausalDiT if config.facts.causal else HostDiT
            return network(config, ops=operations, dtype=dtype, device=device)

        comfy.model_base.BaseModel.__init__(self, model_config, comfy.model_base.ModelType.FLOW, unet_model=unet_model)
        self.image_to_video = config.facts.host.image_to_video

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.manual_cast_dtype or self.get_dtype()

    @property
    def reads(self) -> frozenset[str]:
        """The conditions that the network reads, by our names."""
        return self.diffusion_model.reads

    def extra_conds(self, **kwargs):
        """Return the network's arguments for one conditioning, without conditions that it does not read."""
        conds = super().extra_conds(**kwargs)
        if "clip_fea" not in self.reads and conds.pop("clip_fea", None) is not None:
            logging.warning("%s does not read CLIP vision: the output of WanClipVision is ignored.", self.source)
        if "context_latents" in self.reads and (sources := kwargs.get("context_latents")) is not None:
            conds["context_latents"] = comfy.conds.CONDList([self.process_latent_in(source) for source in sources])
        if "camera" in self.reads and (rays := kwargs.get("camera_conditions")) is not None:
            conds["camera_conditions"] = comfy.conds.CONDRegular(rays)
        return references.conditions(self, conds, kwargs) if "ref_latents" in self.reads else conds

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=()):
        """Return a condition of the whole clip for one of the host's context windows, or None for the host's own way.

        The host would give every window the whole sound of an S2V clip.
        """
        if cond_key == "audio_embed" and "motion_latents" in self.reads:
            heard = [TIME_STRIDE * frame + step for frame in windowed(window) for step in range(TIME_STRIDE)]
            return cond_value._copy_with(cond_value.cond[..., heard].to(device))
        return super().resize_cond_for_context_window(
            cond_key, cond_value, window, x_in, device, retain_index_list=retain_index_list
        )

    def extra_conds_shapes(self, **kwargs):
        """Return the shapes of one conditioning's arguments, from which the host estimates the memory of a run."""
        shapes = super().extra_conds_shapes(**kwargs)
        if (behind := kwargs.get("time_dim_concat")) is not None:
            shapes["time_dim_concat"] = list(behind.shape)
        if "pose_latents" in self.reads and (pose := kwargs.get("pose_video_latent")) is not None:
            shapes.setdefault("pose_latents", list(pose.shape))
        if "face" in self.reads and (face := kwargs.get("face_video_pixels")) is not None:
            shapes["face_pixel_values"] = list(face.shape)
        if "vace_context" in self.reads:  # an empty one where none is given
            shapes["vace_context"] = [1, len(kwargs.get("vace_frames") or [None])]
        if (blocks := kwargs.get(BLOCKS)) is not None:
            shapes[BLOCKS] = blocks
        return shapes

    def state_dict_for_saving(self, *arguments, **options):
        """Return the tensors that the host saves, as `packed.with_values` gives them."""
        saved = super().state_dict_for_saving(*arguments, **options)
        return packed.with_values(self.diffusion_model, saved, self.compute_dtype)

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes to keep free for latents of `input_shape` (B, C, F, H, W): `memory.needed`."""
        told = dict(cond_shapes or {})
        blocks, shapes = told.pop(BLOCKS, [None])[0], conditions.shapes(told)
        config, dtype = self.diffusion_model.config, self.compute_dtype
        return memory.needed(config, input_shape, dtype, shapes, blocks, self.devices) + self.workspace


def windowed(window) -> list[int]:
    """Return the latent frames that the host gives the network for a context window, the one before it included."""
    before = getattr(window, "causal_anchor_index", None)
    return [*([] if before is None or before < 0 else [before]), *window.index_list]


def configuration(config: DiTConfig):
    """Return the host's configuration object of a model; raise ValueError if this host does not know the variant."""
    host_class = config_class(config.variant)
    sizes = {
        "image_model": "wan2.1",
        "model_type": config.facts.host.type,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "in_dim": config.in_dim,
        "out_dim": config.out_dim,
        "text_dim": config.text_dim,
        "patch_size": PATCH,
    }
    return host_class(sizes)


def config_class(variant: str) -> type:
    """Return the host's configuration class of a variant."""
    return _known(compat.config_class(_names(variant).config), variant)


@functools.cache
def model_class(variant: str) -> type:
    """Return the host's model class of a variant with `HostModel` mixed in; raise ValueError if it has none."""
    name = _names(variant).model
    return type(name, (HostModel, _known(compat.model_class(name), variant)), {})


def _names(variant: str) -> Host:
    """Return the names of a variant's classes in this host."""
    names = VARIANTS[variant].host
    return names if names.instead is None or compat.model_class(names.model) else names.instead


def _known(found: type | None, variant: str) -> type:
    if found is None:
        raise ValueError(f"This ComfyUI does not know {VARIANTS[variant].title} models of Wan: update ComfyUI.")
    return found
