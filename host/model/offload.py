"""Weights that leave the device: at once after use, and home to their memory-mapped file in place of a copy in RAM."""

from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from .. import compat


class Home(NamedTuple):
    """What the host keeps of a weight to put it back; the names are the host's."""

    weight: torch.Tensor
    inplace_update: bool = False


class MappedPatcher(comfy.model_patcher.ModelPatcher):
    """The host's patcher, which backs up each weight of `model.mapped` before it moves it to a device.

    The host puts what it has backed up back before it empties the device, so nothing is left to copy.
    """

    def load(self, device_to=None, *arguments, **options):
        super().load(device_to, *arguments, **options)
        if device_to is None or comfy.model_management.is_device_cpu(device_to):
            return
        for name, module in self.model.named_modules():
            if next(module.children(), None) is None:
                continue
            for parameter, weight in module.named_parameters(recurse=False):  # which the host leaves where they are
                self.keep_home(f"{name}.{parameter}", device_to)
                weight.data = weight.data.to(device_to)

    def patch_weight_to_device(self, key, device_to=None, *arguments, **options):
        if key not in self.patches:  # of a patched one the host keeps a backup itself
            self.keep_home(key, device_to)
        return super().patch_weight_to_device(key, device_to, *arguments, **options)

    def keep_home(self, key: str, device: torch.device | None) -> None:
        """Backs up the weight `key`, which is about to move to `device`, if it lies in a file."""
        if device is None or comfy.model_management.is_device_cpu(device) or key in self.backup:
            return
        if key in getattr(self.model, "mapped", ()):
            self.backup[key] = Home(comfy.utils.get_attr(self.model, key).data)  # the parameter itself will move


def leave_device(patcher) -> None:
    """Takes the model of a host patcher off its device, where the host would leave it until memory is short.

    A dynamic patcher gives way by itself, and keeps what it can for the next time.
    """
    if compat.is_dynamic(patcher):
        return
    management = comfy.model_management
    others = [m for m in management.current_loaded_models if m.model is None or m.model.model is not patcher.model]
    management.free_memory(1e30, patcher.load_device, keep_loaded=others)


def names(module: torch.nn.Module, state_dict: dict, prefix: str) -> frozenset[str]:
    """Names, behind `prefix`, of the parameters of `module` that are the tensors of `state_dict` themselves."""
    return frozenset(
        prefix + name
        for name, parameter in module.named_parameters()
        if name in state_dict
        and type(parameter.data) is torch.Tensor
        and parameter.data_ptr() == state_dict[name].data_ptr()
    )
