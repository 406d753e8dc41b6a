"""The video of a clip whose latents are made while it is decoded, on the host's device."""

from collections.abc import Iterator, Mapping, Sequence

import comfy.model_management
import torch

from ...wan_model.vae import Past, clip_of, fit_decode, from_tensors, plan_decode
from .vae import HostVAE


class HostDecoder:
    """Decodes a clip piece by piece with a VAE that the host has loaded; memory depends on one latent frame.

    The tiles are the largest that fit in the memory which is free when the first piece comes: beside a sampling model
    and its cache they may be small, and the result is the same. shape: of a latent (B, C, any number of frames, h, w).
    """

    def __init__(self, vae: HostVAE, shape: Sequence[int]):
        self.vae, self.shape = vae, (*shape[:2], None, *shape[3:])
        self.past: Past | None = None
        self._options: dict = {}

    def decode(self, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield images (t, H, W, 3) in [0, 1], off the device, of the next frames of the clip: (1, C, n, h, w)."""
        vae, work = self.vae, (plan_decode, fit_decode, self.shape, None)
        options = self._options or vae.fitted(*work, vae.vae_dtype, vae.runtime)
        stream = vae.first_stage_model.decode_stream(
            latent,
            device=vae.device,
            dtype=vae.vae_dtype,
            on_step=lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
            past=self.past,
            goes_on=True,
            **options,
        )
        yield from (images[0] for images in vae.frames(stream))
        self.past, self._options = stream.past(), {**options, "park": stream.park}

    def state(self) -> tuple[dict[str, torch.Tensor], list]:
        """Return what the next frames depend on: tensors, and numbers that can be written as JSON."""
        return self.past.tensors()

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: list) -> None:
        """Go on from what `state` returned."""
        self.past = from_tensors(clip_of(self.vae.config, self.shape, self.vae.vae_dtype), tensors, numbers)
