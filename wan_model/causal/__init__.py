"""Causal models: a few latent frames at a time, from the keys and values of those before.

Self-Forcing, Causal-Forcing, LongLive and Rolling Forcing. Their checkpoints have the names of a text-to-video model:
what is causal is how it is called.
"""

from .blocks import given_blocks, guided, rollout
from .cache import Cache, cache_bytes, from_frame
from .clip import over_clip
from .history import History, spans
from .prompts import Prompt, parse_prompts
from .window import rolling

__all__ = [
    "Cache",
    "History",
    "Prompt",
    "cache_bytes",
    "from_frame",
    "given_blocks",
    "guided",
    "over_clip",
    "parse_prompts",
    "rolling",
    "rollout",
    "spans",
]
