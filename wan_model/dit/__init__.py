"""The Wan diffusion transformer."""

from .config import DiTConfig
from .model import WanDiT, build_dit, dit_config
from .runtime import Runtime

__all__ = ["DiTConfig", "Runtime", "WanDiT", "build_dit", "dit_config"]
