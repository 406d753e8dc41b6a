"""Trains two more DiTs of the demo family by flow matching on latents of `scenes`, with its text encoder as it is.

The expert for high noise, in the form of A14B's, goes on from the text-to-video DiT at its own noise levels. The DiT in
the form of the 5B model begins with blocks of that one, on latents of the 2.2 VAE, and learns to hold a first frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import family, packing, precision, train_dit, train_vae
from .train_lora import short_text
from .trainer import Trainer, cosine, first_alone, place
from wan_model.dit.model import WanDiT

CLIPS = range(train_dit.CLIPS, 2 * train_dit.CLIPS)  # that the text-to-video DiT was not trained with
PROBED = 1  # the block behind which the probe reads


@dataclass(frozen=True)
class Form:
    """How a DiT is trained.

    variant, vae: what it is, and the kind of the VAE in `family`. blocks: of the text-to-video DiT, which it begins
    with. runs: steps and clips at once, of each run. rate: the learning rate that each begins with. lowest: noise level
    of its training. given: part of its samples with a first frame that is held. crosses, average: as in
    `train_dit.Task` and `Trainer`.
    """

    variant: str
    vae: str
    blocks: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    rate: float
    lowest: float = 0.0
    given: float = 0.0
    crosses: float = train_dit.CROSSES
    average: float = 0.998


FORMS = {  # by their kind in `family`
    "t2v_high_noise": Form("t2v", "vae", tuple(range(6)), ((700, 48),), 5e-4, lowest=family.BOUNDARY, average=0.99),
    "ti2v": Form("ti2v", "vae22", (0, 2, 5), ((4000, 64), (2600, 128)), 1e-3, given=0.3, crosses=1.0),
}


class Student(nn.Module):
    """The DiT, and the probe that `train_dit.Pair` describes."""

    def __init__(self, dit: WanDiT):
        super().__init__()
        self.dit, self.probe = dit, train_dit.probe(dit.config.dim)


def initial(form: Form, seed: int = 0) -> Student:
    """The text-to-video DiT in that form: with fewer blocks, and new layers at both ends for other latents."""
    torch.manual_seed(seed)
    old, channels = family.load_dit("t2v"), train_vae.CONFIGS[form.vae].latent_channels
    config = replace(old.config, variant=form.variant, layers=len(form.blocks), in_dim=channels, out_dim=channels)
    dit, weights = WanDiT(config), renumbered(old.state_dict(), form.blocks)
    if channels != old.config.out_dim:
        for name in ("patch_embedding.weight", "patch_embedding.bias", "head.head.weight", "head.head.bias"):
            new = torch.zeros_like(dit.get_parameter(name))
            weights[name] = new if name != train_dit.PATCHES else nn.init.xavier_uniform_(new.flatten(1)).view_as(new)
    dit.load_state_dict(weights)
    return Student(dit)


def renumbered(weights: Mapping[str, Tensor], blocks: tuple[int, ...]) -> dict[str, Tensor]:
    """The weights of a DiT with only these of its blocks."""
    kept = {name: weight for name, weight in weights.items() if not name.startswith("blocks.")}
    for number, block in enumerate(blocks):
        prefix = f"blocks.{block}."
        kept |= {
            name.replace(prefix, f"blocks.{number}.", 1): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
    return kept


class Task(train_dit.Task):
    """The loss of a training step of `form`, on the bank `latents` of `CLIPS`."""

    def __init__(self, form: Form, latents: Tensor, encoder: family.TextEncoder, batch: int):
        super().__init__(latents, encoder.tokens, batch, first=CLIPS.start, crosses=form.crosses)
        self.form, self.encoder = form, encoder

    def __call__(self, student: Student, seed: int) -> Tensor:
        """Mean squared error of the velocity of the frames that are not given, and what the probe does not see."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        chosen, _ = self.choose(rng)
        clean = self.latents[torch.from_numpy(chosen)].float()
        lowest = self.form.lowest
        sigma = (lowest + (1 - lowest) * self.levels()).unsqueeze(1).repeat(1, clean.shape[2])
        given = torch.from_numpy(rng.uniform(size=self.batch) < self.form.given)
        sigma[given, 0] = 0
        noise = torch.randn_like(clean)
        mixed = torch.lerp(clean, noise, sigma[:, None, :, None, None])
        prompts, _ = self.prompts(chosen, rng, seed)
        with torch.no_grad():
            context = family.embed(self.encoder.model, prompts).to(precision.DTYPE)
        made, probed = velocity(student, mixed, sigma, context)
        error = (made - (noise - clean)).square().mean(dim=(1, 3, 4))  # (B, F)
        return error[sigma > 0].mean() + self.unseen(probed, torch.from_numpy(chosen))


def velocity(student: Student, x: Tensor, sigma: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """The flow at x (B, C, F, H, W), float32, with noise levels (B, F), and what the probe reads of each token."""
    runtime, read = short_text(context.shape[1]), []

    def run_block(index, block, hidden, inputs):
        hidden = runtime.run_block(index, block, hidden, inputs)
        if index == PROBED:
            read.append(student.probe(hidden).float())
        return hidden

    made = student.dit(x.to(context.dtype), 1000 * sigma, context, runtime=replace(runtime, run_block=run_block))
    return made.float(), read[0]


def rounded(form: str, name: str, weight: Tensor) -> Tensor:
    """What a student's weight is in the DiT's file, whose matrices are in `form`."""
    part, _, name = name.partition(".")
    return packing.unpack(packing.pack(weight, form)) if part == "dit" and family.is_matrix(name, weight) else weight


def train(kind: str, folder: Path) -> WanDiT:
    """The trained DiT of `kind`; `folder` keeps the runs. Several processes share each batch."""
    form, encoder = FORMS[kind], family.TextEncoder()
    vae = family.load_vae(form.vae).to(precision.DTYPE)
    with first_alone():
        bank = partial(train_dit.bank, vae, CLIPS)
        latents = train_dit.kept(folder / f"latents_{train_dit.fingerprint(vae)}.pt", bank)
    student = initial(form)
    for number, (steps, batch) in enumerate(form.runs):
        trainer = Trainer(
            student.requires_grad_(True),
            folder / f"run{number}",
            steps,
            partial(cosine, steps=steps, peak=form.rate),
            average=form.average,
            matrices=train_dit.is_matrix,
            exact=train_dit.is_exact,
            rounded=partial(rounded, family.PACKED[kind]),
        )
        task = Task(form, latents, encoder, batch // place()[1])
        trainer.run(partial(train_dit.loss_from, task, number * train_dit.RUN_SEEDS))
        student = trainer.averaged
    return student.dit
