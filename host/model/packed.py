"""Packed weights: GGUF blocks in the host's layers, unpacked on the device when a layer runs.

The host moves, offloads and streams the packed bytes like any weight. Its weight functions (LoRAs among them) run after
the unpacking. Other readers of a weight (saving, merging, extracting, hooks) get the unpacked values too.
"""

from types import SimpleNamespace

import comfy.ops
import comfy.quant_ops
import comfy.utils
import torch

from ...wan_model.transfer import send
from ...wan_model.weights import ggml
from ...wan_model.weights.quantisation import PACKED_MARKER

QUANTISED_LIST = "_quantization_metadata"  # 0.3.75 adds it when it saves, but cannot write these weights


def is_packed(state_dict: dict) -> bool:
    """Return whether `state_dict` holds packed weights, as `checkpoint.load` gives them."""
    return any(name.endswith(PACKED_MARKER) for name in state_dict)


def holds_packed(module: torch.nn.Module) -> bool:
    """Return whether a layer of `module` has a packed weight."""
    return any(is_packed_layer(layer) for layer in module.modules())


def holds_quantised(module: torch.nn.Module) -> bool:
    """Return whether a layer of `module` has a weight that the host keeps quantised."""
    return any(is_quantised_layer(layer) for layer in module.modules())


def is_packed_layer(layer: torch.nn.Module) -> bool:
    """Return whether the weight of `layer` is GGUF bytes."""
    return getattr(layer, "kind", None) is not None


def is_quantised_layer(layer: torch.nn.Module) -> bool:
    """Return whether the weight of `layer` is one of the host's quantised tensors."""
    weight = getattr(layer, "weight", None)
    kinds = (weight, getattr(weight, "data", None))  # some versions of torch hide it inside a parameter
    return any(isinstance(tensor, comfy.quant_ops.QuantizedTensor) for tensor in kinds)


def named_packed_layers(module: torch.nn.Module):
    """Return (name, layer) of each layer of `module` whose weight is packed."""
    return ((name, layer) for name, layer in module.named_modules() if is_packed_layer(layer))


def value(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight of a packed or quantised layer as a new float tensor, with its weight functions applied."""
    if is_packed_layer(layer):
        weight = layer.unpack(layer.weight.data, torch.float32)
    else:
        weight = layer.convert_weight(layer.weight).float()
    for function in layer.weight_function:
        weight = function(weight)
    return weight


def with_values(network: torch.nn.Module, state_dict: dict, dtype: torch.dtype) -> dict:
    """Return the `state_dict` of `network` that the host is about to save, with packed weights unpacked to `dtype`.

    Quantised weights are left to the host if it can write them.
    """
    prefix = next(name for name in state_dict if name.endswith("head.modulation")).removesuffix("head.modulation")
    cannot_write = state_dict.pop(prefix + QUANTISED_LIST, None) is not None
    for name, layer in network.named_modules():
        if is_packed_layer(layer) or (cannot_write and is_quantised_layer(layer)):
            state_dict[f"{prefix}{name}.weight"] = value(layer).to(dtype)
            for scale in ("weight_scale", "input_scale"):
                state_dict.pop(f"{prefix}{name}.{scale}", None)
    return state_dict


def layer_of(model: torch.nn.Module, key: str) -> torch.nn.Module | None:
    """Return the layer whose weight is `key`, or None for other parameters."""
    name, _, parameter = key.rpartition(".")
    return comfy.utils.get_attr(model, name) if parameter == "weight" and name else None


class PackedLayer:
    """Mixin over a layer of the host whose weight may be packed. kind: a key of `ggml.FORMATS`, or None."""

    kind = None

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        marker = state_dict.pop(prefix + PACKED_MARKER[1:], None)
        if marker is None:
            return super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.kind = int(marker)
        self.weight = torch.nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
        return torch.nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments)

    def unpack(self, data, dtype):
        """Return the values of packed bytes (rows, bytes of a row), which the host may have cast to a float type."""
        return ggml.unpack(ggml.Packed(data.to(torch.uint8), self.kind), dtype)

    def convert_weight(self, weight, inplace=False, **options):
        """Return the values of `weight`, the host's copy of this layer's; the host calls this."""
        if self.kind is not None:
            return self.unpack(weight, torch.float32)
        convert = getattr(super(), "convert_weight", None)
        return weight if convert is None else convert(weight, inplace=inplace, **options)

    def on_device(self, device, functions, bias_dtype):
        """Return (packed weight after `functions`, bias, stream for the host's `uncast_bias_weight`) on `device`."""
        packed = self.__dict__.setdefault("as_packed", SimpleNamespace())  # the host tells layers apart by identity
        given = {"weight": self.weight, "bias": self.bias, "weight_function": functions}
        vars(packed).update(given, bias_function=self.bias_function)
        options = {"dtype": torch.uint8, "bias_dtype": bias_dtype, "offloadable": True}
        try:
            return comfy.ops.cast_bias_weight(packed, device=device, **options)
        finally:
            vars(packed).clear()  # the host keeps the object and must not keep the weights


def operations(base):
    """Return the host's namespace of casting layers `base`, with linear layers and embeddings for packed weights."""

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
            """Rows of a packed table; only the requested ones are moved and unpacked."""

            def forward_comfy_cast_weights(self, input, out_dtype=None):
                if self.kind is None:
                    return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)
                rows = self.weight[input.flatten().to(self.weight.device)]  # (B, L) -> (B L, bytes of a row)
                out = self.unpack(send(rows, input.device), out_dtype or torch.float32)
                return out.unflatten(0, input.shape)  # (B L, C) -> (B, L, C)

    return Operations


PackedOps = operations(comfy.ops.manual_cast)
