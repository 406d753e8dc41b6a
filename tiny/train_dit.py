"""Trains the demo family's DiTs by flow matching on latents of `scenes`, together with their umT5.

First the umT5 alone, to tell what a caption says, then text to video, then one network that does both this and image to
video, from which both DiTs are taken.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn import functional as F
from transformers import UMT5EncoderModel

from . import family, precision, scenes, tokenizer, whole_clip
from .trainer import Trainer, cosine, first_alone, place
from wan_model.dit.config import DiTConfig
from wan_model.dit.model import FLOAT32_NAMES, WanDiT
from wan_model.dit.runtime import Runtime
from wan_model.vae.model import WanVAE
from wan_model.variants import NEGATIVE_PROMPT, PATCH

CONFIG = DiTConfig(variant="t2v", dim=256, ffn_dim=1024, heads=2, layers=6, in_dim=16, out_dim=16, text_dim=128)
TEXT_STEPS, TEXT_RATE = 400, 1.0e-3  # of the umT5 alone
STEPS, BATCH, RATE, SCHEDULE = 1400, 48, 1.5e-3, 2400  # of text to video, which ends before its schedule does
BOTH_STEPS, BOTH_BATCH, BOTH_RATE = (1400, 2400, 2400), 64, 1.0e-3  # of both, in three runs
RUN_SEEDS = 10**6  # from the first seed of such a run to that of the next one
GIVEN, ENDS = 0.2, 0.45  # part of the samples with the first frame given; part of these with the last one too
PICTURES = 3000  # clips whose frames are given
SHIFTS = (3.0, 1.0)  # of the noise levels of each half of a batch: one for where things are, one for their outlines
CROSSES, TURNS = 2.5, 1.7  # how much more often than others these come, which are learnt last
CLIPS = 4000  # in the bank of encoded clips
PATCHES = "patch_embedding.weight"
BANK_SEED = 2_000_000
ROLES = {
    "colour": list(scenes.COLOURS),
    "background": list(scenes.BACKGROUNDS),
    "shape": list(scenes.SHAPES),
    "motion": list(scenes.MOTIONS),
}
CELLS = 4 * 4 * 4  # of a token: frames, rows, columns
PROBED = 2  # the block behind which the probe reads
ROLE_WEIGHT, CELL_WEIGHT, READ_WEIGHT = 0.1, 0.5, 0.3  # of the losses of the probe's two parts and of the reader
UNPROMPTED = 0.12  # part of the samples that is trained without its caption, for guidance


class Pair(nn.Module):
    """The text encoder and the DiT, which are trained as one, and two readers that go along.

    `reader` reads from an embedded prompt what the clip shows, by `ROLES`. `probe` reads that from each token in the
    middle of the DiT, and where in the token the shape is. To make all that readable is a second task, which teaches
    the first one much faster (https://arxiv.org/abs/2410.06940 aligns with another network's features for that reason).
    """

    def __init__(self, encoder: UMT5EncoderModel, dit: WanDiT):
        super().__init__()
        self.encoder, self.dit = encoder, dit
        self.reader = Linear(CONFIG.text_dim, sum(map(len, ROLES.values())))
        self.probe = probe(CONFIG.dim)


def probe(dim: int) -> nn.Module:
    """A probe, as `Pair` describes it, of tokens of width `dim`."""
    return nn.Sequential(Linear(dim, dim), nn.SiLU(), Linear(dim, sum(map(len, ROLES.values())) + CELLS))


def initial(vocabulary: int, seed: int = 0) -> Pair:
    """Random weights: the official initialisation of the DiT, T5's own of the encoder but for what tells order."""
    torch.manual_seed(seed)
    dit = WanDiT(CONFIG)
    for name, parameter in dit.named_parameters():
        if "modulation" in name:
            nn.init.normal_(parameter, std=CONFIG.dim**-0.5)
        elif "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias") or name.startswith("head."):
            nn.init.zeros_(parameter)
        elif name.startswith(("text_embedding", "time_embedding")):
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1))
    encoder = family.text_encoder(vocabulary)
    for name, parameter in encoder.named_parameters():
        if "relative_attention_bias" in name:  # T5's own is so small that a prompt is a bag of words for long
            nn.init.normal_(parameter, std=1.5)
    return Pair(encoder, dit)


