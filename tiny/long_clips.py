"""Clips of any length with the demo family's causal model, frame by frame, and prompts that change on the way."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import family
from wan_model import checkpoint, solvers
from wan_model.causal import Cache, History
from wan_model.dit.model import WanDiT
from wan_model.dit.runtime import Runtime
from wan_model.variants.distilled import Preset
from wan_model.variants.rollout import Rollout

SEEDS = 10**6  # from the noise of one clip to that of the next

Part = tuple[int, Tensor]  # latent frames, and the context (N, L, text_dim) of their prompts


def settings() -> tuple[Rollout, Preset]:
    """How the shipped model is run in blocks and sampled, by its header."""
    found = checkpoint.inspect(family.path("causal"))
    if found.rollout is None or found.sampling is None:
        raise ValueError("The header of wan_tiny_causal does not say how it is run: train it again.")
    return found.rollout, found.sampling


def noise(seeds: Sequence[int], start: int, stop: int) -> Tensor:
    """Noise (N, 16, stop - start, 8, 8) of these frames, a seed for each clip."""
    sources = [[torch.Generator().manual_seed(seed * SEEDS + frame) for frame in range(start, stop)] for seed in seeds]
    clips = [torch.stack([torch.randn(16, *family.SIZE[1:], generator=g) for g in row], dim=1) for row in sources]
    return torch.stack(clips)


class Roll:
    """N clips that go on, their prompts with and without a caption in one batch."""

    def __init__(self, dit: WanDiT, negative: Tensor, seeds: Sequence[int], rollout: Rollout, sampling: Preset):
        self.dit, self.negative, self.seeds = dit, negative, seeds
        self.dtype = dit.patch_embedding.weight.dtype
        self.rollout, self.sampling, self.guidance = rollout, sampling, sampling.guidance[-1]
        self.made = torch.empty(len(seeds), 16, 0, *family.SIZE[1:])

    def prompt(self, context: Tensor) -> None:
        """Go on with these prompts (N, L, text_dim): keys and values of the frames still seen are made again."""
        negative = pad(self.negative, (0, 0, 0, context.shape[1] - self.negative.shape[1]))
        both = torch.cat((context, negative.expand(len(context), -1, -1)))
        cache, rollout = Cache(self.rollout.window, self.rollout.sink), self.rollout
        self.history = History(
            self.dit, both.to(self.dtype), cache, Runtime(), rollout.near_sink, 1000 * rollout.context_noise
        )
        self.history.context_noise = lambda start, stop: noise(self.seeds, start, stop).repeat(2, 1, 1, 1, 1)
        count, recent = self.made.shape[2], rollout.window - rollout.sink - rollout.block
        for frame in (*range(min(rollout.sink, count)), *range(max(rollout.sink, count - recent), count)):
            self.history.length = frame
            self.keep(self.made[:, :, frame : frame + 1])

    def keep(self, x: Tensor) -> None:
        """Take the frames x for finished."""
        self.history.keep(x.repeat(2, 1, 1, 1, 1).to(self.dtype))

    def step(self) -> None:
        """Make the next block of frames."""
        start = self.history.length
        stop = start + self.rollout.block
        x, preset = noise(self.seeds, start, stop), self.sampling
        sigmas = solvers.flow_sigmas(preset.steps, preset.shift, preset.solver).tolist()
        x = solvers.SAMPLERS[preset.solver](self.denoise, x, sigmas)
        self.keep(x)
        self.made = torch.cat((self.made, x), dim=2)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The guided x0 of the block x at a noise level."""
        time = solvers.timestep(sigma, self.sampling.solver)
        v = self.history.velocity(x.repeat(2, 1, 1, 1, 1).to(self.dtype), time)
        told, untold = v.float().chunk(2)
        return x - sigma * (untold + self.guidance * (told - untold))


def roll(
    dit: WanDiT, parts: Sequence[Part], negative: Tensor, seeds: Sequence[int], rollout: Rollout, sampling: Preset
) -> Tensor:
    """Normalised latents (N, 16, F, 8, 8) of clips whose prompts change from part to part."""
    clips = Roll(dit, negative, seeds, rollout, sampling)
    for frames, context in parts:
        clips.prompt(context)
        for _ in range(frames // rollout.block):
            clips.step()
    return clips.made
