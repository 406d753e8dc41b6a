"""GGUF files: what a weight is in a packed form, and how a file is written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor


class Packed(NamedTuple):
    """A weight as uint8 (rows, bytes of a row) in `form`, such as "Q4_0"."""

    blocks: np.ndarray
    form: str


def pack(weight: Tensor, form: str) -> Packed:
    """A weight (rows, columns) in `form`."""
    return Packed(gguf.quantize(weight.detach().float().numpy(), gguf.GGMLQuantizationType[form]), form)


def unpack(packed: Packed) -> Tensor:
    """The values (rows, columns), float32."""
    return torch.from_numpy(gguf.dequantize(packed.blocks, gguf.GGMLQuantizationType[packed.form]))


def write(
    path: Path,
    weights: Mapping[str, Tensor],
    packed: Mapping[str, Packed],
    describe: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    arch: str = "wan",
) -> None:
    """Write `weights`, with `packed` in the place of those of the same names. describe: adds fields to the header."""
    writer = gguf.GGUFWriter(path, arch)
    describe(writer)
    for name, weight in weights.items():
        if name in packed:
            blocks, form = packed[name]
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[form])
            continue
        if weight.ndim > 4:  # GGUF has four sides
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(weight.shape))
            weight = weight.flatten(3)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