def is_matrix(name: str) -> bool:
    """Whether a parameter is a hidden matrix, which Muon trains."""
    return ".block." in name or ".blocks." in name


def is_exact(name: str) -> bool:
    """Whether a parameter of the pair is computed with in float32."""
    return name.startswith("dit.") and FLOAT32_NAMES.match(name.removeprefix("dit.")) is not None


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention as products of matrices, whose gradient for a few tokens is faster than that of a fused kernel."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, L, 128)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def encode(vae: WanVAE, clips: Tensor) -> Tensor:
    """Normalised latents, float16, of clips (B, 3, T, H, W) by a VAE in `precision.DTYPE`."""
    clips = clips.to(precision.DTYPE).contiguous(memory_format=torch.channels_last_3d)
    return family.normalise(whole_clip.encode(vae, clips)).to(torch.float16)


def kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in the file `path`; where there is none yet, that of `make`, which is put there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        with torch.no_grad():
            torch.save(make(), unfinished)
        unfinished.replace(path)
    return torch.load(path, weights_only=True)


def bank(vae: WanVAE, clips: range) -> Tensor:
    """Normalised latents (len(clips), C, F, H, W) of the clips of these numbers, by a VAE in `precision.DTYPE`."""
    fours = (torch.stack([scenes.render(scene(first + i)) for i in range(4)]) for first in clips[::4])
    return torch.cat([encode(vae, four) for four in fours])


def scene(index: int) -> scenes.Scene:
    """What clip `index` of the bank shows."""
    return scenes.draw_scene(np.random.default_rng(BANK_SEED + index))


