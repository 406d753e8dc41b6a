"""Distils the demo family's text-to-video DiT to four steps without guidance, as a LoRA in the layout of lightx2v's.

The teacher's way from noise to clip, with guidance, is kept at the four steps' noise levels. The student goes the same
way by itself and learns to be where the teacher is; the gradient runs through all of its steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from . import FOUR_STEPS, GUIDANCE, family, precision, scenes, train_dit
from .trainer import Trainer, cosine
from wan_model import solvers
from wan_model.dit.model import FLOAT32_NAMES, WanDiT
from wan_model.dit.runtime import Runtime
from wan_model.variants import TEXT_LENGTH

LEVELS, SHIFT, SOLVER = (FOUR_STEPS[name] for name in ("steps", "shift", "solver"))  # of the student
TEACHER_STEPS, TEACHER_SOLVER = 8, "unipc"  # at the student's shift: every second noise level is one of the student's
RANK = 32
RUNS = ((1600, 400, 2e-3), (800, 200, 1e-3))  # ways of the teacher, steps and rate of each run
TOGETHER = 50  # ways that are made at once
BATCH, AVERAGE = 16, 0.99
ON_THE_WAY = 0.25  # weight of the error at a noise level on the way, beside 1 at the end
SEED = 3_000_000  # of the first clip
KIND = "t2v_4step_lora"  # of `family`
PREFIX, DOWN, UP = "diffusion_model.", ".lora_down.weight", ".lora_up.weight"
LARGEST = 240.0  # of the numbers in float8


class Student(nn.Module):
    """The DiT, frozen, and the LoRA's tensors. These are named as in the file but for "/" in place of "."."""

    def __init__(self, dit: WanDiT):
        super().__init__()
        self.dit, self.changes = dit.requires_grad_(False), nn.ParameterDict()
        for place, layer in places(dit):
            if isinstance(layer, nn.Linear):
                rows, columns = layer.weight.shape
                self._add(place, DOWN, torch.randn(RANK, columns) * columns**-0.5)
                self._add(place, UP, torch.zeros(rows, RANK))
                self._add(place, ".diff_b", torch.zeros(rows))
            else:
                self._add(place, ".diff", torch.zeros_like(layer.weight))

    def _add(self, place: str, suffix: str, value: Tensor) -> None:
        self.changes[(place + suffix).replace(".", "/")] = value

    def change(self, place: str, suffix: str) -> Tensor:
        """The tensor `suffix` of the layer `place`."""
        return self.changes[(place + suffix).replace(".", "/")]

    def weights(self) -> dict[str, Tensor]:
        """The DiT's parameters with the LoRA in them."""
        merged = dict(self.dit.named_parameters())
        for place, layer in places(self.dit):
            name = f"{place}.weight"
            if isinstance(layer, nn.Linear):
                change = self.change(place, UP) @ self.change(place, DOWN)
                bias = f"{place}.bias"
                merged[bias] = merged[bias] + self.change(place, ".diff_b").to(merged[bias])
            else:
                change = self.change(place, ".diff")
            merged[name] = merged[name] + change.to(merged[name])
        return merged

    def file(self) -> dict[str, Tensor]:
        """The tensors of the LoRA file. Those of each product are in float8, at its full range, which alpha undoes."""
        tensors = {PREFIX + name.replace("/", "."): value.data for name, value in self.changes.items()}
        for name in [name for name in tensors if name.endswith(DOWN)]:
            layer, scale = name.removesuffix(DOWN), 1.0
            for factor in (name, layer + UP):
                largest = tensors[factor].abs().max().clamp(min=2**-20)
                enlarged = 2.0 ** torch.floor(torch.log2(LARGEST / largest))
                tensors[factor], scale = (tensors[factor] * enlarged).to(torch.float8_e4m3fn), scale * enlarged
            tensors[layer + ".alpha"] = RANK / torch.as_tensor(scale)
        return tensors

    def read(self, tensors: dict[str, Tensor]) -> None:
        """Take the changes from the tensors of a LoRA file."""
        for name, value in self.changes.items():
            key = PREFIX + name.replace("/", ".")
            alpha = tensors[key.removesuffix(UP) + ".alpha"].float() if key.endswith(UP) else RANK
            value.data = tensors[key].float() * alpha / RANK


def places(dit: WanDiT) -> Iterator[tuple[str, nn.Module]]:
    """The layers that the LoRA changes: all linear ones and norms of the blocks, what modulates them, and the head."""
    for name, layer in dit.named_modules():
        if name.startswith(("blocks.", "time_projection.", "head.")) and getattr(layer, "weight", None) is not None:
            yield name, layer


