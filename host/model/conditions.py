"""The arguments that the host's model classes hand to their network, by the names that `wan_model` has for them."""

import math
from collections.abc import Mapping, Sequence

import torch

from ...wan_model.variants import PATCH

NAMES = {
    "clip_fea": "clip_fea",
    "clip_fea_pose": "clip_fea_pose",
    "context_latents": "context_latents",
    "context_pose": "context_pose",
    "face_pixel_values": "face",
    "pose_latents": "pose_latents",
    "pose_strength": "pose_strength",
    "reference_strength": "reference_strength",
    "reference_latent": "ref_latent",
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
    if len(largest.get("ref_latent", ())) == 4:
        batch, channels, *sides = largest["ref_latent"]
        largest["ref_latent"] = (batch, channels, 1, *sides)
    if "context_latents" in largest:  # the host counts the values of all sources together
        batch, channels, values = largest["context_latents"]
        largest["context_latents"] = [(batch, channels, 1, PATCH[1], values // PATCH[1])]
    return largest
