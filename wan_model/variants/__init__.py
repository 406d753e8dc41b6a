"""Everything that distinguishes one Wan model from another, declared once.

Sources: `wan/configs/*.py` of Wan 2.1 and Wan 2.2 (sampling defaults), `wan/modules/model.py` and `vace_model.py`
(DiT sizes), `wan/modules/vae.py` and `vae2_2.py` (latent statistics).
"""

from dataclasses import dataclass

PATCH = (1, 2, 2)  # latent frames, rows and columns in one DiT token
TEXT_LENGTH = 512  # context tokens, zero-padded before the text embedding
TIME_STRIDE = 4  # video frames in one latent frame, after the first

NEGATIVE_PROMPT = (  # wan/configs/shared_config.py, sample_neg_prompt
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d"
    "\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762"
    "\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28"
    "\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c\u591a"
    "\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d"
    "\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578"
    "\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b"
    "\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c\u80cc\u666f\u4eba\u5f88"
    "\u591a\uff0c\u5012\u7740\u8d70"
)


@dataclass(frozen=True)
class Sampling:
    """Official sampling defaults of one kind of model.

    shift: time shift of the noise schedule. guidance: classifier-free guidance scale, (high noise, low noise).
    boundary: sigma at which the low-noise expert takes over, or None for a single model. fps: the frame rate of its
    training clips.
    """

    shift: float
    steps: int
    guidance: tuple[float, float]
    fps: int
    frames: int
    boundary: float | None = None


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation of each latent channel, as the official pipelines normalise: (mu - mean) / std.

    family: the models whose latents these are, as people call them.
    """

    family: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# fmt: off
LATENT_STATS = {
    16: LatentStats(
        family="Wan 2.1 and 2.2 A14B",
        mean=(
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
            -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        std=(
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
            1.1253, 2.8251, 1.916,
        ),
    ),
    48: LatentStats(
        family="Wan 2.2 5B",
        mean=(
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
            0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
            -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        std=(
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
            0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
            0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
            1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
    ),
}
# fmt: on


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of one Wan DiT, all read from its checkpoint.

    variant: a key of `VARIANTS`. in_dim / out_dim: latent channels into the patch embedding and out of the head.
    image_tokens: CLIP tokens that the cross-attention reads: 0, 257 (one image) or 514 (first and last image, with a
    position embedding). vace_layers: indices of the blocks that receive a VACE hint. window_size: how many tokens to
    the left and right self-attention sees, -1 for all; no checkpoint tells it, and every released Wan sees all.
    """

    variant: str
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int = 256
    image_dim: int = 1280
    image_tokens: int = 0
    vace_layers: tuple[int, ...] = ()
    vace_in_dim: int = 96
    eps: float = 1e-6
    window_size: tuple[int, int] = (-1, -1)


VARIANTS = {
    "t2v": Sampling(shift=5.0, steps=50, guidance=(5.0, 5.0), fps=16, frames=81),
    "i2v": Sampling(shift=3.0, steps=40, guidance=(5.0, 5.0), fps=16, frames=81),
    "flf2v": Sampling(shift=16.0, steps=50, guidance=(5.0, 5.0), fps=16, frames=81),
    "vace": Sampling(shift=16.0, steps=50, guidance=(5.0, 5.0), fps=16, frames=81),
    "t2v_a14b": Sampling(shift=12.0, steps=40, guidance=(4.0, 3.0), fps=16, frames=81, boundary=0.875),
    "i2v_a14b": Sampling(shift=5.0, steps=40, guidance=(3.5, 3.5), fps=16, frames=81, boundary=0.900),
    "ti2v": Sampling(shift=5.0, steps=50, guidance=(5.0, 5.0), fps=24, frames=121),
}


def frame_rate(latent_channels: int) -> int:
    """Frames a second of the clips of models with so many latent channels."""
    return VARIANTS["ti2v" if latent_channels == 48 else "t2v"].fps
