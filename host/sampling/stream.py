"""A video of any length from a causal model: each block of frames goes from the sampler through the VAE into the file.

Nothing of the whole clip is held: the noise of a block comes from the seed and the block's number, the model's cache is
a window, the VAE's caches are one latent frame deep. A run that was cut off goes on from the state beside its file.
"""

import hashlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...wan_model import geometry
from ...wan_model.variants import TIME_STRIDE
from ...wan_model.variants.rollout import Rollout
from ..observe import preview
from ..observe.growing import Player
from ..vae.growing import GrowingVideo
from ..vae.live import HostDecoder
from ..vae.vae import HostVAE
from ..vae.whole_file import DiskFull
from . import saved
from .blockwise import PROMPTS, Block, Clip, blocks_of, caches_of, make_room, split
from .experts import Expert
from .sampling import guider, with_timesteps
from .schedule import Schedule

VAE = "wan_stream_vae"  # key under which the host loads the VAE together with the model
SHARE = 20  # of the time, at most one part in so many goes into saving the state
FILE = ("size", "frames", "pieces", "header")  # of a `GrowingVideo`, in the saved state
PACE = 10e6  # bytes a second that saving writes at most on average, for the sake of the disk


@dataclass(frozen=True)
class Order:
    """Everything that a video is made with.

    prompts: (second at which it begins, CONDITIONING) in order of time. negative: CONDITIONING or None. latent: shape
    (C, h, w) of a latent frame. given: latent (1, C, n, h, w) of frames that it begins with, or None. seconds: 0 for no
    end. identity: what must not change where a run goes on.
    """

    stage: Expert
    schedule: Schedule
    rollout: Rollout
    vae: HostVAE
    prompts: Sequence[tuple[float, list]]
    negative: list | None
    latent: tuple[int, int, int]
    given: torch.Tensor | None
    seconds: float
    rate: int
    seed: int
    identity: dict = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Number of the first latent frame that is made."""
        return 0 if self.given is None else self.given.shape[2]

    @property
    def stop(self) -> int | None:
        """Latent frames of the whole video: as many blocks as hold its seconds. None without end."""
        if not self.seconds:
            return None
        frames = geometry.latent_frames(max(1, round(self.seconds * self.rate) + TIME_STRIDE - 1))
        return self.place_after(max(frames, self.first + 1))

    @property
    def total(self) -> float | None:
        """Seconds of the whole video, None without end."""
        return None if self.stop is None else geometry.video_frames(self.stop) / self.rate

    def place_after(self, frame: int) -> int:
        """Return the first start of a block, or end of one, that is not before latent frame `frame`."""
        return self.first + max(0, math.ceil((frame - self.first) / self.rollout.block)) * self.rollout.block

    def stretches(self) -> Iterator[tuple[int, int | None]]:
        """Yield the first latent frame of each prompt and the one after its last, None without end.

        A prompt begins with the first block of frames that does not begin before its time.
        """
        frames = [math.ceil((start * self.rate - 1) / TIME_STRIDE) + 1 for start, _ in self.prompts[1:]]
        starts = [self.first, *map(self.place_after, frames)]
        for start, stop in itertools.zip_longest(starts, starts[1:]):
            ends = [end for end in (stop, self.stop) if end is not None]
            yield start, min(ends, default=None)

    def noise(self, start: int, stop: int, like: torch.Tensor):
        """Return the noise of the block of latent frames [start, stop), and what draws more of it."""
        key = hashlib.sha256(f"{self.seed} {start - self.first}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        channels, height, width = self.latent
        shape = (1, channels, stop - start, height, width)

        def draw(_=None) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(like)

        return draw(), draw


class Production:
    """A video in the making: its file, and the state that the next block depends on."""

    def __init__(self, order: Order, file: GrowingVideo, keeps_state: bool):
        self.order, self.file, self.keeps_state = order, file, keeps_state
        channels, height, width = order.latent
        window = (1, channels, order.rollout.window, height, width)  # what is attended, and so takes memory
        self.blocks = blocks_of(order.stage, order.rollout, window)
        self.caches = caches_of(order.rollout, self.blocks)
        self.decoder = HostDecoder(order.vae, (1, channels, 1, height, width))
        self.player = Player(file, order.total)
        self.recent: deque[Block] = deque()  # as many as a change of the prompt makes anew
        self.saved_at, self.pause = -math.inf, 0.0

    @property
    def length(self) -> int:
        """Latent frames that are written."""
        return self.recent[-1].stop if self.recent else 0

    def run(self) -> None:
        """Make the video to its end. Raise what interrupts it; all that is written then stays."""
        order = self.order
        model = with_timesteps(order.stage.model, order.schedule.solver)
        model.set_additional_models(VAE, [order.vae.patcher])
        make_room(model, self.blocks)
        preview.watch(model)
        callback = latent_preview.prepare_callback(model, order.schedule.steps)
        dummy = torch.zeros(1, order.latent[0], order.rollout.window, *order.latent[1:])
        for number, (start, stop) in enumerate(order.stretches()):
            if stop is not None and stop <= max(start, self.length):
                continue
            sampler = StreamSampler(self, stop, switches=number > 0 and self.length <= start)
            guider(order.stage, model, order.prompts[number][1], order.negative).sample(
                dummy,
                dummy,
                sampler,
                order.schedule.sigmas,
                callback=callback,
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=order.seed,
            )

    def take(self, block: Block, latent: torch.Tensor) -> None:
        """Decode and write a finished block. latent: its frames as the VAE takes them."""
        self.file.append(torch.cat(list(self.decoder.decode(latent))))
        self.recent.append(block)
        while self.recent[-1].stop - self.recent[0].stop >= self.order.rollout.window:
            self.recent.popleft()
        self.player.tell()
        if self.keeps_state and time.monotonic() - self.saved_at >= self.pause:
            self.save()

    def save(self) -> None:
        """Write the state beside the file, and note when it may be written again."""
        begun = time.monotonic()
        decoded, numbers = self.decoder.state()
        tensors, slots = {f"vae.{name}": tensor for name, tensor in decoded.items()}, []
        for prompt, cache in zip(PROMPTS, self.caches, strict=True):
            kept, places = cache.state()
            tensors |= {f"{prompt}.{name}": tensor for name, tensor in kept.items()}
            slots.append(places)
        tensors |= {f"recent.{number}": block.x for number, block in enumerate(self.recent)}
        facts = {
            "identity": self.order.identity,
            "seed": self.order.seed,
            "starts": [block.start for block in self.recent],
            "slots": slots,
            "vae": numbers,
            "file": {name: getattr(self.file, name) for name in FILE},
            "mark": self.file.mark(),
        }
        try:
            saved.write(saved.path_beside(self.file.path), tensors, facts)
        except DiskFull as error:
            logging.warning("%s cannot go on after a break from here on. %s", self.file.path.name, error)
        self.saved_at = time.monotonic()
        size = sum(tensor.nbytes for tensor in tensors.values())
        self.pause = max(SHARE * (self.saved_at - begun), size / PACE)

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """Go on from what `save` wrote, with its seed."""
        self.order = replace(self.order, seed=facts["seed"])
        device = self.order.stage.model.load_device
        for prompt, cache, slots in zip(PROMPTS, self.caches, facts["slots"], strict=True):
            cache.restore(_under(f"{prompt}.", tensors), slots, device)
        self.decoder.restore(_under("vae.", tensors), facts["vae"])
        for number, start in enumerate(facts["starts"]):
            self.recent.append(Block(start, tensors[f"recent.{number}"].to(device)))
        for name in FILE:
            setattr(self.file, name, facts["file"][name])


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class StreamSampler(comfy.samplers.Sampler):
    """Makes the blocks of one prompt, up to latent frame `stop`. switches: whether another prompt was before it."""

    def __init__(self, production: Production, stop: int | None, switches: bool):
        self.production, self.stop, self.switches = production, stop, switches

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Make the blocks and return nothing of them; the host calls this with model and VAE loaded."""
        production, order, inner = self.production, self.production.order, model_wrap.inner_model
        clip = Clip(model_wrap, sigmas, extra_args, order.rollout, production.caches, lambda *span: begin(*span)[0])

        def begin(start: int, stop: int):
            return order.noise(start, stop, noise)

        def take(block: Block) -> None:
            production.take(block, inner.process_latent_out(block.x.float()))

        if order.given is not None:
            for block in split(inner.process_latent_in(order.given.to(noise)), order.rollout.block):
                if block.start >= production.length:
                    if production.recent:
                        clip.keep(production.recent[-1])
                    take(block)
        last, steps, size = self.context(clip), len(sigmas) - 1, order.rollout.block

        def report(start: int, step: int, x0: torch.Tensor, x: torch.Tensor) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if order.stop is None:
                callback(step, x0, x, steps)
            else:
                done = (start - order.first) // size
                callback(done * steps + step, x0, x, (order.stop - order.first) // size * steps)

        for block in clip.blocks(order.schedule.solver, self.places(size), begin, report, last):
            take(block)
        return noise

    def places(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield first latent frame and end of each block that is left, of `size` frames."""
        start = self.production.length
        while self.stop is None or start < self.stop:
            yield start, start + size
            start += size

    def context(self, clip: Clip) -> Block | None:
        """Return the finished block that the next one must still be given as context; after a switch there is none."""
        recent = self.production.recent
        if recent and self.switches:
            clip.switch(recent)
            return None
        return recent[-1] if recent else None
