"""torch.compile for the blocks of a MODEL, one by one, with the host's own wrapper."""

import importlib.util
import logging
import os
import shutil

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper

COMPILERS = ("c++", "g++", "clang++", "cl")  # one of which torch.compile needs on a CPU
OLDEST = 7  # compute capability that Triton supports


def compile_blocks(model) -> None:
    """Compile the blocks of the MODEL `model`, or log why that is not possible.

    All blocks share one compiled function, for every step, size and LoRA strength.
    """
    reason = obstacle(model.load_device)
    if reason:
        logging.warning("The blocks are not compiled: %s.", reason)
        return
    network = model.model.diffusion_model
    keys = [
        f"diffusion_model.{stack}.{index}"
        for stack in ("blocks", "vace_blocks")
        for index in range(len(getattr(network, stack, ())))
    ]
    set_torch_compile_wrapper(model, backend="inductor", keys=keys, dynamic=True)


def obstacle(device: torch.device) -> str | None:
    """Return the reason why torch.compile does not work on `device`, or None."""
    if device.type == "cpu":
        found = os.environ.get("CXX") or any(map(shutil.which, COMPILERS))
        return None if found else "torch.compile needs a C++ compiler for the CPU, such as g++"
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton, and it is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < OLDEST:
        return "torch.compile needs a newer graphics card"
    return None
