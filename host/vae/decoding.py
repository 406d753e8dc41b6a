"""Clips that are decoded part by part: each part goes on from the VAE's caches at the end of the one before."""

import logging
from collections.abc import Iterator

import torch

from ...wan_model import geometry
from ...wan_model.vae import Past
from .vae import AUTO, HostVAE, check_latent


class Decoding:
    """A latent clip, the part of it that is decoded already, and the frames that follow.

    The value of a WAN_DECODING link. vae: a VAE of this pack. samples: the clip so far (1, C, T, h, w). tile: as in
    `HostVAE.decode`. before: the decoding of its first frames, or None. goes_on: whether to keep the caches at the end.

    The caches of a 480p clip are gigabytes, so there is one set of them: the next decoding takes them away. One that
    finds none, as in a graph that runs again, decodes the frames before it a second time and gives the same.
    """

    def __init__(self, vae: HostVAE, samples: torch.Tensor, tile=AUTO, before: "Decoding | None" = None, goes_on=True):
        check(vae, samples, before)
        self.vae, self.samples, self.tile, self.before, self.goes_on = vae, samples, tile, before, goes_on
        self._past: Past | None = None

    @property
    def first(self) -> int:
        """Latent frames that `before` has decoded."""
        return 0 if self.before is None else self.before.samples.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (frames, H, W, channels) of the images of `chunks`."""
        _, _, latents, height, width = self.samples.shape
        frames = geometry.video_frames(latents) - (geometry.video_frames(self.first) if self.first else 0)
        stride = self.vae.config.decoded_stride
        return frames, height * stride, width * stride, self.vae.output_channels

    def chunks(self) -> Iterator[torch.Tensor]:
        """Iterate over images (1 or 4, H, W, 3) in [0, 1]: the frames that follow those of `before`."""
        past = None if self.before is None else self.before.take()
        leave = self._leave if self.goes_on else None
        for chunk in self.vae.decode_chunks(self.samples[:, :, self.first :], self.tile, past, leave):
            yield chunk[0]

    def take(self) -> Past | None:
        """Return the caches after the last frame, and let go of them."""
        if self._past is None:
            logging.info("Decoding %d latent frames again: their caches are gone.", self.samples.shape[2])
            for _ in self.vae.decode_chunks(self.samples, self.tile, leave=self._leave):
                pass
        past, self._past = self._past, None
        return past

    def _leave(self, past: Past) -> None:
        self._past = past


def check(vae, samples: torch.Tensor, before: Decoding | None) -> None:
    """Raise ValueError if `samples` cannot be decoded from where `before` ended."""
    check_latent(vae, samples)
    if not isinstance(vae, HostVAE):
        raise ValueError(
            "This VAE is ComfyUI's own, which begins every decode anew: load it with WanVAELoader, or decode the whole "
            "clip with WanVAEDecodeToVideo."
        )
    if len(samples) > 1:
        raise ValueError(
            f"WanVAEDecodePart decodes one clip and was given {len(samples)}: set batch_size to 1, or decode the whole "
            "clips with WanVAEDecodeToVideo."
        )
    if before is None:
        return
    if before.vae is not vae:
        raise ValueError("The decode before this one used another VAE: connect the same WanVAELoader to both.")
    known, given = before.samples.shape, samples.shape
    if given[2] <= known[2] or not torch.equal(samples[:, :, : known[2]].to(before.samples), before.samples):
        raise ValueError(
            f"The decode before this one ended after {known[2]} latent frames, and these {given[2]} do not begin with "
            "the same: connect the latent that WanSampler made behind WanContinue."
        )