def short_text(length: int) -> Runtime:
    """A runtime in which one token stands for all that follow the first `length` of the text, which are equal."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, L, 128)
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        count = torch.ones(k.shape[2])
        count[-1] = TEXT_LENGTH - length
        return ((scores + count.log().to(scores)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    def run_block(index, block, x, inputs):
        return block(x, replace(inputs, context=inputs.context[:, : length + 1]))

    return Runtime(attention=train_dit.attend, cross_attention=attend, run_block=run_block)


def velocity(dit: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, context: Tensor) -> Tensor:
    """The flow at the normalised latents x (B, C, F, H, W), float32, computed in the dtype of `context`.

    sigma: noise level of all, of each clip (B,) or of each frame (B, F).
    """
    t = torch.atleast_1d(torch.as_tensor(1000 * sigma))
    return dit(x.to(context.dtype), t, context, runtime=short_text(context.shape[1])).float()


def levels() -> list[float]:
    """The noise levels of the student, 1 to 0."""
    return solvers.flow_sigmas(LEVELS, SHIFT, SOLVER).tolist()


def way(dit: WanDiT, context: Tensor, negative: Tensor, noise: Tensor) -> Tensor:
    """Where the teacher is at each of `levels`: (B, LEVELS + 1, 16, F, H, W), from `noise` (B, 16, F, H, W) on."""
    passed, sigmas = [], solvers.flow_sigmas(TEACHER_STEPS, SHIFT, SOLVER).tolist()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        passed.append(x)
        told, untold = velocity(dit, x, sigma, context), velocity(dit, x, sigma, negative)
        return x - sigma * (untold + GUIDANCE * (told - untold))

    passed.append(solvers.SAMPLERS[TEACHER_SOLVER](denoise, noise, sigmas))
    return torch.stack(passed[:: TEACHER_STEPS // LEVELS], dim=1)


def captions(first: int, count: int) -> list[str]:
    """Captions of training clips, from number `first` on, in either language."""
    rngs = [np.random.default_rng(SEED + index) for index in range(first, first + count)]
    return [scenes.caption(scenes.draw_scene(rng), rng, chinese=rng.uniform() < 0.4) for rng in rngs]


def ways(dit: WanDiT, encoder: family.TextEncoder, first: int) -> Tensor:
    """Of `TOGETHER` clips from number `first` on, float16 ways of the teacher."""
    context = encoder(captions(first, TOGETHER)).to(dit.dtype)
    noise = torch.randn(TOGETHER, 16, *family.SIZE, generator=torch.Generator().manual_seed(SEED + first))
    return way(dit, context, encoder([""]).to(dit.dtype).expand(TOGETHER, -1, -1), noise).half()


def quick(dit: WanDiT) -> WanDiT:
    """A copy of the DiT in `precision.DTYPE`, but for what needs to be more precise."""
    copy = WanDiT(dit.config, dtype=precision.DTYPE)
    copy.load_state_dict(dit.state_dict())
    return copy.requires_grad_(False)


class Task:
    """The loss of a training step, on `ways` (N, LEVELS + 1, 16, F, H, W) and their contexts (N, L, text_dim)."""

    def __init__(self, ways: Tensor, contexts: Tensor):
        self.ways, self.contexts, self.levels = ways, contexts, levels()

    def __call__(self, student: Student, seed: int) -> Tensor:
        """Mean squared distance of the student from the teacher, at the end and on the way.

        A distance on the way is taken as that of the clips in the noise.
        """
        chosen = torch.from_numpy(np.random.default_rng(seed).choice(len(self.ways), BATCH, replace=False))
        wanted, context = self.ways[chosen].float(), self.contexts[chosen].to(precision.DTYPE)
        dit = partial(_call, student.dit, student.weights())
        x, loss = wanted[:, 0], 0
        for i, (sigma, target) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            x = x + (target - sigma) * velocity(dit, x, sigma, context)
            error = (x - wanted[:, i + 1]).square().mean() / (1 - target) ** 2
            loss = loss + (error if target == 0 else ON_THE_WAY * error)
        return loss


def _call(dit: WanDiT, weights: dict[str, Tensor], x: Tensor, t: Tensor, context: Tensor, runtime: Runtime) -> Tensor:
    return functional_call(dit, weights, (x, t, context), {"runtime": runtime})


def is_exact(name: str) -> bool:
    """Whether a parameter of the student is computed with in float32."""
    return name.startswith("changes.") or FLOAT32_NAMES.match(name.removeprefix("dit.")) is not None


def train(dit: WanDiT, encoder: family.TextEncoder, folder: Path) -> Student:
    """The trained student of the text-to-video DiT; `folder` keeps the runs and the teacher's ways.

    Each run has ways of its own, and its rate falls to 0.
    """
    teacher, first = quick(dit), 0
    torch.manual_seed(0)
    student = Student(dit)
    for number, (count, steps, peak) in enumerate(RUNS):
        task = bank(teacher, encoder, range(first, first + count), folder)
        trainer = Trainer(
            student,
            folder / f"run{number}",
            steps,
            partial(cosine, steps=steps, peak=peak),
            average=AVERAGE,
            matrices=lambda name: "/lora_" in name,
            exact=is_exact,
        )
        trainer.run(task)
        student, first = trainer.averaged, first + count
        student.changes.requires_grad_(True)
    return student


def bank(teacher: WanDiT, encoder: family.TextEncoder, clips: range, folder: Path) -> Task:
    """The task on the teacher's ways to the clips of these numbers, which `folder` keeps."""
    firsts = clips[::TOGETHER]
    parts = [train_dit.kept(folder / f"ways_{first}.pt", partial(ways, teacher, encoder, first)) for first in firsts]
    with torch.no_grad():
        return Task(torch.cat(parts), encoder(captions(clips.start, len(clips))))


def load() -> WanDiT:
    """The text-to-video DiT with the family's LoRA in it, in float32."""
    student = Student(family.load_dit("t2v"))
    student.read(load_file(family.path(KIND)))
    with torch.no_grad():
        student.dit.load_state_dict(student.weights())
    return student.dit
