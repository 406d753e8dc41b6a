"""What the members of the Wan family add to the network, one file each."""

from .animate import Animate
from .base import Part
from .clip import ClipImages, ClipPositions
from .frame_rate import FrameRate
from .frames import Sources, Subjects
from .pose_branch import PoseBranch
from .reference import Reference
from .vace import Vace

PARTS: dict[str, type[Part]] = {
    part.name: part for part in (ClipImages, ClipPositions, Reference, Vace, Animate, FrameRate)
}
"""Parts with weights, by name, in the order in which they are built and prepared."""

STREAMS: dict[str, type[Part]] = {part.name: part for part in (Subjects, Sources, PoseBranch)}
"""Parts without weights, by name."""

CONDITIONS = {  # arguments of a forward in words; None for one that only modifies another
    "clip_fea": "CLIP vision features",
    "text_as_image": None,
    "ref_latent": "reference image",
    "subject_latents": "subject latents",
    "context_latents": "context latents",
    "vace_context": "VACE context (it has no VACE blocks)",
    "vace_scale": None,
    "pose_latents": "pose video",
    "face": "face video",
    "fps": "frame rate",
    "clip_fea_pose": "CLIP vision features of a pose video",
    "context_pose": "prompt for a pose video",
    "pose_strength": None,
    "reference_strength": None,
}

__all__ = ["CONDITIONS", "PARTS", "STREAMS", "Part"]
