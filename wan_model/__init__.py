"""The Wan 2.1 and 2.2 models and their mathematics, on torch alone."""

from . import causal, checkpoint, solvers
from .dit.model import WanDiT, build_dit, dit_config
from .vae import WanVAE, build_vae

__all__ = ["WanDiT", "WanVAE", "build_dit", "build_vae", "causal", "checkpoint", "dit_config", "solvers"]
