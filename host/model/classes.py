"""The host's Wan model classes with our DiT in the place of the host's own.

The host's classes stay in charge of what conditionings mean (concat latents, masks, VACE frames, held frames), so its
own Wan nodes, samplers, LoRA loader and offloading work on our model as on its own.
"""

import functools
import logging

import comfy.conds
import comfy.model_base
import comfy.supported_models
import torch

from ...wan_model.dit.config import DiTConfig
from ...wan_model.variants import PATCH, VARIANTS
from ...wan_model.variants.models import Host
from . import conditions, memory, packed, precision, references
from .causal import CausalDiT
from .dit import HostDiT

NETWORKS = {"causal": CausalDiT}
"""Variants whose network answers to more of the host's calls than a plain one."""


class HostModel:
    """Mixed into a Wan model class of the host: it holds our DiT in the place of the host's own.

    source: name of the file that the model came from. workspace: bytes that its weights take while they are unpacked.
    """

    source = "a Wan model"
    workspace = 0

    def __init__(self, model_config, config: DiTConfig):
        def unet_model(*, operations, dtype, **_):  # without memory: `build` gives it the file's tensors
            device = None if precision.is_quantised(model_config) else "meta"  # quantised layers load to this device
            return NETWORKS.get(config.variant, HostDiT)(config, ops=operations, dtype=dtype, device=device)

        comfy.model_base.BaseModel.__init__(self, model_config, comfy.model_base.ModelType.FLOW, unet_model=unet_model)
        self.image_to_video = config.facts.host.image_to_video

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.manual_cast_dtype or self.get_dtype()

    @property
    def reads(self) -> frozenset[str]:
        """The conditions that the network reads, by our names."""
        return self.diffusion_model.reads

    def extra_conds(self, **kwargs):
        """What the host hands to the network for one conditioning, without the CLIP tokens where it reads none."""
        conds = super().extra_conds(**kwargs)
        if "clip_fea" not in self.reads and conds.pop("clip_fea", None) is not None:
            logging.warning("%s reads no CLIP vision: what WanClipVision gave is ignored.", self.source)
        if "context_latents" in self.reads and (sources := kwargs.get("context_latents")) is not None:
            conds["context_latents"] = comfy.conds.CONDList([self.process_latent_in(source) for source in sources])
        if "camera" in self.reads and (rays := kwargs.get("camera_conditions")) is not None:
            conds["camera_conditions"] = comfy.conds.CONDRegular(rays)
        return references.conditions(self, conds, kwargs) if "ref_latents" in self.reads else conds

    def extra_conds_shapes(self, **kwargs):
        """Shapes of what one conditioning adds to the clip: all that the host knows when it makes room for a run."""
        shapes = super().extra_conds_shapes(**kwargs)
        if (behind := kwargs.get("time_dim_concat")) is not None:
            shapes["time_dim_concat"] = list(behind.shape)
        if (pose := kwargs.get("pose_video_latent")) is not None:
            shapes.setdefault("pose_latents", list(pose.shape))
        if (face := kwargs.get("face_video_pixels")) is not None:
            shapes["face_pixel_values"] = list(face.shape)
        if "vace_context" in self.reads:  # an empty one where none is given
            shapes["vace_context"] = [1, len(kwargs.get("vace_frames") or [None])]
        return shapes

    def state_dict_for_saving(self, *arguments, **options):
        """What the host writes to a file: `packed.with_values`."""
        saved = super().state_dict_for_saving(*arguments, **options)
        return packed.with_values(self.diffusion_model, saved, self.compute_dtype)

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes to keep free for latents of `input_shape` (B, C, F, H, W): `memory.needed`."""
        shapes, network = conditions.shapes(cond_shapes or {}), self.diffusion_model
        forward = memory.needed(network.config, input_shape, self.compute_dtype, shapes)
        return forward + network.kept_bytes(input_shape, self.compute_dtype) + self.workspace


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
    return _of_host(comfy.supported_models, _names(variant).config, variant)


@functools.cache
def model_class(variant: str) -> type:
    """Return the host's model class of a variant with `HostModel` mixed in; raise ValueError if it has none."""
    name = _names(variant).model
    return type(name, (HostModel, _of_host(comfy.model_base, name, variant)), {})


def _names(variant: str) -> Host:
    """Return what this host calls the classes of a variant."""
    names = VARIANTS[variant].host
    return names if names.instead is None or hasattr(comfy.model_base, names.model) else names.instead


def _of_host(module, name: str, variant: str) -> type:
    found = getattr(module, name, None)
    if found is None:
        raise ValueError(f"This ComfyUI does not know {VARIANTS[variant].title} models of Wan: update ComfyUI.")
    return found
