"""Trains the demo family's Wan 2.1 VAE on clips of `scenes`: single frames, then short clips, then whole ones.

A latent is trained with noise on it, as it will come from a sampler. At the end every channel is scaled, inside the
weights, so that the official normalisation gives it mean 0 and deviation 1.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import family, scenes, whole_clip
from .trainer import Trainer, cosine
from wan_model.vae import VAEConfig, WanVAE

CONFIG = VAEConfig("2.1", latent_channels=16, dim=16, dec_dim=16)
STAGES = ((900, 1, 16, 2e-3), (350, 5, 4, 1e-3), (600, 17, 2, 1e-3))  # steps, frames, clips at once, learning rate
WARM_UP = 40
MEASURED = 64  # clips whose latents are brought to mean 0 and deviation 1
NOISE, PRIOR = 0.1, 2e-4  # deviation of a training latent's noise; weight of the latents' mean square
SIDES = (*((64, 64),) * 9, (64, 96), (96, 64), (80, 80))


def initial(seed: int = 0) -> WanVAE:
    """A VAE with fan-in normal weights that at first treats each frame as an image."""
    torch.manual_seed(seed)
    vae = WanVAE(CONFIG)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("weight"):
            if "time_conv" in name:  # takes the last frame of two, or gives each frame twice
                parameter.data[:] = 0
                eye = torch.eye(parameter.shape[1]).repeat(parameter.shape[0] // parameter.shape[1], 1)
                parameter.data[:, :, -1, 0, 0] = eye
            elif parameter.shape[2:] == (3, 3, 3):
                parameter.data[:, :, :2] = 0
                nn.init.kaiming_normal_(parameter.data[:, :, 2], nonlinearity="linear")
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return vae


def clip(seed: int, height: int, width: int, frames: int) -> Tensor:
    """A training clip (3, frames, height, width); shorter ones are cut out of a whole clip."""
    rng = np.random.default_rng(seed)
    video = scenes.render(scenes.draw_scene(rng), height, width)
    start = rng.integers(scenes.FRAMES - frames + 1)
    return video[:, start : start + frames]


def stage(step: int) -> tuple[int, int, int, float]:
    """Steps since the stage of `step` began, and its frames, clips and learning rate."""
    at = 0
    while at < len(STAGES) - 1 and step >= STAGES[at][0]:
        step, at = step - STAGES[at][0], at + 1
    return step, *STAGES[at][1:]


def total() -> int:
    """Steps of all stages."""
    return sum(steps for steps, *_ in STAGES)


def rate(step: int) -> float:
    """Learning rate; it rises anew with each stage, since longer clips wake weights that rested."""
    since, _, _, peak = stage(step)
    return cosine(step, total(), peak) * min(1, (since + 1) / WARM_UP)


def batch(step: int) -> Tensor:
    """The clips (B, 3, T, H, W) of training step `step`."""
    _, frames, count, _ = stage(step)
    height, width = SIDES[step % len(SIDES)]
    return torch.stack([clip(step * 64 + i, height, width, frames) for i in range(count)])


def loss(vae: nn.Module, step: int) -> Tensor:
    """Reconstruction error with noise on the latent, and the latents' mean square."""
    torch.manual_seed(step)
    dtype = next(vae.parameters()).dtype
    video = batch(step).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    latent = family.normalise(whole_clip.encode(vae, video))
    made = whole_clip.decode(vae, family.restore(latent + NOISE * torch.randn_like(latent)))
    error = (made - video).float()
    return error.square().mean() + 0.1 * error.abs().mean() + PRIOR * latent.float().square().mean()


def standardise(vae: WanVAE, clips: Tensor) -> None:
    """Scale the latent's channels, and the decoder's view of them back, to the official statistics on `clips`."""
    mu = vae.encode(clips)
    mean, std = mu.mean(dim=(0, 2, 3, 4)), mu.std(dim=(0, 2, 3, 4))
    factor = torch.tensor(family.STATS.std) / std
    offset = torch.tensor(family.STATS.mean) - mean * factor
    z = CONFIG.latent_channels
    weight, bias = vae.conv1.weight.data, vae.conv1.bias.data
    weight[:z] *= factor.view(-1, 1, 1, 1, 1)
    bias[:z] = bias[:z] * factor + offset
    weight[z:] = 0
    bias[z:] = 2 * (NOISE * torch.tensor(family.STATS.std)).log()  # the log variances that it was trained with
    weight, bias = vae.conv2.weight.data, vae.conv2.bias.data
    weight /= factor.view(1, -1, 1, 1, 1)
    bias -= weight.flatten(1) @ offset


def train(folder: Path) -> WanVAE:
    """The trained VAE, ready to be saved; `folder` keeps the run."""
    trainer = Trainer(initial(), folder, total(), rate, matrices=lambda name: True)
    trainer.run(loss)
    vae = trainer.averaged
    with torch.no_grad():
        standardise(vae, measured())
    return vae


def measured() -> Tensor:
    """Whole clips (MEASURED, 3, T, H, W) that it was not trained with."""
    return torch.stack([clip(10**6 + i, scenes.SIDE, scenes.SIDE, scenes.FRAMES) for i in range(MEASURED)])


def latent_rgb(vae: WanVAE) -> dict[str, list]:
    """The linear map from normalised latents to RGB in [-1, 1] that fits best, as `marks.read_latent_rgb` reads it."""
    clips = measured()
    latents = family.normalise(vae.encode(clips))
    repeated = torch.cat((clips[:, :, :1].expand(-1, -1, 3, -1, -1), clips), dim=2)  # each latent frame stands for four
    colours = F.avg_pool3d(repeated, (4, 8, 8))
    known, wanted = (part.movedim(1, -1).flatten(0, -2) for part in (latents, colours))  # (cells, 16), (cells, 3)
    solved = torch.linalg.lstsq(F.pad(known, (0, 1), value=1.0), wanted).solution
    *factors, bias = [[round(part, 4) for part in row] for row in solved.tolist()]
    return {"factors": factors, "bias": bias}
