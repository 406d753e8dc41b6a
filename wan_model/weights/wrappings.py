"""Names as trainers save them: modules in wrappers, and several copies of a model in one file."""

import re
from collections.abc import Iterable, Mapping, Sequence

# Components that FSDP, DDP, torch.compile, activation checkpointing and DeepSpeed add anywhere in a name.
WRAPPERS = frozenset(
    ("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_orig_mod", "_forward_module", "module")
)
CAUSAL = re.compile(r"(^|\.)(generator_ema\.|generator\.model\.)")  # how Self-Forcing and its kin save their models
AVERAGED = frozenset(("ema", "average", "averaged", "shadow"))
ASIDE = frozenset(  # names of what a trainer saves beside the model
    ("critic", "discriminator", "teacher", "fake", "real", "optimizer", "optim", "optimizers", "scheduler", "loss")
) | frozenset(("repa", "logvar", "vae"))


def unwrap(names: Iterable[str]) -> dict[str, str]:
    """Map each name without wrappers to the name in the file.

    Raise ValueError if two names differ by their wrappers alone.
    """
    bare: dict[str, str] = {}
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
    """Return the prefix of the copy to load: averaged weights (EMA) if there are any, else the trained model.

    Raise ValueError if the names do not tell which one that is.
    """
    best = min(map(_rank, candidates))
    chosen = [prefix for prefix in candidates if _rank(prefix) == best]
    if len(chosen) > 1:
        listed = ", ".join(repr(prefix.removesuffix(".")) for prefix in chosen)
        raise ValueError(f"it holds {len(chosen)} models of one kind ({listed}): save the one to use to its own file.")
    return chosen[0]


def is_aside(name: str) -> bool:
    """Return whether the first part of `name` names something that a trainer saves beside the model."""
    return bool(_words(name.partition(".")[0]) & (ASIDE | AVERAGED))


def is_averaged(prefix: str) -> bool:
    """Return whether a prefix names weights averaged over training (EMA)."""
    return bool(_words(prefix) & AVERAGED)


def is_causal(prefix: str) -> bool:
    """Return whether a prefix names what the trainers of Self-Forcing save: for text to video, a causal model."""
    return CAUSAL.search(prefix) is not None


def _rank(prefix: str) -> int:
    if is_averaged(prefix):
        return 0
    return 2 if _words(prefix) & ASIDE else 1


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name.lower()))
