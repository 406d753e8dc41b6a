"""Causal models in the host's sampling: a clip made block by block, each from noise against the frames before it."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...wan_model import solvers
from ...wan_model.causal import Cache, given_blocks, spans
from ...wan_model.variants.rollout import Rollout, rollout_of
from ..editor import estimate
from ..model import causal
from ..model.classes import BLOCKS
from ..model.memory import Blocks
from . import levels
from .experts import Expert
from .schedule import Schedule
from .unfinished import Unfinished

SETTINGS = "wan_rollout"  # entry of transformer_options: a `Rollout` in place of the one that the file tells
PROMPTS = ("positive", "negative")  # each with a cache of its own, which takes no memory until it is written
GIVEN = "ar_config"  # entry of transformer_options in which the host's ARVideoI2V puts the start image

Noise = Callable[[int, int], torch.Tensor]
"""Returns the noise (B, C, stop - start, H, W) that frames [start, stop) begin from."""
Draw = Callable[[torch.Tensor], torch.Tensor]
Start = Callable[[int, int], tuple[torch.Tensor, Draw]]
"""Returns what frames [start, stop) begin from, and what draws more noise for their steps."""
Report = Callable[[int, int, torch.Tensor, torch.Tensor], None]
"""Is told of each step: the first frame and index of the step, x0 and x."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A finished block: latent frames from number `start` on, x (B, C, n, H, W) in the model's space."""

    start: int
    x: torch.Tensor

    @property
    def stop(self) -> int:
        """The number of the frame after it."""
        return self.start + self.x.shape[2]


class Clip:
    """The host's denoiser for blocks of one clip.

    caches: of each of `PROMPTS`. noise: returns that of the frames [start, stop) of a block. clips: noise, given latent
    and mask of the whole clip, or None.
    """

    def __init__(
        self,
        model_wrap,
        sigmas,
        extra_args: dict,
        rollout: Rollout,
        caches: Sequence[Cache],
        noise: Noise,
        clips: Sequence[torch.Tensor | None] = (None, None, None),
    ):
        self.model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        self.extra_args, self.caches, self.clips = extra_args, caches, clips
        self.options = extra_args["model_options"].setdefault("transformer_options", {})
        self.state = causal.state(caches, rollout.near_sink)
        self.context_noise, self.noise = rollout.context_noise, noise
        self.sigmas = sigmas.tolist()

    def predict(self, x: torch.Tensor, start: int, sigma: float) -> torch.Tensor:
        """Return the x0 of the frames x (B, C, n, H, W) from `start` on at noise level `sigma`."""
        self.state["start_frame"], self.options[causal.STATE] = start, self.state
        self.options[levels.KEY] = levels.Levels(sigma, self.sigmas)
        parts = [None if clip is None else clip[:, :, start : start + x.shape[2]] for clip in self.clips]
        self.model.noise, self.model.latent_image, mask = parts
        return self.model(x, x.new_full((x.shape[0],), sigma), **{**self.extra_args, "denoise_mask": mask})

    def keep(self, *blocks: Block, last: int | None = None) -> None:
        """Take finished blocks, or the `last` frames of them, into the caches, at the noise level of the context."""
        x = torch.cat([self.as_context(block) for block in blocks], dim=2)
        kept = x.shape[2] if last is None else last
        self.state[causal.KEEPS] = True
        self.predict(x[:, :, x.shape[2] - kept :], blocks[-1].stop - kept, self.context_noise)
        self.state[causal.KEEPS] = False

    def as_context(self, block: Block) -> torch.Tensor:
        """Return the latent of a finished block with the noise that the network is told of."""
        if not self.context_noise:
            return block.x
        return torch.lerp(block.x, self.noise(block.start, block.stop).to(block.x), self.context_noise)

    def switch(self, recent: Sequence[Block]) -> None:
        """Make the finished frames context anew under another prompt, as `History.switch`. recent: the last blocks."""
        for cache in self.caches:
            cache.text.clear()
        self.keep(*recent, last=self.caches[0].refreshed(recent[-1].stop))

    def blocks(
        self, solver: str, places: Iterable[tuple[int, int]], begin: Start, report: Report, last: Block | None
    ) -> Iterator[Block]:
        """Yield the block of frames at each of `places`, (start, stop), when it is finished.

        A block becomes context only when the next one is asked for. last: the one before the first, or None.
        """
        for start, stop in places:
            if last is not None:
                self.keep(last)
            x, draw = begin(start, stop)
            run = solvers.Run(solver, x, self.sigmas, draw)
            while not run.done:
                x0 = self.predict(run.x, start, run.sigma)
                report(start, run.index, x0, run.x)
                run.step(x0)
            last = Block(start, run.x)
            yield last


