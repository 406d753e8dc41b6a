"""What trainers put around a model's names: wrappers of its modules, and several copies of it in one file."""

import re
from collections.abc import Iterable, Mapping, Sequence

# Components that FSDP, DDP, torch.compile, activation checkpointing and DeepSpeed add anywhere in a name.
WRAPPERS = frozenset(
    ("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_orig_mod", "_forward_module", "module")
)
AVERAGED = frozenset(("ema", "average", "averaged", "shadow"))
ASIDE = frozenset(  # words of what a trainer keeps beside the model
    ("critic", "discriminator", "teacher", "fake", "real", "optimizer", "optim", "optimizers", "scheduler", "loss")
) | frozenset(("repa", "logvar", "vae"))


def unwrap(names: Iterable[str]) -> dict[str, str]:
    """Map each name without wrappers to the name in the file.

    Raises ValueError where two names differ by their wrappers alone.
    """
    bare = {}
    for name in names:
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in bare:
            raise ValueError(f"it holds {plain[:80]!r} twice, as {bare[plain][:80]!r} and {name[:80]!r}.")
        bare[plain] = name
    return bare


def prefixes(names: Mapping[str, object], marks: Sequence[str]) -> list[str]:
    """Return every prefix, "" or one that ends in a dot, under which `names` holds all `marks`."""
    found = (name[: -len(marks[0])] for name in names if name.endswith(marks[0]))
    return [
        prefix
        for prefix in found
        if (not prefix or prefix.endswith(".")) and all(prefix + mark in names for mark in marks)
    ]


def choose(candidates: Sequence[str]) -> str:
    """Return the prefix of the copy to load: averaged weights (EMA) if there are any, else the model that was trained.

    Raises ValueError where nothing tells which that is.
    """
    best = min(map(_rank, candidates))
    chosen = [prefix for prefix in candidates if _rank(prefix) == best]
    if len(chosen) > 1:
        listed = ", ".join(repr(prefix.removesuffix(".")) for prefix in chosen)
        raise ValueError(f"it holds {len(chosen)} models of one kind ({listed}): save the one to use to its own file.")
    return chosen[0]


def is_aside(name: str) -> bool:
    """Return whether the first part of `name` says that a trainer keeps it beside the model."""
    return bool(_words(name.partition(".")[0]) & (ASIDE | AVERAGED))


def is_averaged(prefix: str) -> bool:
    """Return whether a prefix says that the weights are an average over training."""
    return bool(_words(prefix) & AVERAGED)


def _rank(prefix: str) -> int:
    if is_averaged(prefix):
        return 0
    return 2 if _words(prefix) & ASIDE else 1


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name.lower()))
