"""The sizes of a Wan VAE."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of one Wan VAE, all read from its checkpoint.

    version: "2.1" (8x8x4, residual stages) or "2.2" (16x16x4, patchified pixels and averaging shortcuts).
    latent_channels: a key of `variants.FAMILIES`. dim / dec_dim: base width of the encoder and of the decoder.
    channels: of the video, 3 (RGB) or 4 (RGBA). upscale: how many times the size of the encoded video is decoded.
    """

    version: str
    latent_channels: int
    dim: int
    dec_dim: int
    channels: int = 3
    upscale: int = 1

    @property
    def patch(self) -> int:
        """Side in pixels of the squares that the first convolution sees as one pixel."""
        return 2 if self.version == "2.2" else 1

    @property
    def stride(self) -> int:
        """Pixels of the encoded video per latent pixel, along height and width."""
        return 8 * self.patch

    @property
    def decoded_stride(self) -> int:
        """Pixels of the decoded video per latent pixel, along height and width."""
        return self.stride * self.upscale
