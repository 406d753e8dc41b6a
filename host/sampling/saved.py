"""The state of an unfinished video in a file beside it, from which a later run goes on."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..vae.whole_file import whole_file

ENDING = ".resume.safetensors"
ENTRY = "wan_stream"  # of the header's metadata
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SAMPLE = 64  # numbers of each weight that tell it from another


def path_beside(video: Path) -> Path:
    """Return the path of the state of the unfinished `video`."""
    return video.with_name(video.stem + ENDING)


def newest(folder: Path, prefix: str) -> Path | None:
    """Return the newest unfinished video in `folder` whose name is `prefix` and a number, or None."""
    states = [path for path in folder.glob(f"*{ENDING}") if _is_numbered(path.name.removesuffix(ENDING), prefix)]
    videos = [path.with_name(path.name.removesuffix(ENDING) + ".mp4") for path in states]
    return max((path for path in videos if path.exists()), key=lambda path: path.name, default=None)


def _is_numbered(stem: str, prefix: str) -> bool:
    number = stem.removeprefix(f"{prefix}_").removesuffix("_")
    return stem == f"{prefix}_{number}_" and number.isdigit()


def write(path: Path, tensors: Mapping[str, torch.Tensor], facts: dict) -> None:
    """Write a safetensors file tensor by tensor, none of which is copied whole. Raise `DiskFull`.

    facts: what can be written as JSON.
    """
    header, at = {"__metadata__": {ENTRY: json.dumps(facts)}}, 0
    for name, tensor in tensors.items():
        offsets = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return tensors and facts of what `write` wrote. Raise ValueError for another or a damaged file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[ENTRY])
        return safetensors.torch.load_file(path), facts
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path.name} is damaged ({error}), so its video cannot go on: turn resume off to begin a new one. The "
            "video itself stays as it is."
        ) from error


def fingerprint(module: torch.nn.Module, changed: Mapping[str, list] | None = None) -> str:
    """Return a short name for the weights of `module`, from the last numbers of each.

    changed: the host's patches by name of the weight; their strengths count, and those weights do not, which the host
    changes in place.
    """
    changed, digest = changed or {}, hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        strengths = [patch[0] for patch in changed.get(name, ())]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {strengths}".encode())
        if not strengths and type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.numel():
            last = weight.detach()[(-1,) * (weight.ndim - 1)].reshape(-1)[-SAMPLE:]
            digest.update(last.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def digest_of(tensor: torch.Tensor | None) -> str:
    """Return a short name for what a tensor holds."""
    return "none" if tensor is None else hashlib.sha256(tensor.float().cpu().numpy().tobytes()).hexdigest()[:12]


def check_same(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ValueError where a run differs in what its unfinished video `name` was made with."""
    for what, value in now.items():
        if before.get(what) != value:
            raise ValueError(
                f"The unfinished video {name} was made with {what} {_short(before.get(what))}, and this run has "
                f"{_short(value)}: set it back to go on, or turn resume off to begin a new video."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
