"""A host patcher for packed and quantised weights, which patches, hooks, merges and saves their values."""

import comfy.hooks
import comfy.lora
import comfy.model_patcher
import torch

from ...wan_model.weights.quantisation import COMPANION
from .offload import MappedPatcher
from .packed import is_packed_layer, is_quantised_layer, layer_of, named_packed_layers, value


class HookPatch:
    """A weight function that applies the host's hooks (scheduled LoRAs) to a packed weight."""

    def __init__(self, key, patches, original):
        self.key, self.patches, self.original = key, patches, original

    def __call__(self, weight):
        return comfy.lora.calculate_weight(
            self.patches, weight, self.key, intermediate_dtype=weight.dtype, original_weights=self
        )

    def __getitem__(self, key):
        """Return the original weight, for patches that are differences to it; the host looks it up."""
        weight, convert = self.original
        return [(convert(weight.data), None)]


def hook(layer: torch.nn.Module, patch: HookPatch | None) -> None:
    """Make `patch` the only hook on the weight of `layer`; None removes the hook."""
    present = getattr(layer, "weight_function", ())
    functions = [function for function in present if not isinstance(function, HookPatch)]
    if patch is not None or len(functions) != len(present):
        layer.weight_function = functions if patch is None else [*functions, patch]


class Values(dict):
    """A state dict of `model` that unpacks the weights `kept` (packed or quantised) on access."""

    def __init__(self, model, state_dict, kept):
        super().__init__(state_dict)
        self.model, self.kept = model, kept

    def __getitem__(self, name):
        return value(layer_of(self.model, name)) if name in self.kept else super().__getitem__(name)


class WithoutPacked:
    """Proxy of `model` for the host's saving, without the weights `names` in its state dict."""

    def __init__(self, model, names):
        self.model, self.names = model, names

    def __getattr__(self, name):
        return getattr(self.model, name)

    def state_dict(self):
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.names}


class PackedPatcher(MappedPatcher):
    """The host's patcher for packed and quantised weights.

    It never adds a patch to packed bytes or a hook to quantised weights; the layer's weight functions do so when it
    runs. All other reads of a packed weight give its values.
    """

    def load(self, *arguments, **options):
        super().load(*arguments, **options)
        self.set_functions()

    def set_functions(self):
        """Set the patches of each packed layer as one weight function; the host's own would unpack the weight."""
        for name, layer in named_packed_layers(self.model):
            key, patch = f"{name}.weight", comfy.model_patcher.LowVramPatch
            functions = [f for f in layer.weight_function if not isinstance(f, patch)]
            layer.weight_function = [patch(key, self.patches), *functions] if key in self.patches else functions

    def patch_weight_to_device(self, key, device_to=None, *arguments, return_weight=False, **options):
        layer = layer_of(self.model, key)
        if not is_packed_layer(layer):
            options |= {"return_weight": True} if return_weight else {}  # 0.3.75 has no such option
            return super().patch_weight_to_device(key, device_to, *arguments, **options)
        if return_weight:
            weight = layer.unpack(layer.weight.data.to(device_to), torch.float32)
            return comfy.lora.calculate_weight(self.patches.get(key, ()), weight, key)
        self.keep_home(key, device_to)
        return None

    def partially_unload(self, *arguments, **options):
        freed = super().partially_unload(*arguments, **options)
        self.set_functions()  # the host has added the patch of each unloaded layer once more
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, layer in named_packed_layers(self.model):
                layer.weight_function = []

    def model_state_dict(self, filter_prefix=None):
        state_dict = super().model_state_dict(filter_prefix)
        # A newer host also lists the scales of a quantised weight, and then looks for parameters of those names.
        state_dict = {name: tensor for name, tensor in state_dict.items() if not COMPANION.search(name)}
        return Values(self.model, state_dict, {name for name in state_dict if self.keeps(name)})

    def model_state_dict_for_saving(self, model=None, prefix=""):
        model = model or self.model
        packed = {f"{name}.weight" for name, _ in named_packed_layers(model)}  # their values come with `with_values`
        return super().model_state_dict_for_saving(WithoutPacked(model, packed), prefix)

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter):
        if not self.keeps(key):
            return super().patch_hook_weight_to_device(hooks, combined_patches, key, original_weights, memory_counter)
        if key not in combined_patches:
            return None
        patch = HookPatch(key, combined_patches[key], original_weights.pop(key)[0])
        hook(layer_of(self.model, key), patch)
        if self.hook_mode == comfy.hooks.EnumHookMode.MaxSpeed:
            self.cached_hook_patches.setdefault(hooks, {})[key] = (patch, None)
        return None

    def patch_cached_hook_weights(self, cached_weights, key, memory_counter):
        if isinstance(cached_weights[key][0], HookPatch):
            return hook(layer_of(self.model, key), cached_weights[key][0])
        return super().patch_cached_hook_weights(cached_weights, key, memory_counter)

    def unpatch_hooks(self, whitelist_keys_set=None):
        for name, layer in self.model.named_modules():
            if not whitelist_keys_set or f"{name}.weight" in whitelist_keys_set:
                hook(layer, None)
        super().unpatch_hooks(whitelist_keys_set)

    def keeps(self, key: str) -> bool:
        """Return whether the weight `key` stays as it is, packed or quantised."""
        layer = layer_of(self.model, key)
        return is_packed_layer(layer) or is_quantised_layer(layer)
