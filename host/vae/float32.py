"""Full float32 precision: since Ampere, cuDNN rounds the inputs of float32 convolutions to TF32 by default."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside, _saved = 0, []  # per process, as torch's settings are


@contextmanager
def exact(dtype: torch.dtype) -> Iterator[None]:
    """Compute without TF32 inside, if `dtype` is float32; restore torch's settings when the last thread leaves."""
    if dtype != torch.float32:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            for owner, name, value in settings():
                _saved.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        while _inside == 0 and _saved:
            owner, name, value = _saved.pop()
            setattr(owner, name, value)


def settings() -> list[tuple]:
    """Return (owner, name, value) of torch's settings for float32 without TF32.

    Newer versions of torch have newer names, and refuse to read the older ones once the newer are set.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    older = [(owner, "allow_tf32", False) for owner in (cudnn, matmul)]
    try:
        for owner, name, _ in older:
            getattr(owner, name)
    except RuntimeError:
        return [(owner, "fp32_precision", "ieee") for owner in (cudnn.conv, cudnn.rnn, matmul)]
    return older
