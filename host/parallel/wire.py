"""Values between processes: JSON and plain tensors, so that nothing that is received is ever run.

A message is a number in the store, under which its JSON lies; the bytes of its tensors follow by broadcast.
"""

import json
import socket
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, Store, TCPStore

from ...wan_model.parallel import Group

DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
PLAIN = (bool, int, float, str, type(None))
KEPT = timedelta(days=7)  # how long a connection may be silent

Ended = (DistNetworkError, DistStoreError)
"""The errors that the store raises if the process that serves it is gone."""


def serve(address: str, port: int = 0) -> TCPStore:
    """Return a store that listens on `address` alone; port 0 is a free one. Raise OSError if the port is taken."""
    listener = socket.create_server((address, port))
    port, handle = listener.getsockname()[1], listener.detach()
    return TCPStore(address, port, None, True, wait_for_workers=False, master_listen_fd=handle)


def connect(address: str, port: int, name: str, patience: timedelta) -> PrefixStore:
    """Return a connection of its own to the keys of the group `name` in the store at `address`."""
    return PrefixStore(name, TCPStore(address, port, None, False, timeout=patience, wait_for_workers=False))


def pack(value: object, tensors: list[torch.Tensor]) -> object:
    """Return `value` as JSON, and put its tensors into `tensors`; raise TypeError for what is neither.

    A value is a number, text, None, a tensor, or a list, tuple, set or dict (with text as keys) of values.
    """
    if isinstance(value, torch.Tensor):
        if type(value.data) is not torch.Tensor or str(value.dtype) not in DTYPES:
            raise TypeError(f"a {type(value.data).__name__} of {value.dtype}")
        tensors.append(value)
        return {"tensor": [len(tensors) - 1, str(value.dtype), list(value.shape)]}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(item, tensors) for key, item in value.items()}}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item, tensors) for item in value]}
    raise TypeError(f"a {type(value).__name__}")


def unpack(value: object, tensors: Sequence[torch.Tensor]) -> object:
    """Return the value of `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content[0]]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content.items()}
    return {"list": list, "tuple": tuple, "set": set}[kind](unpack(item, tensors) for item in content)


def send(tensors: Sequence[torch.Tensor], group: Group, device: torch.device) -> None:
    """Send the bytes of `tensors`, which may lie anywhere, from process 0 by a `group` of devices such as `device`."""
    for tensor in tensors:
        if tensor.numel():
            group.broadcast(tensor.detach().to(device).contiguous().reshape(-1).view(torch.uint8), 0)


def receive(tensors: Sequence[tuple[str, list[int]]], group: Group, device: torch.device) -> list[torch.Tensor]:
    """Return what process 0 has sent, on `device`. tensors: dtype and shape of each."""
    received = []
    for dtype, shape in tensors:
        tensor = torch.empty(shape, dtype=DTYPES[dtype], device=device)
        if tensor.numel():
            group.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
        received.append(tensor)
    return received


def described(tensors: Sequence[torch.Tensor]) -> list[tuple[str, list[int]]]:
    """Return dtype and shape of each tensor, as `receive` wants them."""
    return [(str(tensor.dtype), list(tensor.shape)) for tensor in tensors]


def put(store: Store, key: str, content: dict) -> None:
    """Store `content` as JSON under `key`."""
    store.set(key, json.dumps(content))


def take(store: Store, key: str) -> dict:
    """Return the JSON that is stored under `key`, which waits for it."""
    return json.loads(store.get(key))
