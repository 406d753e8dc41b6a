"""The forms of a weight's change that the host's LoRA loader reads, and whether one fits a weight.

In the host: `comfy/lora.py` and `comfy/weight_adapter`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

UP = re.compile(r"\.lora_(up|B)(\.weight)?|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight")
DOWN = re.compile(r"\.lora_(down|A)(\.weight)?|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight")


def change_shape(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return (rows, other elements) of the weight that these tensors change; None if they do not determine it."""

    def find(*marks: str) -> tuple[int, ...] | None:
        return next((tuple(t.shape) for s, t in tensors.items() if any(mark in s for mark in marks)), None)

    up = next((t.shape for s, t in tensors.items() if UP.fullmatch(s)), None)
    down = next((t.shape for s, t in tensors.items() if DOWN.fullmatch(s)), None)
    if up and down:
        return up[0], math.prod(down[1:])
    if ".diff" in tensors:
        shape = tensors[".diff"].shape
        return shape[0], math.prod(shape[1:])
    first, second = find("hada_w1_a"), find("hada_w1_b")
    if first:
        return first[0], second[-1] if second else 0
    factors: list[tuple[int, ...]] = []
    for factor in ("lokr_w1", "lokr_w2"):
        whole, rows, columns = (tensors.get(f".{factor}{part}") for part in ("", "_a", "_b"))
        if whole is not None:
            factors.append(tuple(whole.shape))
        elif rows is None or columns is None:
            return None
        else:
            factors.append((rows.shape[0], math.prod(columns.shape[1:])))
    return factors[0][0] * factors[1][0], math.prod(factors[0][1:]) * math.prod(factors[1][1:])


@dataclass(frozen=True)
class Form:
    """One form of a change. suffixes: of its tensors. fits: (tensors, shape of the parameter) -> whether they fit.

    options: further suffixes, which adapters of all kinds share. of_bias: whether it changes the bias.
    is_factor: whether a LoRA's alpha scales it.
    """

    kind: str
    suffixes: re.Pattern
    fits: Callable[[Mapping[str, Tensor], tuple[int, ...]], bool]
    options: tuple[str, ...] = ()
    of_bias: bool = False
    is_factor: bool = False
    dims: int = 1  # least number of dimensions of each tensor


def scale(tensors: Mapping[str, Tensor]) -> float:
    """alpha / rank of the LoRA in `tensors`, 1 where it has no alpha."""
    down = next((tensor for suffix, tensor in tensors.items() if DOWN.fullmatch(suffix)), None)
    return 1.0 if down is None or ".alpha" not in tensors else float(tensors[".alpha"]) / down.shape[0]


