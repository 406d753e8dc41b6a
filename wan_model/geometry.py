"""Sizes of clips and latents in Python integers."""

from .variants import TIME_STRIDE

MIN_SIDE = 16  # pixels: one DiT token of the 2.1 VAE
MAX_SIDE = 8192  # pixels
MAX_LENGTH = 16385  # frames, 17 minutes at 16 a second


def latent_frames(frames: int) -> int:
    """Return the latent frames of `frames` frames: one for the first, then one for every four; the rest is dropped."""
    return (frames - 1) // TIME_STRIDE + 1


def video_frames(latents: int) -> int:
    """Return the number of frames that `latents` latent frames decode to."""
    return (latents - 1) * TIME_STRIDE + 1


def snap_length(frames: int) -> int:
    """Return the longest 4n+1 that is not above `frames`."""
    return video_frames(latent_frames(frames))


def check_side(name: str, pixels: int) -> None:
    """Raise ValueError if a width or height is out of range."""
    if not MIN_SIDE <= pixels <= MAX_SIDE:
        raise ValueError(
            f"{name} is {pixels} pixels: choose {MIN_SIDE} to {MAX_SIDE} (832x480 and 1280x720 are usual)."
        )


def check_length(frames: int) -> None:
    """Raise ValueError if a frame count is out of range."""
    if not 1 <= frames <= MAX_LENGTH:
        raise ValueError(
            f"length is {frames} frames: choose 1 to {MAX_LENGTH} (81 are 5 seconds at 16 frames a second)."
        )
