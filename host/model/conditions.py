"""The arguments that the host's model classes hand to their network, by the names that `wan_model` has for them."""

import math
from collections.abc import Mapping, Sequence

NAMES = {
    "clip_fea": "clip_fea",
    "context_latents": "context_latents",
    "time_dim_concat": "subject_latents",
    "vace_context": "vace_context",
    "vace_strength": "vace_scale",
}


def given(arguments: Mapping[str, object], reads: frozenset[str]) -> dict[str, object]:
    """Return the conditions among the host's `arguments` that a network reads, by our names."""
    return {ours: arguments[theirs] for theirs, ours in NAMES.items() if theirs in arguments and ours in reads}


def shapes(cond_shapes: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Sequence[int]]:
    """Return the largest shape of each condition by our name, from the shapes that the host collects of a run."""
    found = {NAMES.get(theirs, theirs): theirs for theirs, given in cond_shapes.items() if given}
    return {ours: max(cond_shapes[theirs], key=math.prod) for ours, theirs in found.items()}
