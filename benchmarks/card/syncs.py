"""Counts the calls that make the host wait for the device, in a sampling step and in a decoded or encoded block.

On a card by torch's own debug mode, elsewhere on a simulated device (`simulated.py`).
"""

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from . import simulated

PLENTY = 2**40  # bytes
DEBUG_MODE = "synchronizing CUDA operation"  # in torch's warning
MODEL = "diffusion_models/tiny_random_wan2.1_t2v.safetensors"
VAE = "vae/tiny_random_wan2.1_vae.safetensors"
LIMITS = {"a sampling step": 1, "a decoded block": 0, "an encoded block": 0}

Waits = list[tuple[str, str]]


@dataclass(frozen=True)
class Device:
    """A device on which waits are counted. take(patcher, network): puts a model on it. begin: starts counting, returns
    a function that ends it and returns what waited."""

    take: Callable[[object, torch.nn.Module], None]
    begin: Callable[[], Callable[[], Waits]]


@contextmanager
def real_card() -> Iterator[Device]:
    """The CUDA device of this machine."""

    def take(patcher, network) -> None:
        importlib.import_module("comfy.model_management").load_models_gpu([patcher])

    yield Device(take, _by_debug_mode)


def _by_debug_mode() -> Callable[[], Waits]:
    caught = warnings.catch_warnings(record=True)
    seen = caught.__enter__()
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")

    def end() -> Waits:
        torch.cuda.set_sync_debug_mode("default")
        caught.__exit__(None, None, None)
        return [("waits", _place(w)) for w in seen if DEBUG_MODE in str(w.message)]

    return end


def _place(warning: warnings.WarningMessage) -> str:
    return f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"


@contextmanager
def simulated_card() -> Iterator[Device]:
    """A simulated CUDA device, on which the host sees plenty of memory and all models loaded."""
    management = importlib.import_module("comfy.model_management")

    def free(device=None, torch_free_too=False):
        return (PLENTY, PLENTY) if torch_free_too else PLENTY

    patches = {
        "get_torch_device": lambda: simulated.CARD,
        "vae_device": lambda: simulated.CARD,
        "load_models_gpu": lambda *_, **__: None,
        "get_free_memory": free,
        "get_total_memory": free,
        "get_torch_device_name": lambda device: str(device),
        "is_device_cpu": lambda device: device.type == "cpu",
        "soft_empty_cache": lambda *_, **__: None,
        "cuda_device_context": lambda device: nullcontext(),
    }
    patches = {name: value for name, value in patches.items() if hasattr(management, name)}
    with simulated.simulated() as simulation, mock.patch.multiple(management, **patches):

        def take(patcher, network) -> None:
            simulated.to_card(network)
            patcher.load_device = patcher.model.device = simulated.CARD

        def begin() -> Callable[[], Waits]:
            start = len(simulation.waits)
            return lambda: simulation.waits[start:]

        yield Device(take, begin)


@dataclass(frozen=True)
class Runs:
    """The cases that are counted, on objects of the loaded pack. Each takes the number of steps or of latent frames."""

    node: Callable[..., tuple]
    model: object
    vae: object

    def sample(self, steps: int) -> None:
        """Run WanSampler with guidance."""
        generator = torch.Generator().manual_seed(0)
        width = self.model.model.diffusion_model.config.text_dim
        texts = [[[torch.randn(1, 512, width, generator=generator), {}]] for _ in range(2)]
        given = {"steps": steps, "guidance": 4.0, "shift": 5.0, "solver": "unipc", "seed": 0, "denoise": 1.0}
        given |= {"positive": texts[0], "negative": texts[1], "latent": {"samples": torch.zeros(1, 16, 3, 8, 10)}}
        self.node("WanSampler", model=self.model, **given)

    def decode(self, frames: int) -> None:
        """Decode a latent through the VAE object."""
        self.vae.decode(torch.randn(1, self.vae.latent_channels, frames, 8, 8))

    def encode(self, frames: int) -> None:
        """Encode images through the VAE object."""
        self.vae.encode(torch.rand(4 * frames - 3, 8 * self.vae.config.stride, 8 * self.vae.config.stride, 3))


def per_item(run: Callable[[int], None], device: Device, few: int = 3, many: int = 6) -> Waits:
    """Return what waits once for each item of `run`: of `many` items without that of `few`, for one item."""
    run(few)  # what only the first run does
    counts = []
    for number in (few, many):
        end = device.begin()
        run(number)
        counts.append(Counter(end()))
    extra = counts[1] - counts[0]
    return [wait for wait, count in extra.items() for _ in range(-(-count // (many - few)))]


def counted(runs: Runs, device: Device) -> dict[str, Waits]:
    """Return what waits in a sampling step, a decoded and an encoded block."""
    device.take(runs.model, runs.model.model)
    device.take(runs.vae.patcher, runs.vae.first_stage_model)
    if runs.vae.device.type == "cpu":
        runs.vae.device = simulated.CARD
    items = zip(LIMITS, (runs.sample, runs.decode, runs.encode), strict=True)
    return {name: per_item(run, device) for name, run in items}


def beyond(found: dict[str, Waits]) -> list[str]:
    """Return in words what waits more often than `LIMITS` allow."""
    return [
        f"{len(waits)} waits in {name}, at most {LIMITS[name]}: {summary(waits)}"
        for name, waits in found.items()
        if len(waits) > LIMITS[name]
    ]


def summary(waits: Waits) -> str:
    """Return what waits in words, the most frequent first."""
    counted = Counter(f"{name} at {re.sub(r'^.*wan-stream/', '', where)}" for name, where in waits)
    return "; ".join(f"{count} x {what}" for what, count in counted.most_common()) or "none"