def _flat(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[0], math.prod(tensor.shape[1:])


def _dora_fits(tensors, shape) -> bool:
    scale = tensors.get(".dora_scale")
    if scale is not None and scale.ndim == 0:
        return False
    return scale is None or scale.numel() == shape[0] or (scale.shape[0] == 1 and scale.numel() == shape[1])


def _lora_fits(tensors, shape) -> bool:
    up, down = (next((t for s, t in tensors.items() if role.fullmatch(s)), None) for role in (UP, DOWN))
    if up is None or down is None or not _dora_fits(tensors, shape):
        return False
    if ".reshape_weight" in tensors:
        wanted = tuple(tensors[".reshape_weight"].tolist())
        if len(wanted) != len(shape) or any(new < old for new, old in zip(wanted, shape, strict=True)):
            return False
        shape = wanted
    middle = tensors.get(".lora_mid.weight")
    if middle is not None:  # a 2-D convolution
        return len(shape) == 4 and middle.ndim == 4 and (*up.shape[:1], down.shape[1], *middle.shape[2:]) == shape
    return up.ndim > 1 and _flat(up) == (shape[0], down.shape[0]) and math.prod(down.shape[1:]) == math.prod(shape[1:])


def _loha_fits(tensors, shape) -> bool:
    factors = [tensors.get(f".hada_w{number}_{side}") for number in (1, 2) for side in "ab"]
    if any(factor is None for factor in factors) or not _dora_fits(tensors, shape):
        return False
    cores = [tensors.get(f".hada_t{number}") for number in (1, 2)]
    if any(core is not None for core in cores):
        a, b = factors[:2]
        return (
            all(core is not None and core.ndim > 2 for core in cores)
            and (a.shape[1], b.shape[1], *cores[0].shape[2:]) == shape
        )
    products = {(a.shape[0], math.prod(b.shape[1:]), a.shape[1] == b.shape[0]) for a, b in (factors[:2], factors[2:])}
    return products == {(shape[0], math.prod(shape[1:]), True)}


def _lokr_fits(tensors, shape) -> bool:
    core = tensors.get(".lokr_t2")
    if core is not None:
        tensors = {suffix: tensor for suffix, tensor in tensors.items() if suffix != ".lokr_t2"}
        a, b = tensors.get(".lokr_w2_a"), tensors.get(".lokr_w2_b")
        if a is None or b is None:
            return False
        sides = core.new_empty((a.shape[1], b.shape[1], *core.shape[2:]), device="meta")
        tensors |= {".lokr_w2": sides}
    return _dora_fits(tensors, shape) and change_shape(tensors) == (shape[0], math.prod(shape[1:]))


def _glora_fits(tensors, shape) -> bool:
    factors = [tensors.get(f".{name}.weight") for name in ("a1", "a2", "b1", "b2")]
    if any(factor is None for factor in factors) or len(shape) != 2 or not _dora_fits(tensors, shape):
        return False
    sides, (rows, columns) = tuple(_flat(factor) for factor in factors), shape
    rank, older_rank = sides[0][1], sides[0][0]
    new = ((columns, rank), (rank, columns), (rows, rank), (rank, columns))  # W a1 a2 + b1 b2
    older = ((older_rank, columns), (columns, older_rank), (older_rank, columns), (rows, older_rank))  # b2 b1 + W a2 a1
    return sides in (new, older)


def _oft_fits(tensors, shape) -> bool:
    blocks = tensors[".oft_blocks"]
    return (
        blocks.ndim == 3
        and blocks.shape[1] == blocks.shape[2]
        and blocks.shape[0] * blocks.shape[1] == shape[0]
        and _dora_fits(tensors, shape)
    )


def _boft_fits(tensors, shape) -> bool:
    blocks, rescale = tensors[".oft_blocks"], tensors.get(".rescale")
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3] or blocks.shape[2] % 2 or not _dora_fits(tensors, shape):
        return False
    rows = blocks.shape[1] * blocks.shape[2]
    whole = rows % (2 ** (blocks.shape[0] - 1) * blocks.shape[2]) == 0
    return rows == shape[0] and whole and (rescale is None or rescale.numel() in (1, rows))


def _same_size(tensors, shape) -> bool:
    (tensor,) = (t for s, t in tensors.items() if s != ".alpha")
    return tensor.numel() == math.prod(shape) and tensor.shape[0] == shape[0]


_SHARED = (".alpha", ".dora_scale")
FORMS = (
    Form("set", re.compile(r"\.set_weight"), _same_size),
    Form(
        "adapter",
        re.compile(f"{UP.pattern}|{DOWN.pattern}|\\.lora_mid\\.weight"),
        _lora_fits,
        (*_SHARED, ".reshape_weight"),
        dims=2,
    ),
    Form("adapter", re.compile(r"\.hada_(w[12]_[ab]|t[12])"), _loha_fits, _SHARED, dims=2),
    Form("adapter", re.compile(r"\.lokr_(w[12](_[ab])?|t2)"), _lokr_fits, _SHARED, dims=2),
    Form("adapter", re.compile(r"\.[ab][12]\.weight"), _glora_fits, _SHARED, dims=2),
    Form("adapter", re.compile(r"\.oft_blocks"), _oft_fits, _SHARED),  # the host ignores a rescale of these
    Form("adapter", re.compile(r"\.oft_blocks"), _boft_fits, (*_SHARED, ".rescale")),
    Form("diff", re.compile(r"\.diff"), _same_size),
    Form("diff", re.compile(r"\.w_norm"), _same_size),
    Form("diff", re.compile(r"\.diff_b"), _same_size, of_bias=True),
    Form("diff", re.compile(r"\.b_norm"), _same_size, of_bias=True),
    Form("diff", re.compile(r"\.lora_(up|B)\.bias"), _same_size, of_bias=True, is_factor=True),  # peft
)
