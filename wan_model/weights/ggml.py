"""The packed number formats of GGUF files and their unpacking in torch, on any device.

Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h and ggml-quants.c (`dequantize_row_*`). A row of
a weight is a sequence of blocks; a block holds its scales and 32 or 256 small integers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**24  # values that are unpacked at a time
WORKSPACE = 12 * AT_ONCE  # bytes used for it: three copies in float32


class Format(NamedTuple):
    """One packed format: values in a block, bytes of a block, and uint8 (n, bytes) -> float32 (n, values)."""

    name: str
    values: int
    size: int
    decode: Callable[[Tensor], Tensor]


class Packed(NamedTuple):
    """A weight as it lies in the file: uint8 (rows, bytes of a row) in the format `FORMATS[kind]`."""

    data: Tensor
    kind: int


def unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the values (rows, columns) of a packed weight in `dtype`, on its device.

    A few rows at a time, since decoding makes temporary float32 copies.
    """
    layout = FORMATS[packed.kind]
    rows, columns = len(packed.data), packed.data[0].numel() // layout.size * layout.values
    values = torch.empty(rows, columns, dtype=dtype, device=packed.data.device)
    step = max(1, AT_ONCE // columns)
    for part, made in zip(packed.data.split(step), values.split(step), strict=True):
        made.copy_(layout.decode(part.reshape(-1, layout.size)).view(made.shape))
    return values


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at byte `start` of each block, as float32 (n, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _split(data: Tensor, bits: int) -> Tensor:
    """uint8 (..., k) -> (..., 8 / bits, k): the fields of `bits` bits, lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return (data.unsqueeze(-2) >> shifts[:, None]) & (2**bits - 1)


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """Return the 32 single bits from byte `start` on: (n, 32)."""
    return _split(blocks[:, start : start + 4], 1).transpose(1, 2).flatten(1)  # (n, 4 bytes, 8 bits) -> (n, 32)


def _q4_0(blocks):
    return _half(blocks, 0) * (_split(blocks[:, 2:], 4).flatten(1).float() - 8)  # (n, 2, 16) -> (n, 32)


def _q4_1(blocks):
    return _half(blocks, 0) * _split(blocks[:, 4:], 4).flatten(1) + _half(blocks, 2)  # (n, 2, 16) -> (n, 32)


def _q5_0(blocks):
    values = _split(blocks[:, 6:], 4).flatten(1) | _fifth_bits(blocks, 2) << 4  # (n, 2, 16) -> (n, 32)
    return _half(blocks, 0) * (values.float() - 16)


def _q5_1(blocks):
    values = _split(blocks[:, 8:], 4).flatten(1) | _fifth_bits(blocks, 4) << 4  # (n, 2, 16) -> (n, 32)
    return _half(blocks, 0) * values + _half(blocks, 2)


def _q8_0(blocks):
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    """Return values (n, 256), each run of 32 or 16 multiplied by its scale (n, 8 or 16)."""
    return (values.float().unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1)  # (n, s, 256 / s)


def _q2_k(blocks):
    scales = blocks[:, :16]
    values = _split(blocks[:, 16:80].unflatten(1, (2, 32)), 2).flatten(1)  # (n, 2, 4, 32) -> (n, 256)
    minimum = (_half(blocks, 82) * (scales >> 4)).repeat_interleave(16, dim=1)
    return _scaled(values, _half(blocks, 80) * (scales & 15)) - minimum


def _q3_k(blocks):
    high = _split(blocks[:, :32], 1)  # (n, 8, 32): one bit of each value, in the order of the value's halves and shifts
    low = _split(blocks[:, 32:96].unflatten(1, (2, 32)), 2).flatten(1, 2)  # (n, 2, 4, 32) -> (n, 8, 32)
    values = (low | high << 2).flatten(1).float() - 4
    scales = _split(blocks[:, 96:104], 4).flatten(1) | _split(blocks[:, 104:108], 2).flatten(1) << 4  # (n, 16)
    return _scaled(values, _half(blocks, 108) * (scales.float() - 32))


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes (n, 12) -> eight scales and eight minima of 6 bits, (n, 8) each."""
    first, second, third = packed.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=1)
    return scales, minima


def _q4_k(blocks):
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    values = _split(blocks[:, 16:].unflatten(1, (4, 32)), 4).flatten(1)  # (n, 4, 2, 32) -> (n, 256)
    minimum = (_half(blocks, 2) * minima).repeat_interleave(32, dim=1)
    return _scaled(values, _half(blocks, 0) * scales) - minimum


def _q5_k(blocks):
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    high = _split(blocks[:, 16:48], 1)  # (n, 8, 32)
    low = _split(blocks[:, 48:].unflatten(1, (4, 32)), 4).flatten(1, 2)  # (n, 4, 2, 32) -> (n, 8, 32)
    minimum = (_half(blocks, 2) * minima).repeat_interleave(32, dim=1)
    return _scaled((low | high << 4).flatten(1), _half(blocks, 0) * scales) - minimum


def _q6_k(blocks):
    low = _split(blocks[:, :128].unflatten(1, (2, 64)), 4).flatten(2)  # (n, 2, 2, 64) -> (n, 2, 128)
    high = _split(blocks[:, 128:192].unflatten(1, (2, 32)), 2).flatten(2)  # (n, 2, 4, 32) -> (n, 2, 128)
    values = (low | high << 4).flatten(1).float() - 32
    return _scaled(values, _half(blocks, 208) * blocks[:, 192:208].view(torch.int8))


FORMATS = {  # ggml_type -> format
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    6: Format("Q5_0", 32, 22, _q5_0),
    7: Format("Q5_1", 32, 24, _q5_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    10: Format("Q2_K", 256, 84, _q2_k),
    11: Format("Q3_K", 256, 110, _q3_k),
    12: Format("Q4_K", 256, 144, _q4_k),
    13: Format("Q5_K", 256, 176, _q5_k),
    14: Format("Q6_K", 256, 210, _q6_k),
}
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 24: torch.int8, 26: torch.int32}  # ggml_type -> dtype
