"""The arguments that the host's model classes hand to their network, by the names that `wan_model` has for them."""

import math
from collections.abc import Mapping, Sequence

import torch

from ...wan_model.variants import PATCH

NAMES = {
    "audio_embed": "audio",
    "clip_fea": "clip_fea",
    "context_latents": "context_latents",
    "control_video": "pose_latents",
    "reference_latent": "ref_latent",
    "reference_latents": "ref_latents",
    "reference_motion": "motion_latents",
    "time_dim_concat": "subject_latents",
    "vace_context": "vace_context",
    "vace_strength": "vace_scale",
}


def given(arguments: Mapping[str, object], reads: frozenset[str]) -> dict[str, object]:
    """Return the conditions among the host's `arguments` that a network reads, by our names."""
    found = {ours: arguments[theirs] for theirs, ours in NAMES.items() if theirs in arguments and ours in reads}
    if "ref_latent" in found and found["ref_latent"].ndim == 4:  # one frame, without an axis for it
        found["ref_latent"] = found["ref_latent"].unsqueeze(2)
    return found


def shapes_of(conditions: Mapping[str, object]) -> dict[str, Sequence]:
    """Return the shape of each condition that is a tensor, and the shapes of one that is a list of them."""
    tensors = {name: value.shape for name, value in conditions.items() if isinstance(value, torch.Tensor)}
    lists = {name: value for name, value in conditions.items() if isinstance(value, list)}
    return tensors | {name: [t.shape for t in value if isinstance(t, torch.Tensor)] for name, value in lists.items()}


def shapes(cond_shapes: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Sequence]:
    """Return the largest shape of each condition by our name, from the shapes that the host collects of a run."""
    found = {NAMES.get(theirs, theirs): theirs for theirs, given in cond_shapes.items() if given}
    largest = {ours: max(cond_shapes[theirs], key=math.prod) for ours, theirs in found.items()}
    if "ref_latent" in largest:
        largest["ref_latent"] = _as_latent(largest["ref_latent"])
    if "context_latents" in largest:  # the host counts the values of all sources together
        largest["context_latents"] = [_as_latent(largest["context_latents"])]
    return largest


def _as_latent(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape (B, C, F, H, W) of as many values for one that the host gives without frames or sides."""
    if len(shape) == 3:
        batch, channels, values = shape
        return batch, channels, 1, PATCH[1], values // PATCH[1]
    return tuple(shape) if len(shape) == 5 else (*shape[:2], 1, *shape[2:])
