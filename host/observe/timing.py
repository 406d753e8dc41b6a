"""Measured times of forwards on this machine, kept for later estimates."""

import json
import logging
import os
import statistics
import time

import comfy.model_management
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.cost import clip_tokens, flops
from ..model.dit import SHARED

FILE = "wan_stream_times.json"  # in the host's user folder
KEPT = 64  # the newest entries of that file
KEY = "wan_times"  # of the wrappers


def watch(patcher) -> None:
    """Measure the forwards of the MODEL `patcher` in every sampler."""
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, sample)


def sample(executor, model_wrap, sigmas, extra_args, *arguments):
    """Run a sampler, as a wrapper around it, and keep the times of the network's forwards."""
    timer = Timer()
    options = extra_args["model_options"]["transformer_options"]  # this run's own
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, timer.forward, options)
    result = executor(model_wrap, sigmas, extra_args, *arguments)
    timer.keep(identity_of(model_wrap.inner_model))
    return result


def identity(name: str, dtype: torch.dtype) -> str:
    """Return the part of a model that sets its speed on one device and size: its file and compute dtype."""
    return f"{name}|{dtype}"


def identity_of(model) -> str:
    """Return `identity` of a `HostModel`."""
    return identity(model.source, model.compute_dtype)


def on_several(device: str, count: int) -> str:
    """Return the name for `count` devices of the host's name `device` that share a forward."""
    return device if count == 1 else f"{count} x {device}"


class Timer:
    """Seconds per sample of each forward of a run, with its tokens and device."""

    def __init__(self) -> None:
        self.seconds, self.length, self.device = [], 0, ""

    def forward(self, executor, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **options):
        """Run the network, as a wrapper around it, and measure the time."""
        arguments = (timestep, context, clip_fea, time_dim_concat, transformer_options)
        shared = transformer_options.get(SHARED)
        start = time.perf_counter()
        result = executor(x, *arguments, **options)  # waits for the device when it checks for NaN
        self.seconds.append((time.perf_counter() - start) / len(x))
        self.length = clip_tokens((1, *x.shape[1:]))
        name = comfy.model_management.get_torch_device_name(x.device)
        self.device = name if shared is None else on_several(name, shared.size)
        return result

    def keep(self, identity: str) -> None:
        """Save the median time per sample, without the first call if there are others."""
        if not self.seconds:
            return
        key, entries = _key(self.device, identity, self.length), _read()
        entries.pop(key, None)  # the newest come last
        entries[key] = {"length": self.length, "seconds": statistics.median(self.seconds[1:] or self.seconds)}
        try:
            os.makedirs(folder_paths.get_user_directory(), exist_ok=True)
            with open(_path(), "w", encoding="utf-8") as file:
                json.dump(dict(list(entries.items())[-KEPT:]), file)
        except OSError as error:
            logging.warning("The time of this run could not be kept for later estimates: %s", error)


def expected(config: DiTConfig, identity: str, device: str, length: int) -> tuple[float | None, str]:
    """Return the seconds of a forward for a sample of `length` tokens, and "this size" or "another size" measured.

    Another size is scaled by the work. None and "" if nothing was measured. device: the host's name for it.
    """
    entries = _read()
    same = entries.get(_key(device, identity, length))
    if same is not None:
        return same["seconds"], "this size"
    others = [entry for key, entry in entries.items() if key.startswith(_key(device, identity, ""))]
    if not others:
        return None, ""
    nearest = min(others, key=lambda entry: abs(entry["length"] - length))
    return nearest["seconds"] * flops(config, length) / flops(config, nearest["length"]), "another size"


def _key(device: str, identity: str, length: int | str) -> str:
    return f"{device}|{identity}|{length}"


def _path() -> str:
    return os.path.join(folder_paths.get_user_directory(), FILE)


def _read() -> dict[str, dict]:
    try:
        with open(_path(), encoding="utf-8") as file:
            found = json.load(file)
        return {key: {"length": int(e["length"]), "seconds": float(e["seconds"])} for key, e in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or not in the format of `keep`
        return {}
