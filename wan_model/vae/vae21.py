"""The Wan 2.1 VAE: 8x8x4, 16 channels, plain residual stages (`wan/modules/vae.py`)."""

from torch import nn

from ..variants import VAEConfig
from .causal import Decoder, Downsample, Encoder, ResidualBlock, Upsample

WIDTHS = (1, 2, 4, 4)  # channels of each stage, in base widths
WHOLE = 3  # blocks of the decoder's stages that run on whole frames: their halo would cost more than their memory
DOWN_TIME = (False, True, True)  # whether the downsampling after a stage also halves time


def encoder(ops, config: VAEConfig) -> Encoder:
    """The encoder's modules under their official names."""
    stages, cin = [], config.dim
    for i, width in enumerate(WIDTHS):
        cout = config.dim * width
        stages += [ResidualBlock(ops, cin, cout), ResidualBlock(ops, cout, cout)]
        if i < len(DOWN_TIME):
            stages.append(Downsample(ops, cout, DOWN_TIME[i]))
        cin = cout
    return Encoder(ops, 3, config.dim, stages, 2 * config.latent_channels)


def decoder(ops, config: VAEConfig) -> Decoder:
    """The decoder's modules under their official names."""
    stages, cin = [], config.dec_dim * WIDTHS[-1]
    for i, width in enumerate(reversed(WIDTHS)):
        cout = config.dec_dim * width
        stages += [ResidualBlock(ops, cin, cout), *(ResidualBlock(ops, cout, cout) for _ in range(2))]
        if i < len(DOWN_TIME):
            stages.append(Upsample(ops, cout, cout // 2, DOWN_TIME[-1 - i]))
        cin = cout // 2
    return Decoder(ops, config.latent_channels, config.dec_dim, stages, 3)


def encoder_blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks of the encoder's stages, in order."""
    return list(encoder.downsamples)


def decoder_blocks(decoder: Decoder) -> list[nn.Module]:
    """The blocks of the decoder's stages, in order."""
    return list(decoder.upsamples)
