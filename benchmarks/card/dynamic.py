"""Dynamic VRAM of newer hosts, which their main.py turns on for NVIDIA cards: each weight is loaded when it is used."""

import importlib
from collections.abc import Callable

from .items import Skip


def begin(dry: bool) -> Callable[[], None]:
    """Prepare it before the host is imported; return a function that turns it on after that, both as main.py does.

    Raise Skip where there is none.
    """
    if dry:
        raise Skip("dynamic VRAM is for CUDA")
    try:
        control = importlib.import_module("comfy_aimdo.control")
    except ImportError as error:
        raise Skip("this ComfyUI has no dynamic VRAM") from error
    try:
        control.init(simple_vram_headroom=None, nvml_pressure=True)
    except TypeError:  # an older form
        control.init()
    return lambda: turn_on(control)


def turn_on(control) -> None:
    """Make the host load models with its dynamic patcher. Raise Skip where it does not work."""
    names = ("cli_args", "memory_management", "model_management", "model_patcher")
    args, memory, management, patcher = (importlib.import_module(f"comfy.{name}") for name in names)
    headroom = int(args.args.vram_headroom * 1024**3)
    devices = management.get_all_torch_devices()
    try:
        works = control.init_devices((device.index, headroom) for device in devices)
    except TypeError:  # an older form
        works = control.init_devices(device.index for device in devices)
    if not works:
        raise Skip("comfy-aimdo does not work on this machine")
    patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
    memory.aimdo_enabled = True
