"""A live preview of every latent frame of a clip, for the editor's sampler nodes.

Each step sends the event `EVENT` to the client that queued the run; the pictures stay here until that client fetches
them (GET /wan/preview). A slow client misses steps; one that never asks costs almost nothing.
"""

import copy
import io
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from einops import rearrange
from PIL import Image

from ...wan_model import geometry
from ...wan_model.transfer import send
from ...wan_model.variants import FAMILIES
from ...wan_model.weights.marks import LatentRGB
from .. import server
from ..model import references
from ..model.classes import HostModel
from ..transfer import begin_copy
from . import latest

EVENT = "wan.preview"
SIDE = 192  # pixels of a preview frame at most
FRAMES = 81  # latent frames of one sheet at most; picked evenly from a longer clip
QUALITY = 85  # of the JPEG


@dataclass(frozen=True)
class Sheet:
    """Preview frames of a run. fetch: waits for the copy of the frames (T, h, w, 3), uint8, in RAM and returns it."""

    fetch: Callable[[], torch.Tensor]

    def jpeg(self) -> bytes:
        """Return the frames stacked vertically in one picture."""
        buffer = io.BytesIO()
        Image.fromarray(self.fetch().flatten(0, 1).numpy()).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


class SamplingPreview:
    """Wrapper around the samplers of a MODEL that shows their progress. skip: latent frames before the clip."""

    def __init__(self, skip: int = 0):
        self.skip = skip

    def __call__(self, executor, model_wrap, sigmas, extra_args, callback, *rest):
        place = where()
        if place is None or model_wrap.inner_model.latent_format.latent_rgb_factors is None:
            return executor(model_wrap, sigmas, extra_args, callback, *rest)
        model = model_wrap.inner_model
        behind = extra_args["model_options"].get("transformer_options", {}).get(references.KEY, 0)
        run = Run(place, model.latent_format, (self.skip, behind), frame_rate_of(model))

        def show(step, x0, x, steps):
            run.show(step, x0, steps)
            if callback is not None:
                callback(step, x0, x, steps)

        return executor(model_wrap, sigmas, extra_args, show, *rest)


class Run:
    """One pass of a sampler over the steps of one expert. around: latent frames before and behind the clip."""

    def __init__(self, place: dict[str, str], latent_format, around: tuple[int, int], frame_rate: int):
        self.place, self.latent_format, self.around, self.frame_rate = place, latent_format, around, frame_rate
        self.key = secrets.token_urlsafe(16)
        self.start, self.done = time.monotonic(), 0
        self.colours: Colours | None = None

    def show(self, step: int, x0: torch.Tensor, steps: int) -> None:
        """Send step `step` (from 0) of `steps` with a preview of the clip: x0 (B, C, T, h, w) in model space."""
        self.done += 1
        seconds = (time.monotonic() - self.start) / self.done
        before, behind = self.around
        clip = x0[0, :, before : x0.shape[2] - behind]
        self.colours = self.colours or colours_of(self.latent_format, clip.device)
        frames = small_frames(clip, self.colours)
        instance = server.running()
        instance.app[latest.PREVIEW].show(self.key, Sheet(begin_copy(frames)))
        seconds_of_clip = geometry.video_frames(clip.shape[1]) / self.frame_rate
        data = {
            **self.place,
            "step": step + 1,
            "steps": steps,
            "seconds_per_step": seconds,
            "seconds_left": seconds * (steps - step - 1),
            "frames": frames.shape[0],
            "fps": frames.shape[0] / seconds_of_clip,
            "picture": f"/wan/preview?key={self.key}&step={step + 1}",
        }
        instance.send_sync(EVENT, data, instance.client_id)


def watch(patcher, skip: int = 0) -> None:
    """Show a preview whenever the MODEL `patcher` is sampled. skip: latent frames to leave out at its start."""
    patcher.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, EVENT)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, EVENT, SamplingPreview(skip))


def frame_rate_of(model) -> int:
    """Return the frames a second of what `model` was trained with; of another's model, what its latents tell."""
    if isinstance(model, HostModel):
        return model.diffusion_model.config.facts.frame_rate
    return FAMILIES[model.latent_format.latent_channels].frame_rate


def colour(model, latent_rgb: LatentRGB) -> None:
    """Make `latent_rgb` the map from latents to colours of the host's `model`, for the host's own preview too.

    The model gets a latent format of its own: the host may share one among models.
    """
    model.latent_format = copy.copy(model.latent_format)
    model.latent_format.latent_rgb_factors = latent_rgb.factors
    model.latent_format.latent_rgb_factors_bias = latent_rgb.bias


def where() -> dict[str, str] | None:
    """Return the node and prompt that are being executed, or None without a client."""
    context = get_executing_context()
    if context is None or getattr(server.running(), "client_id", None) is None:
        return None
    node = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    return {"node": node, "prompt_id": context.prompt_id}


class Colours(NamedTuple):
    """The linear map from latents to colours, on the device of the latents: factors (3, C), and bias (3,) or None."""

    factors: torch.Tensor
    bias: torch.Tensor | None


def colours_of(latent_format, device: torch.device) -> Colours:
    """Return the map of the host's `latent_format`, which has one."""
    bias = latent_format.latent_rgb_factors_bias
    factors = send(torch.tensor(latent_format.latent_rgb_factors).T, device)
    return Colours(factors, None if bias is None else send(torch.tensor(bias), device))


def small_frames(x0: torch.Tensor, colours: Colours) -> torch.Tensor:
    """Return RGB frames (T, h, w, 3), uint8, of a latent clip (C, T, h, w), on its device."""
    wanted = min(x0.shape[1], FRAMES)
    if wanted < x0.shape[1]:
        x0 = x0[:, torch.linspace(0, x0.shape[1] - 1, wanted, device=x0.device).round().long()]
    pixels = rearrange(x0, "c t h w -> t c h w").float()
    scale = SIDE / max(pixels.shape[-2:])
    if scale < 1:
        pixels = F.interpolate(pixels, scale_factor=scale, mode="area")
    rgb = F.linear(pixels.movedim(1, -1), *colours)
    return rgb.add_(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
