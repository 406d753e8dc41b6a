"""A MODEL of which this process keeps a part of the blocks; the weights of the others are lent to it in a forward."""

import dataclasses
import functools
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import torch

from ...wan_model.dit.runtime import Runtime
from ...wan_model.parallel import Borrowed, Loan
from ...wan_model.parallel.loan import buffer_size, form, owner, stored
from ..model import packed
from .description import NETWORK
from .link import Link

REPLICA, SHARDED = "replica", "sharded"
WEIGHTS = (REPLICA, SHARDED)
STACKS = ("blocks", "vace_blocks")  # of a network


class Shard:
    """The part of the MODEL `whole` that a process keeps; `whole` stays as it is.

    patcher: a clone for the host to load, without the weights of blocks that other processes keep. form: a digest of
    how weights are stored; processes with the same one can lend each other theirs. The buffers are made now, so that
    the host counts them as used memory when it loads the model.
    """

    def __init__(self, whole, link: Link):
        network = whole.model.diffusion_model
        stacks = {name: getattr(network, name) for name in STACKS if hasattr(network, name)}
        self.link, self.form = link, form(stacks.values())
        self.names = {id(block): f"{NETWORK}{name}.{i}" for name, s in stacks.items() for i, block in enumerate(s)}
        self.patcher = part_of(whole, stacks, link)
        make_room(whole.model, 2 * sum(map(buffer_size, stacks.values())), link.device)
        self.loan = Loan(stacks.values(), link.device, functools.partial(values, device=link.device), self.dress)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that the host loads, and of the buffers."""
        return self.patcher.model_size() + self.loan.nbytes

    def lent(self, runtime: Runtime) -> Runtime:
        """Return `runtime` for a forward that all processes run now."""
        return dataclasses.replace(runtime, lend=self.loan.by(self.link.weights))

    def settle(self) -> None:
        """Wait for what a forward that was left early had begun to send, as all processes had."""
        if self.loan.pending:
            self.loan.settle(self.link.weights)

    def release(self) -> None:
        """Give the module that all clones of the MODEL share its blocks back; what is loaded stays so."""
        self.patcher.unpatch_model(unpatch_weights=False)

    def dress(self, lent: torch.nn.Module, block: torch.nn.Module) -> None:
        """Give a lent block the patches of packed weights, which are sent without."""
        for name, layer in packed.named_packed_layers(lent):
            key = f"{self.names[id(block)]}.{name}.weight"
            if key in self.patcher.patches:
                layer.weight_function = [comfy.model_patcher.LowVramPatch(key, self.patcher.patches)]


def part_of(whole, stacks: Mapping[str, torch.nn.ModuleList], link: Link):
    """Return a clone of the MODEL `whole` in which `Borrowed` stands for each block that another process keeps.

    The host patches what it loads, so the clone's patches count as other ones: it then loads each weight anew.
    """
    clone = whole.clone()
    for stack, blocks in stacks.items():
        for index, block in enumerate(blocks):
            if owner(index, link.size) == link.rank:
                continue
            name = f"{NETWORK}{stack}.{index}"
            for key in [key for key in clone.object_patches if key.startswith(f"{name}.")]:
                del clone.object_patches[key]  # its owner has it, too
            clone.add_object_patch(name, Borrowed(block))
            clone.size -= comfy.model_management.module_size(block)
    clone.patches_uuid = uuid.uuid5(whole.patches_uuid, f"{link.rank}/{link.size}")
    return clone


def make_room(model, size: int, device: torch.device) -> None:
    """Have the host free `size` bytes of `device`, but not of `model`."""
    if comfy.model_management.is_device_cpu(device):
        return
    loaded = comfy.model_management.current_loaded_models
    kept = [one for one in loaded if one.model is not None and one.model.model is model]
    comfy.model_management.free_memory(size, device, keep_loaded=kept)


@contextmanager
def values(layer: torch.nn.Module, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Give what a layer of an own block computes with on `device`, as `Loan` wants it.

    Where the host keeps a weight elsewhere, or its patches as functions, that is what these make of it; packed bytes
    stay as they are.
    """
    with stored(layer) as held:
        if not is_made_for_each_use(layer, device):
            yield held
            return
    weight, bias, stream = made(layer, device)
    if packed.is_quantised_layer(layer) and not is_quantised(weight):
        weight = layer.set_weight(weight, seed=0, return_weight=True)
    yield held | {"weight": weight, "bias": bias}
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def is_made_for_each_use(layer: torch.nn.Module, device: torch.device) -> bool:
    """Return whether the host brings the weight of `layer` to `device`, or patches it, when the layer runs."""
    if not hasattr(layer, "comfy_cast_weights") or layer.weight is None:
        return False
    return bool(layer.weight.device != device or layer.weight_function or layer.bias_function)


def made(layer: torch.nn.Module, device: torch.device) -> tuple:
    """Return weight, bias and stream of `layer` as the host's layers get them, in the dtypes that are stored."""
    bias_dtype = None if layer.bias is None else layer.bias.dtype
    if packed.is_packed_layer(layer):
        return layer.on_device(device, [], bias_dtype)
    dtype = layer.weight.dtype
    if layer.weight_function and dtype.itemsize == 1:  # in which nothing can be computed
        dtype = torch.bfloat16
    return comfy.ops.cast_bias_weight(layer, device=device, dtype=dtype, bias_dtype=bias_dtype, offloadable=True)


def is_quantised(weight: torch.Tensor) -> bool:
    """Return whether `weight` is one of the host's quantised tensors."""
    return isinstance(weight, comfy.quant_ops.QuantizedTensor)
