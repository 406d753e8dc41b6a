"""The tensors of a LoRA file by the parameter of the DiT that they change, whichever trainer named them.

Styles: ComfyUI (`diffusion_model.*`), kohya (`lora_unet_*`), diffusers and peft (`transformer.*`, `base_model.model.*`,
with diffusers' module names), DiffSynth (`pipe.dit.*` or bare), LyCORIS (`lycoris_*`), full differences.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .layouts import DIT_DIFFUSERS, inverse, rename

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "unet."),
    "model.",
)
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")  # then a path with _ in place of dots
SUFFIX = re.compile(
    r"(\.lora[_.]|_lora\.|\.(lokr|hada)_|\.[ab][12]\.weight$|\.(alpha|dora_scale|diff|diff_b|diff_m|w_norm|b_norm|set_weight"
    r"|reshape_weight|oft_blocks|rescale)$)"
)
SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}  # width of the released models -> what people call them

Groups = dict[str, dict[str, Tensor]]  # module path (or name of a lone parameter) -> suffix -> tensor


@dataclass(frozen=True)
class Change:
    """One change of one parameter.

    kind: "adapter" (factors, which the host's loader reads), "diff" (is added) or "set" (takes its place). tensors: by
    suffix. names: of these tensors in the file.
    """

    place: str
    parameter: str
    kind: str
    tensors: Mapping[str, Tensor]
    names: tuple[str, ...]


def split(lora: Iterable[str], parameters: Iterable[str]) -> dict[str, tuple[str, str] | None]:
    """Map each name in a LoRA file to (place, suffix), or None where it fits no place.

    parameters: official names of the model's parameters. A place is one of them without `.weight`. Suffixes are those
    that the host knows.
    """
    places = _places(parameters)
    return {name: _split(name, places) for name in lora}


def group(lora: Mapping[str, Tensor], parameters: Iterable[str]) -> tuple[Groups, list[str]]:
    """(tensors by the place that they change, names that fit no place); arguments as of `split`."""
    groups, unmatched = {}, []
    for name, where in split(lora, parameters).items():
        if where is None:
            unmatched.append(name)
        else:
            groups.setdefault(where[0], {})[where[1]] = lora[name]
    return groups, unmatched


def changes(lora: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Change], list[str]]:
    """(every change that a LoRA file makes to a model with parameters of `shapes`, names without effect on it)."""
    where = {name: found for name, found in split(lora, shapes).items() if found is not None}
    names, made, used = {found: name for name, found in where.items()}, [], set()
    for place, tensors in group(lora, shapes)[0].items():
        for form in FORMS:
            change = _change(form, place, tensors, names, shapes)
            if change is not None:
                made.append(change)
                used |= set(change.names)
    return made, [name for name in lora if name not in used]


def _change(form: "Form", place: str, tensors, names, shapes) -> Change | None:
    """The change that the tensors of one place make in one form; None where they do not, or do not fit."""
    own = {suffix: tensor for suffix, tensor in tensors.items() if form.suffixes.fullmatch(suffix)}
    parameter = f"{place}.bias" if form.of_bias else place if place in shapes else f"{place}.weight"
    if not own or parameter not in shapes or (form.kind == "adapter" and parameter == place):
        return None
    if form.is_factor:
        own = {suffix: tensor * _scale(tensors) for suffix, tensor in own.items()}
    own |= {suffix: tensors[suffix] for suffix in form.options if suffix in tensors}
    if not form.fits(own, shapes[parameter]):
        return None
    return Change(place, parameter, form.kind, own, tuple(names[place, suffix] for suffix in own))


def change_shape(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(rows, other elements) of the weight that the tensors of one place change; None where they do not tell."""

    def find(*marks: str) -> tuple[int, ...] | None:
        return next((tuple(t.shape) for s, t in tensors.items() if any(mark in s for mark in marks)), None)

    up = next((t.shape for s, t in tensors.items() if UP.fullmatch(s)), None)
    down = next((t.shape for s, t in tensors.items() if DOWN.fullmatch(s)), None)
    if up and down:
        return up[0], math.prod(down[1:])
    if ".diff" in tensors:
        shape = tensors[".diff"].shape
        return shape[0], math.prod(shape[1:])
    if up := find("hada_w1_a"):
        return up[0], find("hada_w1_b")[-1] if find("hada_w1_b") else 0
    factors = []
    for factor in ("lokr_w1", "lokr_w2"):
        whole, rows, columns = (tensors.get(f".{factor}{part}") for part in ("", "_a", "_b"))
        if whole is None and (rows is None or columns is None):
            return None
        factors.append(whole.shape if whole is not None else (rows.shape[0], math.prod(columns.shape[1:])))
    return factors[0][0] * factors[1][0], math.prod(factors[0][1:]) * math.prod(factors[1][1:])


def size_name(width: int) -> str:
    """A model's width in words."""
    return f"width {width} ({SIZES[width]})" if width in SIZES else f"width {width}"


def _places(parameters: Iterable[str]) -> dict[str, str]:
    """Every name that a place has in one of the styles -> the place.

    Both styles fit in one table: of the norms that diffusers calls otherwise, only one has parameters.
    """
    official = {name.removesuffix(".weight") for name in parameters}
    dotted = {name: name for name in official}
    dotted |= {theirs: ours for ours, theirs in rename(sorted(official), inverse(DIT_DIFFUSERS)).items()}
    flat = {name.replace(".", "_"): place for name, place in dotted.items()}
    return dotted | {prefix + name: place for prefix in FLAT_PREFIXES for name, place in flat.items()}


def _split(name: str, places: Mapping[str, str]) -> tuple[str, str] | None:
    match = SUFFIX.search(name)
    if match is None:
        return None
    path, suffix = name[: match.start()], name[match.start() :].replace(".default.", ".")
    while (prefix := next((p for p in PREFIXES if path.startswith(p)), None)) is not None:
        path = path.removeprefix(prefix)
    if suffix == ".diff_m":  # LightX2V's difference of a block's modulation
        path, suffix = f"{path}.modulation", ".diff"
    if "lora_magnitude_vector" in suffix:  # peft's DoRA
        suffix = ".dora_scale"
    return None if path not in places else (places[path], suffix)


# Forms, as the host's loader reads them (`comfy/lora.py`, `comfy/weight_adapter`)

UP = re.compile(r"\.lora_(up|B)(\.weight)?|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight")
DOWN = re.compile(r"\.lora_(down|A)(\.weight)?|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight")


@dataclass(frozen=True)
class Form:
    """One way to write a change. suffixes: of its tensors. fits: (tensors, shape of the parameter) -> whether they fit.

    options: suffixes that may stand beside, and that adapters of all kinds share. of_bias: whether it changes the bias.
    is_factor: whether a LoRA's alpha scales it.
    """

    kind: str
    suffixes: re.Pattern
    fits: Callable[[Mapping[str, Tensor], tuple[int, ...]], bool]
    options: tuple[str, ...] = ()
    of_bias: bool = False
    is_factor: bool = False


def _scale(tensors: Mapping[str, Tensor]) -> float:
    """alpha / rank of the LoRA in `tensors`, 1 where it has no alpha."""
    down = next((tensor for suffix, tensor in tensors.items() if DOWN.fullmatch(suffix)), None)
    return 1.0 if down is None or ".alpha" not in tensors else float(tensors[".alpha"]) / down.shape[0]


def _flat(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[0], math.prod(tensor.shape[1:])


def _dora_fits(tensors, shape) -> bool:
    scale = tensors.get(".dora_scale")
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
    if middle is not None:  # a convolution of two sides
        return len(shape) == 4 and middle.ndim == 4 and (*up.shape[:1], down.shape[1], *middle.shape[2:]) == shape
    return up.ndim > 1 and _flat(up) == (shape[0], down.shape[0]) and math.prod(down.shape[1:]) == math.prod(shape[1:])


def _loha_fits(tensors, shape) -> bool:
    factors = [tensors.get(f".hada_w{number}_{side}") for number in (1, 2) for side in "ab"]
    if any(factor is None for factor in factors) or not _dora_fits(tensors, shape):
        return False
    cores = [tensors.get(f".hada_t{number}") for number in (1, 2)]
    if any(core is not None for core in cores):
        a, b = factors[:2]
        return None not in cores and (a.shape[1], b.shape[1], *cores[0].shape[2:]) == shape
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
    ),
    Form("adapter", re.compile(r"\.hada_(w[12]_[ab]|t[12])"), _loha_fits, _SHARED),
    Form("adapter", re.compile(r"\.lokr_(w[12](_[ab])?|t2)"), _lokr_fits, _SHARED),
    Form("adapter", re.compile(r"\.[ab][12]\.weight"), _glora_fits, _SHARED),
    Form("adapter", re.compile(r"\.oft_blocks"), _oft_fits, _SHARED),  # the host passes over a rescale of these
    Form("adapter", re.compile(r"\.oft_blocks"), _boft_fits, (*_SHARED, ".rescale")),
    Form("diff", re.compile(r"\.diff"), _same_size),
    Form("diff", re.compile(r"\.w_norm"), _same_size),
    Form("diff", re.compile(r"\.diff_b"), _same_size, of_bias=True),
    Form("diff", re.compile(r"\.b_norm"), _same_size, of_bias=True),
    Form("diff", re.compile(r"\.lora_(up|B)\.bias"), _same_size, of_bias=True, is_factor=True),  # peft
)
