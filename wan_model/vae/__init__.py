"""The causal VAEs of Wan 2.1 and 2.2 as streams: any length in fixed memory, exact tiles."""

from .model import WanVAE, build_vae, make_vae, vae_config
from .stream import Stream
from .tiling import TilePlan

__all__ = ["Stream", "TilePlan", "WanVAE", "build_vae", "make_vae", "vae_config"]
