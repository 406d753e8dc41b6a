"""The arguments that the host's model classes hand to their network, by the names that `wan_model` has for them."""

import math
from collections.abc import Mapping, Sequence

import torch

from ...wan_model.variants import PATCH

NAMES = {
    "audio_embed": "audio",
    "audio_inject_scale": "audio_scale",
    "camera_conditions": "camera",
    "clip_fea": "clip_fea",
    "clip_fea_pose": "clip_fea_pose",
    "clip_fea_ref": "clip_fea_ref",
    "context_latents": "context_latents",
    "context_pose": "context_pose",
    "control_video": "pose_latents",
    "face_pixel_values": "face",
    "fps": "frame_rate",
    "pose_latents": "pose_latents",
    "pose_strength": "pose_strength",
    "ref_mask_flag": "is_animation",
    "ref_mask_latents": "ref_masks",
    "reference_latent": "ref_latent",
    "reference_latents": "ref_latents",
    "reference_motion": "motion_latents",
    "reference_strength": "reference_strength",
    "sam_latents": "pose_masks",
    "time_dim_concat": "subject_latents",
    "vace_context": "vace_context",
    "vace_strength": "vace_scale",
}


LATENTS = frozenset(  # conditions of shape (B, C, F, H, W)
    ("context_latents", "motion_latents", "pose_latents", "pose_masks", "ref_latent", "ref_latents", "ref_masks")
)


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
    largest |= {ours: _of_latent(largest[ours]) for ours in LATENTS & largest.keys()}
    if "context_latents" in largest:
        largest["context_latents"] = [largest["context_latents"]]
    return largest


def _of_latent(shape: Sequence[int]) -> Sequence[int]:
    """Return the shape (B, C, F, H, W) where the host leaves out the axis of a single frame, or counts all values."""
    if len(shape) == 4:
        return (*shape[:2], 1, *shape[2:])
    if len(shape) == 3:
        return (*shape[:2], 1, PATCH[1], shape[2] // PATCH[1])
    return shape
