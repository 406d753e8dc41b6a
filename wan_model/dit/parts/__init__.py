"""What the members of the Wan family add to the network, one file each."""

from .base import Part
from .clip import ClipImages, ClipPositions
from .frames import Sources, Subjects
from .humo import HumanMotion
from .reference import Reference
from .s2v import SoundToVideo
from .vace import Vace
from .voices import Voices

PARTS: dict[str, type[Part]] = {
    part.name: part for part in (ClipImages, ClipPositions, Reference, Vace, SoundToVideo, HumanMotion, Voices)
}
"""Parts with weights, by name, in the order in which they are built and prepared."""

STREAMS: dict[str, type[Part]] = {part.name: part for part in (Subjects, Sources)}
"""Parts without weights, by name."""

CONDITIONS = {  # arguments of a forward in words; None for one that only modifies another
    "clip_fea": "CLIP vision features",
    "text_as_image": None,
    "ref_latent": "reference image",
    "ref_latents": "reference pictures",
    "audio": "sound",
    "masks": None,
    "motion_latents": "motion latents",
    "pose_latents": "pose video",
    "subject_latents": "subject latents",
    "context_latents": "context latents",
    "vace_context": "VACE context (it has no VACE blocks)",
    "vace_scale": None,
}

__all__ = ["CONDITIONS", "PARTS", "STREAMS", "Part"]