class BlockSampler(comfy.samplers.Sampler):
    """One of `wan_model.solvers`, which takes a block of frames through all steps before it goes on to the next.

    It stands in for a `FlowSampler` that never pauses, so there is no `run` to go on with.
    """

    run = None
    draws = 0

    def __init__(self, schedule: Schedule, rollout: Rollout, given: torch.Tensor | None, blocks: Blocks):
        self.schedule, self.rollout, self.given, self.blocks = schedule, rollout, given, blocks
        self.expert: Expert | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Run all steps of all blocks and return the latent; the host calls this with a model loaded."""
        inner, x = model_wrap.inner_model, noise
        if not self.schedule.from_noise:
            x = inner.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
        out = x.clone()
        caches, clips = caches_of(self.rollout, self.blocks), (noise, latent_image, denoise_mask)
        clip = Clip(
            model_wrap, sigmas, extra_args, self.rollout, caches, lambda start, stop: noise[:, :, start:stop], clips
        )
        last = None
        if self.given is not None:
            given = inner.process_latent_in(self.given.to(out))
            out[:, :, : given.shape[2]] = given
            *before, last = split(given, self.rollout.block)
            for block in before:
                clip.keep(block)
        first, steps = 0 if last is None else last.stop, len(sigmas) - 1
        places = [(first + start, first + stop) for start, stop in spans(self.rollout.block, x.shape[2] - first)]
        draw = comfy.k_diffusion.sampling.default_noise_sampler(x[:, :, slice(*places[0])], extra_args.get("seed"))

        def report(start: int, step: int, x0: torch.Tensor, x: torch.Tensor) -> None:
            number = (start - first) // self.rollout.block
            stop = start + x0.shape[2]
            out[:, :, start:stop] = x0
            callback(number * steps + step, out[:, :, :stop], x, len(places) * steps)

        def begin(start: int, stop: int) -> tuple[torch.Tensor, Draw]:
            return x[:, :, start:stop], lambda like: draw(None, None)

        for block in clip.blocks(self.schedule.solver, places, begin, report, last):
            out[:, :, block.start : block.stop] = block.x
        return out


def caches_of(rollout: Rollout, blocks: Blocks) -> list[Cache]:
    """Return an empty cache for each of `PROMPTS`, where `blocks` says."""
    return [Cache(rollout.window, rollout.sink, "cpu" if blocks.in_ram else None) for _ in PROMPTS]


def split(given: torch.Tensor, size: int) -> list[Block]:
    """Return the blocks of a given clip (B, C, n, H, W), as its authors' code takes them."""
    blocks, start = [], 0
    for x in given.split(given_blocks(size, given.shape[2]), dim=2):
        blocks.append(Block(start, x))
        start += x.shape[2]
    return blocks


def is_causal(model) -> bool:
    """Return whether the MODEL `model` is one of this pack's that makes a clip in blocks of frames."""
    return isinstance(model.model.diffusion_model, causal.CausalDiT)


def rollout_for(model) -> Rollout:
    """Return how the causal MODEL `model` is run: as its options say, or the file's header, or the file's name."""
    options = model.model_options.get("transformer_options", {})
    return options.get(SETTINGS) or model.model.rollout or rollout_of(model.model.source)


def make_room(model, blocks: Blocks) -> None:
    """Let the host free the memory of a causal run when it loads the MODEL `model`, not that of a whole clip."""

    def prepare(executor, patcher, shape, conds, *arguments, **options):
        conds = {name: [{**cond, BLOCKS: blocks} for cond in group] for name, group in conds.items()}
        return executor(patcher, shape, conds, *arguments, **options)

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, SETTINGS, prepare)


def blocks_of(stage: Expert, rollout: Rollout, shape: Sequence[int]) -> Blocks:
    """Return how a causal model takes a latent of `shape`, and say so where its cache lies in RAM."""
    part = estimate.part_of_model(stage.model, rollout)
    blocks = estimate.blocks_of(part, shape, stage.reads_negative, estimate.here())
    if blocks.in_ram:
        logging.info(
            "The keys and values of %d latent frames lie in RAM: the card is too small for them.", blocks.window
        )
    return blocks


def sampler_of(stages: Sequence[Expert], schedule: Schedule, before: Unfinished | None, shape: Sequence[int]):
    """Return the `BlockSampler` of a run on a latent of `shape` (B, C, F, H, W); None where its model is not causal.

    Raise ValueError for a run that such a model cannot make.
    """
    stage = stages[0]
    if not is_causal(stage.model):
        return None
    if len(stages) > 1:
        raise ValueError(f"{stage.name} is a causal model, which runs alone: connect no low_noise_model.")
    if before is not None or float(schedule.sigmas[-1]) > 0:
        raise ValueError(
            f"{stage.name} is a causal model: it finishes each block of frames before the next, so its run cannot "
            "be split. Set start_step to 0 and end_step to the last."
        )
    options = stage.model.model_options.get("transformer_options", {})
    given = options.get(GIVEN, {}).get("initial_latent")
    rollout, frames, first = rollout_for(stage.model), shape[2], 0 if given is None else given.shape[2]
    if frames <= first or (frames - first) % rollout.block:
        after = f" after the {first} given" if first else ""
        raise ValueError(
            f"The clip has {frames} latent frames, and {stage.name} makes blocks of {rollout.block}{after}: "
            f"choose a length of {4 * (first + rollout.block) - 3} video frames, or that and a multiple of "
            f"{4 * rollout.block}."
        )
    return BlockSampler(schedule, rollout, given, blocks_of(stage, rollout, shape))
