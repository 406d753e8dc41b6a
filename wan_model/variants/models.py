"""The members of the Wan family: how a file of each is recognised, and the settings that its authors use.

Sources: `wan/configs/*.py` of Wan 2.1 and 2.2, `wan/modules/*.py`, and the README files of the models.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .families import WAN21, WAN22, Family

CAUSAL = "causal_ar"  # in the header of a model that makes a clip in blocks of frames


@dataclass(frozen=True)
class Sampling:
    """The authors' sampling settings.

    shift: time shift of the noise schedule. guidance: classifier-free guidance scale. frames: of the training clips.
    boundary: sigma below which the low-noise expert of a pair takes over; None for models that come alone.
    low_noise_guidance: guidance of that expert.
    """

    shift: float = 5.0
    steps: int = 50
    guidance: float = 5.0
    frames: int = 81
    boundary: float | None = None
    low_noise_guidance: float | None = None


@dataclass(frozen=True)
class Host:
    """How ComfyUI knows a variant.

    model: class of `comfy.model_base`. config: class of `comfy.supported_models`. type: its model_type. image_to_video:
    the argument that this configuration gives the model class. instead: for a ComfyUI that lacks the two.
    """

    model: str = "WAN21"
    config: str = "WAN21_T2V"
    type: str = "t2v"
    image_to_video: bool = False
    instead: "Host | None" = None


@dataclass(frozen=True)
class Variant:
    """One row of `VARIANTS`.

    title: for a sentence. in_dim: channels into the patch embedding. parts: names of the parts (`dit.parts`) that every
    checkpoint of it has; optional: those that some have; streams: parts without weights. mark: the entry of the file
    header's transformer config that tells it from a variant with the same weights. causal: whether it makes a clip in
    blocks of frames, each against a cache of the frames before. sampling: of a model that comes alone; experts: of a
    pair of experts, for a variant whose checkpoints may be one. own_frame_rate: of its training clips, where that is
    not the family's. continues: how it is given the end of a clip that it goes on with: as its "image" latent, "held"
    in the latent itself, a "history" of several frames too, as a "vace" context, as the motion before its "sound", or
    in front of its "pose" video.
    """

    title: str
    family: Family = WAN21
    in_dim: int = 16
    parts: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    streams: tuple[str, ...] = ()
    mark: tuple[str, object] | None = None
    causal: bool = False
    host: Host = field(default_factory=Host)
    sampling: Sampling = field(default_factory=Sampling)
    experts: Sampling | None = None
    own_frame_rate: int | None = None
    continues: str | None = None

    @property
    def frame_rate(self) -> int:
        """Frames a second of the training clips."""
        return self.own_frame_rate or self.family.frame_rate

    @property
    def marks(self) -> frozenset[str]:
        """The values of model_type, and names of true entries, in the headers of its files."""
        told = () if self.mark is None else (value if isinstance(value := self.mark[1], str) else self.mark[0],)
        return frozenset((self.host.type, *told))

    @property
    def takes_image(self) -> bool:
        """Whether a given image goes into the patch embedding beside the latent."""
        return self.in_dim > self.family.channels


I2V = Host(config="WAN21_I2V", type="i2v", image_to_video=True)
VARIANTS = {
    "t2v": Variant(
        "text to video",
        streams=("subjects", "sources"),
        experts=Sampling(shift=12.0, steps=40, guidance=4.0, boundary=0.875, low_noise_guidance=3.0),
    ),
    "causal": Variant(
        "text to video in blocks of frames, causal",
        mark=(CAUSAL, True),
        causal=True,
        host=Host("WAN21_CausalAR", "WAN21_CausalAR_T2V", instead=Host()),
        sampling=Sampling(steps=4, guidance=1.0),
    ),
    "i2v": Variant(
        "image to video",
        in_dim=36,
        parts=frozenset({"clip"}),
        host=I2V,
        sampling=Sampling(shift=3.0, steps=40),
        continues="image",
    ),
    "flf2v": Variant(
        "first and last frame to video",
        in_dim=36,
        parts=frozenset({"clip", "clip_positions"}),
        host=I2V,
        sampling=Sampling(shift=16.0),
        continues="image",
    ),
    "vace": Variant(
        "VACE",
        parts=frozenset({"vace"}),
        host=Host("WAN21_Vace", "WAN21_Vace", "vace"),
        sampling=Sampling(shift=16.0),
        experts=Sampling(shift=12.0, steps=40, guidance=4.0, boundary=0.875, low_noise_guidance=3.0),
        continues="vace",
    ),
    "skyreels_df": Variant(
        "text and image to video, SkyReels-V2 Diffusion Forcing",
        parts=frozenset({"frame_rate"}),
        host=Host(model="WAN22"),  # whose timesteps follow the mask of held frames
        sampling=Sampling(shift=8.0, steps=30, guidance=6.0, frames=97),
        continues="history",
    ),
    "animate": Variant(
        "pose and face video to video, Animate",
        in_dim=36,
        parts=frozenset({"clip", "animate"}),
        host=Host("WAN22_Animate", "WAN22_Animate", "animate"),
        sampling=Sampling(steps=20, guidance=1.0, frames=77),
        continues="pose",
    ),
    "animate2": Variant(
        "pose video to video, Animate 2",
        in_dim=36,
        parts=frozenset({"clip"}),
        streams=("pose_branch",),
        mark=("model_type", "animate2"),
        host=Host("WAN_Animate2", "WAN_Animate2", "animate2", image_to_video=True),
        sampling=Sampling(steps=40, guidance=3.0),
    ),
    "i2v_a14b": Variant(
        "image to video, A14B",
        in_dim=36,
        host=I2V,
        experts=Sampling(shift=5.0, steps=40, guidance=3.5, boundary=0.900, low_noise_guidance=3.5),
        continues="image",
    ),
    "fun_control": Variant(
        "control video to video, Fun",
        in_dim=48,
        parts=frozenset({"clip"}),
        optional=frozenset({"reference"}),
        host=Host(config="WAN21_FunControl2V", type="i2v"),
    ),
    "fun_control_a14b": Variant(
        "control video to video, Fun A14B",
        in_dim=52,
        optional=frozenset({"reference"}),
        experts=Sampling(shift=12.0, steps=40, guidance=3.5, boundary=0.900, low_noise_guidance=3.5),
    ),
    "fun_control_5b": Variant(
        "control video to video, Fun 5B",
        family=WAN22,
        in_dim=148,
        optional=frozenset({"reference"}),
        host=Host("WAN22", "WAN22_T2V", image_to_video=True),
        sampling=Sampling(frames=121),
    ),
    "fun_inp_5b": Variant(
        "first and last frame to video, Fun 5B",
        family=WAN22,
        in_dim=100,
        host=Host("WAN22", "WAN22_T2V", image_to_video=True),
        sampling=Sampling(frames=121),
    ),
    "s2v": Variant(
        "sound to video",
        parts=frozenset({"s2v"}),
        host=Host("WAN22_S2V", "WAN22_S2V", "s2v"),
        sampling=Sampling(shift=3.0, steps=40, guidance=4.5, frames=77),
        continues="sound",
    ),
    "humo": Variant(
        "people from pictures and sound, HuMo 17B",
        in_dim=36,
        parts=frozenset({"humo"}),
        host=Host("WAN21_HuMo", "WAN21_HuMo", "humo"),
        sampling=Sampling(guidance=5.0, frames=97),
        own_frame_rate=25,
    ),
    "humo_1.7b": Variant(
        "people from pictures and sound, HuMo 1.7B",
        parts=frozenset({"humo"}),
        host=Host("WAN21_HuMo", "WAN21_HuMo", "humo"),
        sampling=Sampling(guidance=5.0, frames=97),
        own_frame_rate=25,
    ),
    "infinitetalk": Variant(
        "image and sound to video, InfiniteTalk and MultiTalk",
        in_dim=36,
        parts=frozenset({"clip", "voices"}),
        host=I2V,
        sampling=Sampling(shift=7.0, steps=40),
        own_frame_rate=25,
    ),
    "fun_camera": Variant(
        "camera path to video, Fun",
        in_dim=32,
        parts=frozenset({"clip", "camera"}),
        host=Host("WAN21_Camera", "WAN21_Camera", "camera"),
    ),
    "fun_camera_a14b": Variant(
        "camera path to video, Fun A14B",
        in_dim=36,
        parts=frozenset({"camera"}),
        host=Host("WAN21_Camera", "WAN22_Camera", "camera_2.2"),
        experts=Sampling(shift=12.0, steps=40, guidance=3.5, boundary=0.900, low_noise_guidance=3.5),
    ),
    "fun_camera_5b": Variant(
        "camera path to video, Fun 5B",
        family=WAN22,
        in_dim=100,
        parts=frozenset({"camera"}),
        host=Host("WAN22", "WAN22_T2V", image_to_video=True),
        sampling=Sampling(frames=121),
    ),
    "scail": Variant(
        "pose video to video, SCAIL",
        in_dim=20,
        parts=frozenset({"clip", "scail"}),
        host=Host("WAN21_SCAIL", "WAN21_SCAIL", "scail"),
    ),
    "scail2": Variant(
        "pose video to video, SCAIL-2",
        in_dim=20,
        parts=frozenset({"clip", "scail", "scail_masks"}),
        host=Host("WAN21_SCAIL2", "WAN21_SCAIL2", "scail2"),
    ),
    "wandancer": Variant(
        "music to video, WanDancer",
        in_dim=36,
        parts=frozenset({"clip", "wandancer"}),
        optional=frozenset({"reference"}),
        host=Host("WAN22_WanDancer", "WAN22_WanDancer", "wandancer", image_to_video=True),
    ),
    "ti2v": Variant(
        "text and image to video, 5B",
        family=WAN22,
        in_dim=48,
        host=Host("WAN22", "WAN22_T2V", image_to_video=True),
        sampling=Sampling(frames=121),
        continues="held",
    ),
}


def find(in_dim: int, out_dim: int, parts: Collection[str], header: Mapping[str, object] | None = None) -> str | None:
    """Return the variant of a checkpoint with these channels and parts, or None.

    header: the transformer config of the file's header. Of several variants that fit, the one with a mark in the header
    wins, then the one with the most parts.
    """
    fitting = [name for name, row in VARIANTS.items() if _fits(row, in_dim, out_dim, parts, header or {})]
    return max(fitting, key=lambda name: (VARIANTS[name].mark is not None, len(VARIANTS[name].parts)), default=None)


def _fits(row: Variant, in_dim: int, out_dim: int, parts: Collection[str], header: Mapping[str, object]) -> bool:
    channels = (row.in_dim, row.family.channels) == (in_dim, out_dim)
    return channels and row.parts <= set(parts) and (row.mark is None or header.get(row.mark[0]) == row.mark[1])


def expert_boundary(takes_image: bool) -> float:
    """Return the noise level at which the low-noise expert of a Wan 2.2 A14B pair takes over."""
    experts = VARIANTS["i2v_a14b" if takes_image else "t2v"].experts
    if experts is None or experts.boundary is None:
        raise ValueError("The A14B rows of VARIANTS state no boundary.")
    return experts.boundary
