"""How long forwards took on this machine, kept from run to run for the estimate of the next one."""

import json
import logging
import os
import statistics
import time

import comfy.model_management
import folder_paths
from comfy.patcher_extension import WrappersMP

from ..wan_model.configs import TEXT_LENGTH, DiTConfig
from . import memory

FILE = "wan_stream_times.json"  # in the host's user folder
KEPT = 64  # entries of that file, the newest


def flops(config: DiTConfig, length: int) -> float:
    """Floating point operations of one forward for `length` tokens of one sample."""
    dim = config.dim
    linear = 2 * length * (6 * dim * dim + 2 * dim * config.ffn_dim) + 4 * TEXT_LENGTH * dim * dim
    scores = 4 * length * (length + TEXT_LENGTH) * dim
    return (config.layers + len(config.vace_layers)) * (linear + scores)


class Timer:
    """Times a MODEL's network during a run.

    identity: what of a model its speed depends on, beside the device and the number of tokens.
    """

    def __init__(self, model, identity: str):
        self.identity, self.seconds, self.length = identity, [], 0
        self.device = comfy.model_management.get_torch_device_name(model.load_device)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "wan_timer", self._call)

    def _call(self, executor, x, *arguments, **options):
        start = time.perf_counter()
        result = executor(x, *arguments, **options)  # which waits for the device when it looks for NaN
        self.seconds.append((time.perf_counter() - start) / len(x))
        self.length = memory.tokens((1, *x.shape[1:]))
        return result

    def keep(self) -> None:
        """Writes the median time of a sample, without the first call if there were others."""
        if not self.seconds:
            return
        key, entries = _key(self.device, self.identity, self.length), _read()
        entries.pop(key, None)  # the newest stand last
        entries[key] = {"length": self.length, "seconds": statistics.median(self.seconds[1:] or self.seconds)}
        try:
            os.makedirs(folder_paths.get_user_directory(), exist_ok=True)
            with open(_path(), "w", encoding="utf-8") as file:
                json.dump(dict(list(entries.items())[-KEPT:]), file)
        except OSError as error:
            logging.warning("The time of this run could not be kept for the next estimate: %s", error)


def expected(config: DiTConfig, identity: str, device: str, length: int) -> tuple[float | None, str]:
    """Seconds of a forward for a sample of `length` tokens, and where they were measured: "this size", "another size".

    Another size is scaled by the work. None and "" where nothing was measured. device: the host's name for it.
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or not as `keep` writes it
        return {}
