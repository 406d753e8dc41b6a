"""The Wan diffusion transformer."""

from .model import WanDiT, build_dit, dit_config

__all__ = ["WanDiT", "build_dit", "dit_config"]
