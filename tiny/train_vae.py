"""Trains the demo family's VAEs on clips of `scenes`: single frames, then short clips, then whole ones.

A latent is trained with noise on it, as it will come from a sampler. At the end every channel is scaled, inside the
weights, so that the official normalisation gives it mean 0 and deviation 1.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import family, scenes, whole_clip
from .trainer import Trainer, cosine
from wan_model.vae import VAEConfig, WanVAE
from wan_model.variants import FAMILIES

CONFIGS = {  # by their kind in `family`
    "vae": VAEConfig("2.1", latent_channels=16, dim=16, dec_dim=16),
    "vae22": VAEConfig("2.2", latent_channels=48, dim=8, dec_dim=12),
}
Stages = tuple[tuple[int, int, int, float], ...]  # steps, frames, clips at once, learning rate
STAGES: dict[str, Stages] = {
    "vae": ((900, 1, 16, 2e-3), (350, 5, 4, 1e-3), (600, 17, 2, 1e-3)),
    "vae22": ((600, 1, 16, 2e-3), (300, 5, 4, 1e-3), (2100, 17, 2, 1e-3)),
}
FINISH = {"vae22": (2000, 1500)}  # steps of each run of the decoder alone, at the end
WARM_UP = 40
MEASURED = 64  # clips whose latents are brought to mean 0 and deviation 1
NOISE, PRIOR = 0.1, 2e-4  # deviation of a training latent's noise; weight of the latents' mean square
LAST_NOISE = 0.03  # deviation while the decoder is trained alone
SIDES = (*((64, 64),) * 9, (64, 96), (96, 64), (80, 80))


def initial(kind: str = "vae", seed: int = 0) -> WanVAE:
    """The VAE of `kind` with fan-in normal weights that at first treats each frame as an image."""
    torch.manual_seed(seed)
    vae = WanVAE(CONFIGS[kind])
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


def stage(stages: Stages, step: int) -> tuple[int, int, int, float]:
    """Steps since the stage of `step` began, and its frames, clips and learning rate."""
    at = 0
    while at < len(stages) - 1 and step >= stages[at][0]:
        step, at = step - stages[at][0], at + 1
    return step, *stages[at][1:]


def total(stages: Stages) -> int:
    """Steps of all stages."""
    return sum(steps for steps, *_ in stages)


def rate(stages: Stages, step: int) -> float:
    """Learning rate; it rises anew with each stage, since longer clips wake weights that rested."""
    since, _, _, peak = stage(stages, step)
    return cosine(step, total(stages), peak) * min(1, (since + 1) / WARM_UP)


def batch(stages: Stages, step: int) -> Tensor:
    """The clips (B, 3, T, H, W) of training step `step`."""
    _, frames, count, _ = stage(stages, step)
    height, width = SIDES[step % len(SIDES)]
    return torch.stack([clip(step * 64 + i, height, width, frames) for i in range(count)])


def loss(stages: Stages, vae: nn.Module, step: int) -> Tensor:
    """Reconstruction error with noise on the latent, and the latents' mean square."""
    torch.manual_seed(step)
    dtype = next(vae.parameters()).dtype
    video = batch(stages, step).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    latent = family.normalise(whole_clip.encode(vae, video))
    made = whole_clip.decode(vae, family.restore(latent + NOISE * torch.randn_like(latent)))
    error = (made - video).float()
    return error.square().mean() + 0.1 * error.abs().mean() + PRIOR * latent.float().square().mean()


def standardise(vae: WanVAE, clips: Tensor) -> None:
    """Scale the latent's channels, and the decoder's view of them back, to the official statistics on `clips`."""
    mu = vae.encode(clips)
    mean, std = mu.mean(dim=(0, 2, 3, 4)), mu.std(dim=(0, 2, 3, 4))
    z = vae.config.latent_channels
    official = FAMILIES[z]
    factor = torch.tensor(official.std) / std
    offset = torch.tensor(official.mean) - mean * factor
    weight, bias = vae.conv1.weight.data, vae.conv1.bias.data
    weight[:z] *= factor.view(-1, 1, 1, 1, 1)
    bias[:z] = bias[:z] * factor + offset
    weight[z:] = 0
    bias[z:] = 2 * (NOISE * torch.tensor(official.std)).log()  # the log variances that it was trained with
    weight, bias = vae.conv2.weight.data, vae.conv2.bias.data
    weight /= factor.view(1, -1, 1, 1, 1)
    bias -= weight.flatten(1) @ offset


def train(kind: str, folder: Path) -> WanVAE:
    """The trained VAE of `kind`, ready to be saved; `folder` keeps the runs."""
    stages = STAGES[kind]
    trainer = Trainer(initial(kind), folder, total(stages), partial(rate, stages), matrices=lambda name: True)
    trainer.run(partial(loss, stages))
    vae = trainer.averaged
    with torch.no_grad():
        standardise(vae, measured())
    first = 0
    for steps in FINISH.get(kind, ()):
        vae, first = sharpen(vae, stages, range(first, first + steps), folder), first + steps
    return vae


def sharpen(vae: WanVAE, stages: Stages, steps: range, folder: Path) -> WanVAE:
    """The VAE with its decoder trained on alone, for the steps of these numbers, with less noise and on other clips."""
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "conv2.")))

    def error(vae: nn.Module, step: int) -> Tensor:
        number = steps.start + step
        torch.manual_seed(number)
        video = batch(stages, total(stages) + number).to(next(vae.parameters()).dtype)
        with torch.no_grad():
            latent = family.normalise(whole_clip.encode(vae, video.contiguous(memory_format=torch.channels_last_3d)))
        noisy = family.restore(latent + LAST_NOISE * torch.randn_like(latent))
        return (whole_clip.decode(vae, noisy) - video).float().square().mean()

    schedule = partial(cosine, steps=len(steps), peak=stages[-1][-1])
    trainer = Trainer(vae, folder / f"decoder{steps.start}", len(steps), schedule, matrices=lambda name: True)
    trainer.run(error)
    return trainer.averaged


def measured() -> Tensor:
    """Whole clips (MEASURED, 3, T, H, W) that it was not trained with."""
    return torch.stack([clip(10**6 + i, scenes.SIDE, scenes.SIDE, scenes.FRAMES) for i in range(MEASURED)])


def latent_rgb(vae: WanVAE) -> dict[str, list]:
    """The linear map from normalised latents to RGB in [-1, 1] that fits best, as `marks.read_latent_rgb` reads it."""
    clips = measured()
    latents = family.normalise(vae.encode(clips))
    repeated = torch.cat((clips[:, :, :1].expand(-1, -1, 3, -1, -1), clips), dim=2)  # each latent frame stands for four
    colours = F.avg_pool3d(repeated, (4, vae.config.stride, vae.config.stride))
    known, wanted = (part.movedim(1, -1).flatten(0, -2) for part in (latents, colours))  # (cells, C), (cells, 3)
    solved = torch.linalg.lstsq(F.pad(known, (0, 1), value=1.0), wanted).solution
    *factors, bias = [[round(part, 4) for part in row] for row in solved.tolist()]
    return {"factors": factors, "bias": bias}
