"""Makes the demo family's text-to-video DiT causal, by teacher forcing on latents of scenes that have no end.

A block is one latent frame. It attends to the frames that are finished, at most `WINDOW` with itself, and to the first
frame of all, the sink, as if that lay directly before the window. In the second half of the run the frames that are
finished are often the network's own guesses, which teaches it to go on from what it makes.
"""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn import functional as F

from . import CAUSAL, endless, family, precision, train_dit, train_lora
from .train_dit import CELL_WEIGHT, CELLS, PROBED, ROLE_WEIGHT, ROLES
from .trainer import Trainer, cosine
from wan_model.dit.model import WanDiT
from wan_model.dit.rope import Positions, rope_table
from wan_model.vae.model import WanVAE
from wan_model.variants import NEGATIVE_PROMPT
from wan_model.variants.rollout import Rollout
from wan_model.weights.marks import ROLLOUT, SAMPLING

FRAMES, WINDOW, SINK = 13, 8, 1  # of a crop, with its sink; attended at most, with block and sink
CONTEXT_NOISE = 0.15  # of finished frames, of which the network is told
STEPS, BATCH, COPIES, RATE = 4400, 8, 2, 1.0e-3  # copies: noise levels on the same clean crop
SCENES, SWITCHES = 2240, 800  # clips in the bank: those of one scene, and those that go over to another on the way
SWITCH_PART = 0.25  # of the samples
FAR_PART = 0.6  # part of the other samples whose sink is not the frame before
STRANGE = 0.1  # part of these whose sink is of another scene
SINKS = 3  # first frames of each clip at other moments
GUESSED = 0.5  # part of the steps on guesses in the second half
UNPROMPTED = 0.12
BANK_SEED = 4_000_000
SHIFTS = (3.0, 1.0)  # as in `train_dit`
TOGETHER = 8  # clips that are encoded at once
TOKENS = 16  # of a frame


def length(frames: int) -> int:
    """Video frames of so many latent frames."""
    return 4 * frames - 3


def clip_scenes(index: int) -> tuple[list[endless.Endless], int]:
    """Scenes of clip `index`, one or two, and the latent frame at which the last one begins."""
    rng = np.random.default_rng(BANK_SEED + index)
    first = endless.draw_scene(rng)
    if index < SCENES:
        return [first], 0
    return [first, endless.switched(first, rng)], int(rng.integers(2, 7))


def pixels(index: int) -> Tensor:
    """Clip `index` (3, T, 64, 64)."""
    shown, switch = clip_scenes(index)
    if not switch:
        return endless.render(shown[0], 0, length(FRAMES))
    cut = length(switch)
    return torch.cat((endless.render(shown[0], 0, cut), endless.render(shown[1], cut, length(FRAMES))), dim=1)


def sinks(index: int) -> Tensor:
    """Single frames (SINKS, 3, 1, 64, 64) of the first scene of clip `index` at other moments."""
    shown, _ = clip_scenes(index)
    moments = np.random.default_rng(index).integers(100, 10_000, size=SINKS)
    return torch.stack([endless.render(shown[0], moment, moment + 1) for moment in moments])


def bank(vae: WanVAE, first: int) -> Tensor:
    """Normalised latents (TOGETHER, 16, FRAMES + SINKS, 8, 8) of clips from number `first` on and of their sinks."""
    clips = range(first, first + TOGETHER)
    whole = train_dit.encode(vae, torch.stack([pixels(index) for index in clips]))
    single = train_dit.encode(vae, torch.cat([sinks(index) for index in clips]))[:, :, 0]
    return torch.cat((whole, single.unflatten(0, (-1, SINKS)).transpose(1, 2)), dim=2)


class Causal(nn.Module):
    """The DiT, and the probe that `train_dit.Pair` describes."""

    def __init__(self, dit: WanDiT):
        super().__init__()
        self.dit = dit.requires_grad_(True)
        dim, read = dit.config.dim, sum(map(len, roles().values())) + CELLS
        self.probe = nn.Sequential(Linear(dim, dim), nn.SiLU(), Linear(dim, read))


def roles() -> dict[str, list[str]]:
    """The scene as the probe tells it."""
    return ROLES | {"motion": list(endless.PARTS)}


