"""Weights that stay packed: GGUF blocks as the host's layers, unpacked on the device by the layer that runs.

The host moves, offloads and streams the packed bytes like any weight; its cast finds them already in their type, and
its weight functions (LoRAs among them) come after the unpacking. What the host reads otherwise than by running the
layer (saving, merging, extracting, hooks) gets the values, too.
"""

from types import SimpleNamespace

import comfy.hooks
import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.utils
import torch

from ...wan_model.weights import ggml
from ...wan_model.weights.quantisation import PACKED_MARKER
from .offload import MappedPatcher

QUANTISED_LIST = "_quantization_metadata"  # what 0.3.75 adds to a state dict to save; it cannot write these weights


def is_packed(state_dict: dict) -> bool:
    """Whether weights of `state_dict` are packed as `checkpoint.load` gives them."""
    return any(name.endswith(PACKED_MARKER) for name in state_dict)


def holds_packed(module: torch.nn.Module) -> bool:
    """Whether a layer of `module` has a packed weight."""
    return any(is_packed_layer(layer) for layer in module.modules())


def holds_quantised(module: torch.nn.Module) -> bool:
    """Whether a layer of `module` has a weight that the host keeps quantised."""
    return any(is_quantised_layer(layer) for layer in module.modules())


def is_packed_layer(layer: torch.nn.Module) -> bool:
    """Whether the weight of `layer` is GGUF bytes."""
    return getattr(layer, "kind", None) is not None


def is_quantised_layer(layer: torch.nn.Module) -> bool:
    """Whether the weight of `layer` is one of the host's quantised tensors."""
    weight = getattr(layer, "weight", None)
    kinds = (weight, getattr(weight, "data", None))  # a parameter of one hides it in some versions of torch
    return any(isinstance(tensor, comfy.quant_ops.QuantizedTensor) for tensor in kinds)


def named_packed_layers(module: torch.nn.Module):
    """(name, layer) of each layer of `module` whose weight is packed."""
    return ((name, layer) for name, layer in module.named_modules() if is_packed_layer(layer))


def value(layer: torch.nn.Module) -> torch.Tensor:
    """The weight of a packed or quantised layer as a new float tensor, with the layer's weight functions (patches)."""
    if is_packed_layer(layer):
        weight = layer.unpack(layer.weight.data, torch.float32)
    else:
        weight = layer.convert_weight(layer.weight).float()
    for function in layer.weight_function:
        weight = function(weight)
    return weight


def with_values(network: torch.nn.Module, state_dict: dict, dtype: torch.dtype) -> dict:
    """`state_dict`, which the host is about to save of `network`, with packed weights as values in `dtype`.

    The host's quantised weights are left to it where it can write them.
    """
    prefix = next(name for name in state_dict if name.endswith("head.modulation")).removesuffix("head.modulation")
    cannot_write = state_dict.pop(prefix + QUANTISED_LIST, None) is not None
    for name, layer in network.named_modules():
        if is_packed_layer(layer) or (cannot_write and is_quantised_layer(layer)):
            state_dict[f"{prefix}{name}.weight"] = value(layer).to(dtype)
            for scale in ("weight_scale", "input_scale"):
                state_dict.pop(f"{prefix}{name}.{scale}", None)
    return state_dict


class PackedLayer:
    """Mixed into a layer of the host with one weight: it may be packed. kind: a key of `ggml.FORMATS`, or None."""

    kind = None

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        marker = state_dict.pop(prefix + PACKED_MARKER[1:], None)
        if marker is None:
            return super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.kind = int(marker)
        self.weight = torch.nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
        return torch.nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments)

    def unpack(self, data, dtype):
        """The values of packed bytes (rows, bytes of a row), which the host may have cast to a float type."""
        return ggml.unpack(ggml.Packed(data.to(torch.uint8), self.kind), dtype)

    def convert_weight(self, weight, inplace=False, **options):
        """The host's call for the values of `weight`, its own copy of this layer's."""
        if self.kind is not None:
            return self.unpack(weight, torch.float32)
        convert = getattr(super(), "convert_weight", None)
        return weight if convert is None else convert(weight, inplace=inplace, **options)

    def on_device(self, device, functions, bias_dtype):
        """(packed weight after `functions`, bias, what the host's `uncast_bias_weight` wants) on `device`."""
        packed = SimpleNamespace(
            weight=self.weight, bias=self.bias, weight_function=functions, bias_function=self.bias_function
        )
        return comfy.ops.cast_bias_weight(
            packed, device=device, dtype=torch.uint8, bias_dtype=bias_dtype, offloadable=True
        )


