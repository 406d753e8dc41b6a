"""Offloading: models that leave the device right after use, and weights that return to their memory-mapped file."""

from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from .. import compat


class Home(NamedTuple):
    """The host's record for restoring a weight; the field names are the host's."""

    weight: torch.Tensor
    inplace_update: bool = False


class MappedPatcher(comfy.model_patcher.ModelPatcher):
    """The host's patcher, which backs up each weight of `model.mapped` before it moves it to a device.

    The host restores backups before it unloads the device, so no weight has to be copied to RAM.
    """

    def load(self, device_to=None, *arguments, **options):
        super().load(device_to, *arguments, **options)
        if device_to is None or comfy.model_management.is_device_cpu(device_to):
            return
        for name, module in self.model.named_modules():
            if next(module.children(), None) is None:
                continue
            for parameter, weight in module.named_parameters(recurse=False):  # which the host does not move
                self.keep_home(f"{name}.{parameter}", device_to)
                weight.data = weight.data.to(device_to)

    def patch_weight_to_device(self, key, device_to=None, *arguments, **options):
        if key not in self.patches:  # the host backs up patched weights itself
            self.keep_home(key, device_to)
        return super().patch_weight_to_device(key, device_to, *arguments, **options)

    def keep_home(self, key: str, device: torch.device | None) -> None:
        """Back up the weight `key` before it moves to `device`, if it is in a memory-mapped file."""
        if device is None or comfy.model_management.is_device_cpu(device) or key in self.backup:
            return
        if key in getattr(self.model, "mapped", ()):
            self.backup[key] = Home(comfy.utils.get_attr(self.model, key).data)  # the parameter itself will move


def leave_device(patcher) -> None:
    """Unload the model of a host patcher now; the host would keep it until memory is short.

    A dynamic patcher frees memory by itself when others need it.
    """
    if compat.is_dynamic(patcher):
        return
    management = comfy.model_management
    others = [m for m in management.current_loaded_models if m.model is None or m.model.model is not patcher.model]
    management.free_memory(1e30, patcher.load_device, keep_loaded=others)


def names(module: torch.nn.Module, state_dict: dict, prefix: str) -> frozenset[str]:
    """Return the names, with `prefix`, of the parameters of `module` that share memory with `state_dict`."""
    return frozenset(
        prefix + name
        for name, parameter in module.named_parameters()
        if name in state_dict
        and type(parameter.data) is torch.Tensor
        and parameter.data_ptr() == state_dict[name].data_ptr()
    )