class View:
    """Who attends to whom in a batch of crops. far (B,): whether a sample's sink is not the frame before the others."""

    def __init__(self, far: Tensor, head_dim: int):
        frame, seen = torch.arange(FRAMES)[:, None], torch.arange(FRAMES)[None, :]
        recent = (seen >= frame - (WINDOW - 2)) & (seen > 0)
        sink = (seen == 0) & (frame > 0)
        before = (recent | sink) & (seen < frame)
        self.before, self.held = (self._bias(mask) for mask in (before, before | (seen == frame)))
        after = torch.arange(FRAMES).clamp(max=WINDOW - 1).float()
        tables = []
        for distance in (after, torch.full((FRAMES,), WINDOW - 1.0)):
            moves = tuple((distance - torch.arange(FRAMES)).tolist())
            tables.append(rope_table([Positions(moves, (0.0,) * TOKENS, (0.0,))], head_dim))
        self.turns = torch.view_as_complex(torch.stack(tables))[far.long(), :, None]  # (B, L, 1, head_dim / 2)

    @staticmethod
    def _bias(mask: Tensor) -> Tensor:
        whole = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
        return torch.zeros(whole.shape).masked_fill(~whole, -math.inf)

    def near(self, q: Tensor) -> Tensor:
        """The queries (B, L, dim) as they see the sink: turned to where it seems to lie."""
        turns = self.turns.repeat(len(q) // len(self.turns), 1, 1, 1)
        pairs = q.float().unflatten(-1, (-1, turns.shape[-1], 2))  # (B, L, heads, head_dim / 2, 2)
        return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(2).to(q.dtype)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, L, dim) as (B, heads, L, dim / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def scores(q: Tensor, near: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Scores (B, heads, L, L) of queries against the clean keys k, all (B, heads, L, d)."""
    sink = near @ k[:, :, :TOKENS].transpose(2, 3)
    rest = q @ k[:, :, TOKENS:].transpose(2, 3)
    return torch.cat((sink, rest), dim=-1) * q.shape[-1] ** -0.5 + bias.to(q.dtype)


def clean_pass(dit: WanDiT, clean: Tensor, context: Tensor, view: View, time: float) -> dict:
    """Keys and values of the finished frames (B, 16, FRAMES, 8, 8) by block of the network."""
    runtime, kept, last = train_lora.short_text(context.shape[1]), {}, len(dit.blocks) - 1

    def run_block(index, block, x, inputs):
        def attention(q, k, v, heads):
            kept[index] = heads_of(k, heads), heads_of(v, heads)
            near, q = (heads_of(part, heads) for part in (view.near(q), q))
            weights = scores(q, near, kept[index][0], view.held).softmax(dim=-1)
            return (weights @ kept[index][1]).transpose(1, 2).flatten(2)

        inputs = replace(inputs, attention=attention)
        return block.attend(x, inputs) if index == last else runtime.run_block(index, block, x, inputs)

    dit(clean, torch.full((1,), time), context, runtime=replace(runtime, run_block=run_block))
    return kept


def noisy_pass(
    dit: WanDiT, x: Tensor, t: Tensor, context: Tensor, kept: dict, view: View, probe=None
) -> tuple[Tensor, Tensor | None]:
    """Velocity of the frames x (n B, 16, FRAMES, 8, 8) at t (n B, FRAMES), each after the finished ones before it."""
    runtime, read = train_lora.short_text(context.shape[1]), []
    copies = len(x) // len(view.turns)

    def run_block(index, block, hidden, inputs):
        def attention(q, k, v, heads):
            near, q, k, v = (heads_of(part, heads) for part in (view.near(q), q, k, v))
            keys, values = (part.repeat(copies, 1, 1, 1) for part in kept[index])
            past = scores(q, near, keys, view.before)
            q, k, v = (part.unflatten(2, (FRAMES, TOKENS)) for part in (q, k, v))
            own = (q @ k.transpose(3, 4) * q.shape[-1] ** -0.5).flatten(2, 3)
            weights = torch.cat((past, own), dim=-1).softmax(dim=-1)
            from_past = weights[..., :-TOKENS] @ values
            from_own = weights[..., -TOKENS:].unflatten(2, (FRAMES, TOKENS)) @ v
            return (from_past + from_own.flatten(2, 3)).transpose(1, 2).flatten(2)

        hidden = runtime.run_block(index, block, hidden, replace(inputs, attention=attention))
        if probe is not None and index == PROBED:
            read.append(probe(hidden).float())
        return hidden

    return dit(x, t, context, runtime=replace(runtime, run_block=run_block)), read[0] if read else None


class Task:
    """The loss of a training step, on the bank `latents` (N, 16, FRAMES + SINKS, 8, 8)."""

    def __init__(self, latents: Tensor, encoder: family.TextEncoder, steps: int):
        self.latents, self.encoder, self.steps = latents, encoder, steps
        self.clips = [clip_scenes(index) for index in range(len(latents))]
        self.roles = torch.tensor([[self._role(shown, role) for role in roles()] for shown, _ in self.clips])
        self.covers = torch.stack([cells(*clip) for clip in self.clips])

    @staticmethod
    def _role(shown: list[endless.Endless], role: str) -> int:
        return roles()[role].index(getattr(shown[-1], role))

    def choose(self, rng: np.random.Generator) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
        """Clips of a batch, their latents (B, 16, FRAMES, 8, 8), which are far, and which frames count (B, FRAMES)."""
        plain = min(SCENES, len(self.clips))
        chosen = rng.integers(plain, size=BATCH)
        if len(self.clips) > plain:
            swap = rng.uniform(size=BATCH) < SWITCH_PART
            chosen[swap] = rng.integers(plain, len(self.clips), size=swap.sum())
        clean = self.latents[torch.from_numpy(chosen)].float()
        far = rng.uniform(size=BATCH) < FAR_PART
        owners = np.where(rng.uniform(size=BATCH) < STRANGE, rng.integers(len(self.clips), size=BATCH), chosen)
        for sample in np.nonzero(far)[0]:
            clean[sample, :, 0] = self.latents[owners[sample], :, FRAMES + rng.integers(SINKS)].float()
        switch = torch.tensor([self.clips[index][1] for index in chosen])
        counts = (torch.arange(FRAMES) >= switch[:, None]).float()
        counts[torch.from_numpy(far), 0] = 0
        return chosen, clean[:, :, :FRAMES], torch.from_numpy(far), counts

    def context(self, chosen: np.ndarray, rng: np.random.Generator, seed: int) -> Tensor:
        """Embedded captions (B, L, text_dim) of the clips, of their last scenes."""
        nothing = NEGATIVE_PROMPT if seed % 10 == 0 else ""
        told = rng.uniform(size=BATCH) >= UNPROMPTED
        prompts = [
            endless.caption(self.clips[index][0][-1], rng) if tell else nothing
            for index, tell in zip(chosen, told, strict=True)
        ]
        with torch.no_grad():
            return self.encoder(prompts)

    def __call__(self, model: Causal, seed: int) -> Tensor:
        """Mean squared error of the velocity, and the probe's losses."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        chosen, clean, far, counts = self.choose(rng)
        dit = model.dit
        view = View(far, dit.config.dim // dit.config.heads)
        context = self.context(chosen, rng, seed).to(dit.patch_embedding.weight.dtype)
        done = clean
        if seed > self.steps / 2 and rng.uniform() < GUESSED:
            for _ in range(rng.integers(1, 3)):
                done = self.guess(dit, clean, done, context, view, counts)
        kept = clean_pass(
            dit, with_noise(done).to(dit.patch_embedding.weight.dtype), context, view, 1000 * CONTEXT_NOISE
        )
        true = clean.repeat(COPIES, 1, 1, 1, 1)
        noise, sigma = torch.randn_like(true), levels(len(true))
        mixed = torch.lerp(true, noise, sigma[:, None, :, None, None])
        made, read = noisy_pass(
            dit,
            mixed.to(dit.patch_embedding.weight.dtype),
            1000 * sigma,
            context.repeat(COPIES, 1, 1),
            kept,
            view,
            model.probe,
        )
        weight = counts.repeat(COPIES, 1)
        error = (made.float() - (noise - true)).square().mean(dim=(1, 3, 4))
        return (error * weight).sum() / weight.sum() + self.misread(read, chosen, weight)

    def misread(self, read: Tensor, chosen: np.ndarray, weight: Tensor) -> Tensor:
        """The probe's losses on what it read (n B, tokens, roles and cells)."""
        clips = torch.from_numpy(chosen).repeat(COPIES)
        weight = (weight / weight.sum()).repeat_interleave(TOKENS, 1) / TOKENS
        said = read[..., :-CELLS].split([len(role) for role in roles().values()], dim=-1)
        loss = 0
        for part, true in zip(said, self.roles[clips].T, strict=True):
            wrong = F.cross_entropy(part.transpose(1, 2), true[:, None].expand(-1, part.shape[1]), reduction="none")
            loss = loss + ROLE_WEIGHT * (wrong * weight).sum()
        placed = F.binary_cross_entropy_with_logits(read[..., -CELLS:], self.covers[clips] / 255, reduction="none")
        return loss + CELL_WEIGHT * (placed.mean(dim=2) * weight).sum()

    @torch.no_grad()
    def guess(self, dit: WanDiT, clean: Tensor, done: Tensor, context: Tensor, view: View, counts: Tensor) -> Tensor:
        """Return the frames that the network predicts from noise of any level and the finished frames `done`."""
        kept = clean_pass(
            dit, with_noise(done).to(dit.patch_embedding.weight.dtype), context, view, 1000 * CONTEXT_NOISE
        )
        sigma = torch.rand(clean.shape[0], FRAMES)
        mixed = torch.lerp(clean, torch.randn_like(clean), sigma[:, None, :, None, None])
        made, _ = noisy_pass(dit, mixed.to(dit.patch_embedding.weight.dtype), 1000 * sigma, context, kept, view)
        guessed = mixed - sigma[:, None, :, None, None] * made.float()
        return torch.where(counts[:, None, :, None, None] == 1, guessed, clean)


def with_noise(x: Tensor) -> Tensor:
    """Finished frames as they are shown to the network."""
    return torch.lerp(x, torch.randn_like(x), CONTEXT_NOISE)


def levels(count: int) -> Tensor:
    """Noise levels (count, FRAMES): half of the samples for where things are, half for their outlines."""
    total = count * FRAMES
    uniform = ((torch.randperm(total) + torch.rand(total)) / total).view(count, FRAMES)
    shift = torch.tensor(SHIFTS)[torch.arange(FRAMES) % 2]
    return shift * uniform / (1 + (shift - 1) * uniform)


def cells(shown: list[endless.Endless], switch: int) -> Tensor:
    """How much of each cell of each token the last scene's shape covers: uint8 (L, CELLS); see `train_dit.cells`."""
    track = endless.positions(shown[-1], np.arange(length(FRAMES)))
    return train_dit.by_cells(endless.scenes.draw(shown[-1].shape, track))


def header() -> dict[str, str]:
    """The entries of the file's header on how the model is run and sampled."""
    rollout = Rollout(1, WINDOW, SINK, near_sink=True, context_noise=CONTEXT_NOISE)
    return {
        "config": json.dumps({"transformer": {"causal_ar": True}}),
        ROLLOUT: json.dumps(asdict(rollout)),
        SAMPLING: json.dumps(CAUSAL),
    }


def latents(vae: WanVAE, folder: Path) -> Tensor:
    """The bank, which `folder` keeps in parts."""
    made_by = train_dit.fingerprint(vae)
    firsts = range(0, SCENES + SWITCHES, TOGETHER)
    return torch.cat([train_dit.kept(folder / f"bank_{made_by}/{f}.pt", partial(bank, vae, f)) for f in firsts])


def train(dit: WanDiT, vae: WanVAE, encoder: family.TextEncoder, folder: Path) -> WanDiT:
    """The causal DiT; `folder` keeps the bank and the run."""
    task = Task(latents(vae.to(precision.DTYPE), folder), encoder, STEPS)
    torch.manual_seed(0)
    trainer = Trainer(
        Causal(dit),
        folder / "run",
        STEPS,
        partial(cosine, steps=STEPS, peak=RATE),
        matrices=train_dit.is_matrix,
        exact=train_dit.is_exact,
    )
    trainer.run(task)
    return trainer.averaged.dit
