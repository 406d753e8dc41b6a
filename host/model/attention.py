"""Attention backends as the host's `optimized_attention_override`, chosen for each MODEL."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...wan_model.dit.attention import sdpa
from ...wan_model.kernels.fused import failures

OVERRIDE = "optimized_attention_override"  # the host's name for it, in the transformer_options


def _sage() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from sageattention import sageattn

    return lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD")


def _flash() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from flash_attn import flash_attn_func

    return flash_attn_func


def _xformers() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention


PACKAGES = {"sage": _sage, "flash": _flash, "xformers": _xformers}  # each a function of q, k, v (B, L, heads, head_dim)
LOW_PRECISION = ("sage",)
CHOICES = ("auto", "sdpa", *PACKAGES)


def choose(model, name: str) -> None:
    """Select the attention `name`, one of `CHOICES`, for the MODEL `model`; "auto" leaves it to the host."""
    if name != "auto":
        override = torch_sdpa if name == "sdpa" else Package(name)
        model.model_options["transformer_options"][OVERRIDE] = override


def torch_sdpa(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options) -> Tensor:
    """Attend with torch's own function, whatever the host has selected."""
    if not _is_plain(mask, options):
        return func(q, k, v, heads, mask=mask, **options)
    return sdpa(q, k, v, heads)


def exact(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options) -> Tensor:
    """Attend with torch's own function in float32, one head at a time to save memory.

    The head keeps an axis, which the fused kernels require: the others hold all scores at once.
    """
    if not _is_plain(mask, options):
        return func(q, k, v, heads, mask=mask, **options)
    out = torch.empty_like(q)
    split = (x.unflatten(-1, (heads, -1)).unbind(2) for x in (q, k, v, out))  # of (B, L, head_dim) each
    for head_q, head_k, head_v, head_out in zip(*split, strict=True):
        alone = (x.float().unsqueeze(1) for x in (head_q, head_k, head_v))  # (B, 1, L, head_dim)
        head_out.copy_(scaled_dot_product_attention(*alone).squeeze(1))
    return out


_NAMES = {torch_sdpa: "sdpa", exact: "exact"}


def name_of(override) -> str | None:
    """Return the name of an override that this module has made, None for another pack's."""
    return override.name if isinstance(override, Package) else _NAMES.get(override)


class Package:
    """Attention by an optional package; if it is missing or fails, log the reason and use the host's.

    name: a key of `PACKAGES`.
    """

    def __init__(self, name: str):
        self.name = name
        self.attend = None
        self.failed = False

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        exact_wanted = self.name in LOW_PRECISION and options.get("low_precision_attention", True) is False
        if not (self.failed or exact_wanted) and _is_plain(mask, options):
            try:
                self.attend = self.attend or PACKAGES[self.name]()
                return self.attend(*(x.unflatten(-1, (heads, -1)) for x in (q, k, v))).flatten(2)
            except torch.cuda.OutOfMemoryError:
                raise
            except failures() as error:
                self.failed = True
                logging.warning(
                    "%s attention is not possible here; ComfyUI's own is used instead. %s with head size %d on %s: %s",
                    *(self.name, q.dtype, q.shape[-1] // heads, q.device, (str(error) or repr(error)).splitlines()[0]),
                )
        return func(q, k, v, heads, mask=mask, **options)


def _is_plain(mask: Tensor | None, options: dict) -> bool:
    """Return whether q, k, v and the result are (B, L, heads * head_dim), without a mask."""
    return mask is None and not (options.get("skip_reshape") or options.get("skip_output_reshape"))