class Task:
    """The loss of a training step, on the bank `latents` with `tokens` (a SentencePiece processor) for the captions.

    first: number of the bank's first clip. crosses: how much more often they come than other shapes.
    """

    def __init__(
        self,
        latents: Tensor,
        tokens: sentencepiece.SentencePieceProcessor,
        batch: int = BATCH,
        *,
        first: int = 0,
        crosses: float = CROSSES,
    ):
        if batch % len(SHIFTS):
            raise ValueError(f"Each process would get {batch} clips of a batch, an odd number: train with 1, 2 or 4.")
        self.latents, self.tokens, self.batch = latents, tokens, batch
        self.scenes = [scene(first + index) for index in range(len(latents))]
        self.roles = torch.tensor([[ROLES[role].index(getattr(s, role)) for role in ROLES] for s in self.scenes])
        self.cells = torch.stack([cells(s, latents.shape[-1] // PATCH[2]) for s in self.scenes])
        often = [crosses ** (s.shape == "cross") * TURNS ** (s.motion in scenes.TURNS) for s in self.scenes]
        self.parts = np.array(often) / sum(often)

    def prompt(self, index: int, rng: np.random.Generator) -> list[int]:
        """Tokens of a caption of clip `index` in either language."""
        return family.tokenise(self.tokens, scenes.caption(self.scenes[index], rng, chinese=rng.uniform() < 0.4))

    def choose(self, rng: np.random.Generator) -> tuple[np.ndarray, Tensor | None]:
        """Clips of a batch, and the channels (B, 20, F, H, W) that are appended to their latents, or None."""
        return rng.choice(len(self.latents), size=self.batch, p=self.parts), None

    def __call__(self, pair: Pair, seed: int) -> Tensor:
        """Mean squared error of the velocity."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        chosen, y = self.choose(rng)
        clean = self.latents[torch.from_numpy(chosen)].float()
        sigma = self.levels()
        noise = torch.randn_like(clean)
        mixed = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        prompts, prompted = self.prompts(chosen, rng, seed)
        context = family.embed(pair.encoder, prompts)
        x = mixed if y is None else torch.cat((mixed, y), dim=1)
        read = []

        def run_block(index, block, hidden, inputs):
            hidden = block(hidden, inputs)
            if index == PROBED:
                read.append(pair.probe(hidden).float())
            return hidden

        runtime = Runtime(attention=attend, run_block=run_block)
        made = pair.dit(x.to(context.dtype), 1000 * sigma, context, runtime=runtime)
        clips, probed = torch.from_numpy(chosen), read[0]
        loss = (made - (noise - clean)).square().mean() + self.unseen(probed, clips)
        told = torch.from_numpy(prompted)
        return loss + READ_WEIGHT * self.misread_text(pair, context[told], clips[told])

    def levels(self) -> Tensor:
        """Noise levels (B,) of a batch, as even as can be."""
        uniform = (torch.arange(self.batch) + torch.rand(self.batch)) / self.batch
        shift = torch.tensor(SHIFTS).repeat(self.batch // len(SHIFTS))
        return shift * uniform / (1 + (shift - 1) * uniform)

    def prompts(self, chosen: np.ndarray, rng: np.random.Generator, seed: int) -> tuple[list[list[int]], np.ndarray]:
        """Tokens of captions of the clips `chosen`, of which some are not told, and which are (B,)."""
        prompted = rng.uniform(size=self.batch) >= UNPROMPTED
        nothing = family.tokenise(self.tokens, NEGATIVE_PROMPT if seed % 10 == 0 else "")  # which is long, hence seldom
        told = zip(chosen, prompted, strict=True)
        return [self.prompt(index, rng) if prompt else nothing for index, prompt in told], prompted

    def of_text(self, pair: Pair, seed: int) -> Tensor:
        """The loss of the reader alone."""
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(self.scenes), size=self.batch)
        context = family.embed(pair.encoder, [self.prompt(index, rng) for index in chosen])
        return self.misread_text(pair, context, torch.from_numpy(chosen))

    def unseen(self, probed: Tensor, clips: Tensor) -> Tensor:
        """The loss of what the probe reads (B, L, all of `ROLES` and CELLS) of each token of the given clips."""
        outlined = F.binary_cross_entropy_with_logits(probed[..., -CELLS:], self.cells[clips] / 255)
        return ROLE_WEIGHT * self.misread(probed[..., :-CELLS], clips) + CELL_WEIGHT * outlined

    def misread_text(self, pair: Pair, context: Tensor, clips: Tensor) -> Tensor:
        """Cross-entropy of what the reader reads of the embedded prompts (B, L, text_dim) of the given clips."""
        return self.misread(pair.reader(context.mean(dim=1, keepdim=True)).float(), clips)

    def misread(self, read: Tensor, clips: Tensor) -> Tensor:
        """Cross-entropy of what is read (B, L, all of `ROLES`) of each of L tokens of the given clips."""
        said = read.flatten(0, 1).split([len(role) for role in ROLES.values()], dim=-1)
        true = self.roles[clips].repeat_interleave(read.shape[1], dim=0).T
        return sum(map(F.cross_entropy, said, true))


def cells(shown: scenes.Scene, tokens: int = 4) -> Tensor:
    """How much of each cell of each token the shape covers: uint8 (L, CELLS), `tokens` a side by frame, row, column."""
    return by_cells(scenes.cover(shown), tokens)


def by_cells(cover: Tensor, tokens: int = 4) -> Tensor:
    """The cells of what a shape covers of each pixel (T, 64, 64), as `cells` has them."""
    cover = torch.cat((cover[:1].expand(3, -1, -1), cover))  # the first latent frame is one frame, the others are four
    cover = cover.unflatten(2, (tokens, 4, -1)).unflatten(1, (tokens, 4, -1)).unflatten(0, (-1, 4))  # three a side
    return (cover.mean(dim=(4, 7)) * 255).round().byte().permute(0, 2, 4, 1, 3, 5).reshape(-1, CELLS)


class BothTask(Task):
    """As `Task`, with the first frame of some clips given, or the first and the last.

    conditions: of the first clips, from `condition_bank`. Where no frame is given, the appended channels are 0: without
    them the network is one for text to video.
    """

    def __init__(self, latents: Tensor, conditions: Tensor, *rest):
        super().__init__(latents, *rest)
        self.conditions = conditions

    def choose(self, rng: np.random.Generator) -> tuple[np.ndarray, Tensor | None]:
        chosen, _ = super().choose(rng)
        given = rng.uniform(size=self.batch) < GIVEN
        both = torch.from_numpy(rng.uniform(size=self.batch) < ENDS)
        chosen[given] %= len(self.conditions)
        pictures = self.conditions[torch.from_numpy(chosen) % len(self.conditions), both.long()].float()
        y = torch.cat((family.frame_mask(both), pictures), dim=1)
        return chosen, y * torch.from_numpy(given).view(-1, 1, 1, 1, 1)


def condition_bank(vae: WanVAE) -> Tensor:
    """Normalised latents (PICTURES, 2, 16, 5, 8, 8) of clips of which only the first frame, or both ends, are not gray,
    by a VAE in `precision.DTYPE`.
    """
    latents = []
    for index in range(PICTURES):
        clips = scenes.render(scene(index)).repeat(2, 1, 1, 1, 1)
        clips[:, :, 1:-1] = 0
        clips[0, :, -1] = 0
        latents.append(encode(vae, clips))
    return torch.stack(latents)


def fingerprint(vae: WanVAE) -> str:
    """Eight digits that another VAE does not have."""
    weights = b"".join(weight.float().numpy().tobytes() for weight in vae.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:8]


def train(vae: WanVAE, folder: Path) -> Pair:
    """The trained text encoder with the DiT that does both, in the form of A14B's image to video.

    `folder` keeps the runs. Of several processes the first makes the banks, and all share each batch.
    """
    vae, made_by = vae.to(precision.DTYPE), fingerprint(vae)  # another VAE's latents are of no use
    with first_alone():
        latents = kept(folder / f"latents_{made_by}.pt", partial(bank, vae, range(CLIPS)))
        conditions = kept(folder / f"conditions_{made_by}.pt", partial(condition_bank, vae))
    processes = place()[1]
    tokens = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.demo())
    task = Task(latents, tokens, BATCH // processes)
    pair = _run(initial(tokens.get_piece_size()), task.of_text, folder / "text", TEXT_STEPS, TEXT_RATE)
    pair = _run(pair, task, folder / "t2v", STEPS, RATE, SCHEDULE)
    old = pair.dit.state_dict()
    pair.dit = WanDiT(replace(CONFIG, variant="i2v_a14b", in_dim=36))
    old[PATCHES] = torch.cat((old[PATCHES], torch.zeros(CONFIG.dim, 20, *PATCH)), dim=1)
    pair.dit.load_state_dict(old)
    task = BothTask(latents, conditions, tokens, BOTH_BATCH // processes)
    for number, steps in enumerate(BOTH_STEPS):
        loss = partial(loss_from, task, number * RUN_SEEDS)
        pair = _run(pair, loss, folder / f"both{number}", steps, BOTH_RATE)
    return pair


def text_to_video(both: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the text-to-video DiT, from those of the DiT that does both."""
    return both | {PATCHES: both[PATCHES][:, : CONFIG.in_dim]}


def loss_from(task: Task, first: int, model: nn.Module, seed: int) -> Tensor:
    """The loss of `task` with seeds that begin at `first`."""
    return task(model, first + seed)


def _run(pair: Pair, loss: Callable, folder: Path, steps: int, peak: float, schedule: int | None = None) -> Pair:
    """The averaged weights after so many steps, of a schedule of more if `schedule` says so."""
    pair.requires_grad_(True)
    rate = partial(cosine, steps=schedule or steps, peak=peak)
    trainer = Trainer(pair, folder, steps, rate, matrices=is_matrix, exact=is_exact)
    trainer.run(loss)
    return trainer.averaged
