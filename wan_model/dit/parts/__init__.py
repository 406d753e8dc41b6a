"""What the members of the Wan family add to the network, one file each."""

from .animate import Animate
from .base import Part
from .camera import Camera
from .clip import ClipImages, ClipPositions
from .frame_rate import FrameRate
from .frames import Sources, Subjects
from .humo import HumanMotion
from .pose_branch import PoseBranch
from .reference import Reference
from .s2v import SoundToVideo
from .scail import Scail, ScailMasks
from .vace import Vace
from .voices import Voices
from .wandancer import WanDancer

PARTS: dict[str, type[Part]] = {
    part.name: part
    for part in (
        *(ClipImages, ClipPositions, Reference, Camera, Scail, ScailMasks, WanDancer, Vace),
        *(Animate, FrameRate, SoundToVideo, HumanMotion, Voices),
    )
}
"""Parts with weights, by name, in the order in which they are built and prepared."""

STREAMS: dict[str, type[Part]] = {part.name: part for part in (Subjects, Sources, PoseBranch)}
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
    "ref_latents": "reference pictures",
    "masks": None,
    "motion_latents": "motion latents",
    "subject_latents": "subject latents",
    "context_latents": "context latents",
    "vace_context": "VACE context (it has no VACE blocks)",
    "vace_scale": None,
    "face": "face video",
    "clip_fea_pose": "CLIP vision features of a pose video",
    "context_pose": "prompt for a pose video",
    "pose_strength": None,
    "reference_strength": None,
}

__all__ = ["CONDITIONS", "PARTS", "STREAMS", "Part"]
