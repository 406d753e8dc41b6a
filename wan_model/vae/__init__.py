"""The causal VAEs of Wan 2.1 and 2.2 as streams: any length in constant memory, exact tiles."""

from .config import VAEConfig
from .model import WanVAE, build_vae, lay_out, make_vae, vae_config
from .past import Past, clip_of, from_tensors
from .plan import fit_decode, fit_encode, plan_decode, plan_encode
from .runtime import CPU, Kernels, Runtime
from .stream import Stream
from .tiling import TilePlan

__all__ = [
    "CPU",
    "Kernels",
    "Past",
    "Runtime",
    "Stream",
    "TilePlan",
    "VAEConfig",
    "WanVAE",
    "build_vae",
    "clip_of",
    "fit_decode",
    "fit_encode",
    "from_tensors",
    "lay_out",
    "make_vae",
    "plan_decode",
    "plan_encode",
    "vae_config",
]
