"""The check whether Triton kernels work here: they need a package, a driver and a compiler."""

import functools
import logging
import subprocess
import sys
from types import ModuleType

import torch
from torch.nn.functional import normalize, silu

from ..vae.runtime import CPU, Runtime


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that a kernel package for another card, driver or torch raises on import or first call."""
    return (
        *(ImportError, OSError, RuntimeError, AttributeError, AssertionError, TypeError, ValueError),
        subprocess.SubprocessError,
        getattr(sys.modules.get("triton"), "TritonError", RuntimeError),
    )


@functools.cache
def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return the module `triton_kernels` if it works on `device`, tested once; else log the reason and return None."""
    if device.type != "cuda":
        return None
    try:
        from . import triton_kernels as kernels

        _try_out(kernels, device)
    except torch.cuda.OutOfMemoryError:
        raise
    except failures() as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        logging.info("No Triton kernels on %s, torch's operations do the same in more passes. %s", device, reason)
        return None
    return kernels


def vae_runtime(device: torch.device) -> Runtime:
    """Return the kernels and thresholds with which a VAE runs fastest on `device`."""
    if device.type == "cpu":
        return CPU
    kernels = triton_kernels(device)
    return Runtime(kernels=kernels.VAE if kernels else None)


def _try_out(kernels: ModuleType, device: torch.device) -> None:
    """Raise an error if a kernel's result on `device` differs from torch's."""
    x = torch.linspace(-2, 2, 256, device=device).view(1, 4, 1, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    found = torch.full_like(x, torch.nan)
    kernels.activate(x, None, torch.ones(4, device=device), found, history=0, top=0, left=0)
    if not torch.allclose(found, silu(2 * normalize(x, dim=1)), atol=1e-3):
        raise ValueError("Their result is not torch's.")
