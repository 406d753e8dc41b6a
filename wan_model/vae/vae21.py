"""The Wan 2.1 VAE: 8x8x4, 16 channels, plain residual stages (`wan/modules/vae.py`)."""

from torch import nn

from .blocks import Decoder, Encoder, ResidualBlock, Unpatchify
from .config import VAEConfig
from .resampling import Downsample, Upsample

WIDTHS = (1, 2, 4, 4)  # channels of each stage, in base widths
WHOLE_FRAME_BLOCKS = 3  # of the decoder's stages: the halo in tiles would cost more than their memory is worth
DOWN_TIME = (False, True, True)  # whether the downsampling after a stage also halves time


def encoder(ops, config: VAEConfig) -> Encoder:
    """Return the encoder's modules under their official names."""
    stages: list[nn.Module] = []
    cin = config.dim
    for i, width in enumerate(WIDTHS):
        cout = config.dim * width
        stages += [ResidualBlock(ops, cin, cout), ResidualBlock(ops, cout, cout)]
        if i < len(DOWN_TIME):
            stages.append(Downsample(ops, cout, DOWN_TIME[i]))
        cin = cout
    return Encoder(ops, config.channels, config.dim, stages, 2 * config.latent_channels)


def decoder(ops, config: VAEConfig) -> Decoder:
    """Return the decoder's modules under their official names."""
    stages: list[nn.Module] = []
    cin = config.dec_dim * WIDTHS[-1]
    for i, width in enumerate(reversed(WIDTHS)):
        cout = config.dec_dim * width
        stages += [ResidualBlock(ops, cin, cout), *(ResidualBlock(ops, cout, cout) for _ in range(2))]
        if i < len(DOWN_TIME):
            stages.append(Upsample(ops, cout, cout // 2, DOWN_TIME[-1 - i]))
        cin = cout // 2
    return Decoder(ops, config.latent_channels, config.dec_dim, stages, config.channels * config.upscale**2)


def encoder_blocks(encoder: Encoder, config: VAEConfig) -> tuple[list, list[nn.Module]]:
    """Return the blocks before the encoder's first convolution, and those of its stages."""
    return [], list(encoder.downsamples)


def decoder_blocks(decoder: Decoder, config: VAEConfig) -> tuple[list[nn.Module], list]:
    """Return the blocks of the decoder's stages, and those after its last convolution."""
    return list(decoder.upsamples), [Unpatchify(config.channels, row_first=True)] if config.upscale == 2 else []