def operations(base):
    """`base`, a namespace of the host's casting layers, with linear layers and embeddings that take packed weights."""

    class Operations(base):
        class Linear(PackedLayer, base.Linear):
            """y = x W + b for a packed W."""

            def forward(self, input, *arguments, **options):
                if self.kind is None:
                    return super().forward(input, *arguments, **options)
                comfy.ops.run_every_op()
                functions = [lambda data: self.unpack(data, input.dtype), *self.weight_function]
                weight, bias, stream = self.on_device(input.device, functions, input.dtype)
                out = torch.nn.functional.linear(input, weight, bias)
                comfy.ops.uncast_bias_weight(self, weight, bias, stream)
                return out

        class Embedding(PackedLayer, base.Embedding):
            """Rows of a packed table; only those that are asked for are unpacked."""

            def forward_comfy_cast_weights(self, input, out_dtype=None):
                if self.kind is None:
                    return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)
                table, bias, stream = self.on_device(input.device, [], None)
                rows = table[input.flatten()]  # (B, L) -> (B L, bytes of a row)
                out = self.unpack(rows, out_dtype or torch.float32)
                comfy.ops.uncast_bias_weight(self, table, bias, stream)
                return out.unflatten(0, input.shape)  # (B L, C) -> (B, L, C)

    return Operations


PackedOps = operations(comfy.ops.manual_cast)


class HookPatch:
    """A weight function: the change of the host's hooks (scheduled LoRAs) to a weight that stays packed."""

    def __init__(self, key, patches, original):
        self.key, self.patches, self.original = key, patches, original

    def __call__(self, weight):
        return comfy.lora.calculate_weight(
            self.patches, weight, self.key, intermediate_dtype=weight.dtype, original_weights=self
        )

    def __getitem__(self, key):
        """The host's look-up of the weight before all patches, where a patch is a difference to it."""
        weight, convert = self.original
        return [(convert(weight.data), None)]


def hook(layer: torch.nn.Module, patch: HookPatch | None) -> None:
    """Make `patch` the one hook on the weight of `layer`, or take the one that is there away."""
    present = getattr(layer, "weight_function", ())
    functions = [function for function in present if not isinstance(function, HookPatch)]
    if patch is not None or len(functions) != len(present):
        layer.weight_function = functions if patch is None else [*functions, patch]


class Values(dict):
    """A state dict of `model` whose packed weights are unpacked when they are asked for."""

    def __init__(self, model, state_dict, kept):
        super().__init__(state_dict)
        self.model, self.kept = model, kept

    def __getitem__(self, name):
        return value(layer_of(self.model, name)) if name in self.kept else super().__getitem__(name)


class WithoutPacked:
    """`model` to the host's saving, without the weights `names` in its state dict."""

    def __init__(self, model, names):
        self.model, self.names = model, names

    def __getattr__(self, name):
        return getattr(self.model, name)

    def state_dict(self):
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.names}


def layer_of(model: torch.nn.Module, key: str) -> torch.nn.Module | None:
    """The layer of which `key` is the weight; None for other parameters."""
    name, _, parameter = key.rpartition(".")
    return comfy.utils.get_attr(model, name) if parameter == "weight" and name else None


class PackedPatcher(MappedPatcher):
    """The host's patcher for packed and quantised weights.

    It never adds a patch to packed bytes, nor a hook to quantised weights: the layer's weight functions do when it
    runs. Whatever else the host reads of a packed weight is its values.
    """

    def load(self, *arguments, **options):
        super().load(*arguments, **options)
        self.set_functions()

    def set_functions(self):
        """Give each packed layer the patches of its weight as its one patching function; the host's would unpack it."""
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
        self.set_functions()  # the host has added to each unloaded layer the patch that it had
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, layer in named_packed_layers(self.model):
                layer.weight_function = []

    def model_state_dict(self, filter_prefix=None):
        state_dict = super().model_state_dict(filter_prefix)
        kept = {name for name in state_dict if is_packed_layer(layer_of(self.model, name))}
        return Values(self.model, state_dict, kept)

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
        """Whether the weight `key` stays as it is, packed or quantised."""
        layer = layer_of(self.model, key)
        return is_packed_layer(layer) or is_quantised_layer(layer)
