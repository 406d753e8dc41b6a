"""Copies from RAM to a device."""

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device | str | None) -> Tensor:
    """Return `x` on `device`, None for where it is.

    From RAM to CUDA it goes through pinned memory and the host does not wait: any other copy would first wait for all
    work that is queued on the device.
    """
    if device is None or x.device.type != "cpu" or torch.device(device).type != "cuda":
        return x.to(device=device)
    return x.pin_memory().to(device, non_blocking=True)
