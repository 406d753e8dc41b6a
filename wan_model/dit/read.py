"""The configuration of a Wan DiT, read from the names and shapes of its checkpoint."""

from collections.abc import Mapping

from torch import Tensor

from ..variants import VARIANTS
from ..variants.models import find
from .config import HEAD_DIM, PATCH_AREA, DiTConfig
from .parts import PARTS, STREAMS


class Sizes:
    """The shapes of a state dict, looked up by name."""

    def __init__(self, state_dict: Mapping[str, Tensor]):
        self.tensors = state_dict

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def size(self, name: str, axis: int) -> int:
        """Return a dimension of the tensor `name`; raise ValueError if there is none."""
        if name not in self.tensors or self.tensors[name].ndim <= axis:
            hint = ""
            if "vace_patch_embedding.weight" in self.tensors:
                hint = " It holds VACE blocks only: combine it with a text-to-video file of the same size."
            raise ValueError(f"This is not a whole Wan DiT: it has no {name}.{hint}")
        return self.tensors[name].shape[axis]

    def count(self, prefix: str) -> int:
        """Return how many different numbers follow `prefix`."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})


def read_config(state_dict: Mapping[str, Tensor], header: Mapping[str, object] | None = None) -> DiTConfig:
    """Return the configuration of a Wan DiT with official names; meta tensors will do.

    header: the transformer config of the file's header. Raise ValueError for names that are not a Wan DiT's, and for
    channels and parts that no variant has.
    """
    sizes = Sizes(state_dict)
    dim, layers = sizes.size("head.modulation", 2), sizes.count("blocks.")
    if dim % HEAD_DIM:
        raise ValueError(f"This is not a Wan DiT: width {dim} is not a multiple of {HEAD_DIM}.")
    in_dim, out_dim = sizes.size("patch_embedding.weight", 1), sizes.size("head.head.bias", 0) // PATCH_AREA
    found = [name for name, kind in PARTS.items() if kind.mark and kind.mark in sizes]
    variant = find(in_dim, out_dim, found, header)
    if variant is None:
        extras = f" and has {', '.join(found)}" if found else ""
        raise ValueError(
            f"This Wan DiT takes {in_dim} channels, makes {out_dim}{extras}: no supported variant does "
            f"({', '.join(VARIANTS)})."
        )
    row = VARIANTS[variant]
    unread = [PARTS[name].mark for name in found if name not in row.parts | row.optional]
    if unread:
        raise ValueError(
            f"This Wan DiT takes {in_dim} channels and makes {out_dim}, and of its tensors there is {len(unread)} that "
            f"no Wan {variant} model reads {unread}: no supported variant does."
        )
    kinds = (*(PARTS[name] for name in found), *(STREAMS[name] for name in row.streams))
    return DiTConfig(
        variant=variant,
        dim=dim,
        ffn_dim=sizes.size("blocks.0.ffn.0.bias", 0),
        heads=dim // HEAD_DIM,
        layers=layers,
        in_dim=in_dim,
        out_dim=out_dim,
        text_dim=sizes.size("text_embedding.0.weight", 1),
        freq_dim=sizes.size("time_embedding.0.weight", 1),
        parts=tuple(kind.read(sizes, layers) for kind in kinds),
    )
