"""GGUF weights as the host's layers: packed wherever they lie, unpacked on the device by the layer that runs.

The host moves, offloads and streams the packed bytes like any weight; its cast finds them already in their type, and
its weight functions (LoRAs among them) come after the unpacking.
"""

from types import SimpleNamespace

import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ...wan_model.weights import ggml
from ...wan_model.weights.quantisation import PACKED_MARKER
from .offload import MappedPatcher


def is_packed(state_dict: dict) -> bool:
    """Whether weights of `state_dict` are packed as `checkpoint.load` gives them."""
    return any(name.endswith(PACKED_MARKER) for name in state_dict)


def holds_packed(module: torch.nn.Module) -> bool:
    """Whether a layer of `module` has a packed weight."""
    return next(packed_layers(module), None) is not None


def packed_layers(module: torch.nn.Module):
    """The layers of `module` whose weight is packed, one after the other."""
    return (layer for layer in module.modules() if getattr(layer, "kind", None) is not None)


class PackedLayer:
    """Mixed into a layer of the host with one weight: it may be packed. kind: a key of `ggml.FORMATS`, or None."""

    kind = None

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        marker = state_dict.pop(prefix + PACKED_MARKER[1:], None)
        if marker is not None:
            self.kind = int(marker)
            self.weight = torch.nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def on_device(self, device, functions, bias_dtype):
        """(packed weight after `functions`, bias, what the host's `uncast_bias_weight` wants) on `device`."""
        packed = SimpleNamespace(
            weight=self.weight, bias=self.bias, weight_function=functions, bias_function=self.bias_function
        )
        return comfy.ops.cast_bias_weight(
            packed, device=device, dtype=torch.uint8, bias_dtype=bias_dtype, offloadable=True
        )


class PackedOps(comfy.ops.manual_cast):
    """The host's casting operations with linear layers and embeddings that take packed weights."""

    class Linear(PackedLayer, comfy.ops.manual_cast.Linear):
        """y = x W + b for a packed W."""

        def forward_comfy_cast_weights(self, input):
            if self.kind is None:
                return super().forward_comfy_cast_weights(input)

            def unpack(data):
                return ggml.unpack(ggml.Packed(data, self.kind), input.dtype)

            weight, bias, stream = self.on_device(input.device, [unpack, *self.weight_function], input.dtype)
            out = torch.nn.functional.linear(input, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out

    class Embedding(PackedLayer, comfy.ops.manual_cast.Embedding):
        """Rows of a packed table; only those that are asked for are unpacked."""

        def forward_comfy_cast_weights(self, input, out_dtype=None):
            if self.kind is None:
                return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)
            table, bias, stream = self.on_device(input.device, [], None)
            rows = table[input.flatten()]  # (B, L) -> (B L, bytes of a row)
            out = ggml.unpack(ggml.Packed(rows, self.kind), out_dtype or torch.float32)
            comfy.ops.uncast_bias_weight(self, table, bias, stream)
            return out.unflatten(0, input.shape)  # (B L, C) -> (B, L, C)


class PackedPatcher(MappedPatcher):
    """The host's patcher, which never adds a patch to packed bytes: the layer's weight function does when it runs."""

    def load(self, *arguments, **options):
        super().load(*arguments, **options)
        for name, layer in self.model.named_modules():  # the host has emptied the functions of what stays on the device
            key, functions = f"{name}.weight", getattr(layer, "weight_function", ())
            if getattr(layer, "kind", None) is None or key not in self.patches:
                continue
            if not any(isinstance(function, comfy.model_patcher.LowVramPatch) for function in functions):
                layer.weight_function = [comfy.model_patcher.LowVramPatch(key, self.patches), *functions]

    def patch_weight_to_device(self, key, device_to=None, *arguments, **options):
        layer_name, _, parameter = key.rpartition(".")
        layer = comfy.utils.get_attr(self.model, layer_name) if parameter == "weight" else None
        if getattr(layer, "kind", None) is None:
            return super().patch_weight_to_device(key, device_to, *arguments, **options)
        self.keep_home(key, device_to)
        return None

    def partially_unload(self, *arguments, **options):
        freed = super().partially_unload(*arguments, **options)
        for layer in packed_layers(self.model):  # the host has added to each unloaded layer the patch that it had
            patches = [f for f in layer.weight_function if isinstance(f, comfy.model_patcher.LowVramPatch)]
            layer.weight_function = [f for f in layer.weight_function if f not in patches[1:]]
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for layer in packed_layers(self.model):
                layer.weight_function = []
