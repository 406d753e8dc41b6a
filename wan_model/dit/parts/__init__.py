"""The parts that variants add to the network of text to video, one file each."""

from .base import Part
from .camera import Camera
from .clip import ClipImages, ClipPositions
from .frames import Sources, Subjects
from .reference import Reference
from .scail import Scail, ScailMasks
from .vace import Vace
from .wandancer import WanDancer

PARTS: dict[str, type[Part]] = {
    part.name: part for part in (ClipImages, ClipPositions, Reference, Camera, Scail, ScailMasks, WanDancer, Vace)
}
"""Parts with weights, by name, in the order in which they are built and prepared."""

STREAMS: dict[str, type[Part]] = {part.name: part for part in (Subjects, Sources)}
"""Parts without weights, by name."""

CONDITIONS = {  # arguments of a forward in words; None for one that only modifies another
    "clip_fea": "CLIP vision features",
    "text_as_image": None,
    "camera": "camera path",
    "clip_fea_ref": "CLIP vision of a reference picture",
    "frame_rate": None,
    "is_animation": None,
    "audio": "sound",
    "audio_scale": None,
    "pose_latents": "pose video",
    "pose_masks": "masks of the pose video",
    "ref_latent": "reference image",
    "ref_masks": "masks of the reference",
    "subject_latents": "subject latents",
    "context_latents": "context latents",
    "vace_context": "VACE context (it has no VACE blocks)",
    "vace_scale": None,
}

__all__ = ["CONDITIONS", "PARTS", "STREAMS", "Part"]
