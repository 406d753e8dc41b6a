"""Hosts on one machine: network namespaces, which reach each other by a cable alone."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def ip(*words: str, check: bool = False) -> int:
    """Run the command `ip`, and return its exit status."""
    return subprocess.run(["ip", *words], capture_output=True, check=check).returncode


@pytest.fixture(scope="session")
def hosts() -> Iterator[dict[str, str]]:
    """The names of two network namespaces, each a host of its own for what runs in it, by their addresses."""
    names = {f"10.213.7.{number}": f"wan-{os.getpid()}-{number}" for number in (1, 2)}
    ends = [f"wan{os.getpid()}{end}" for end in "ab"]
    if not shutil.which("ip") or any(ip("netns", "add", name) for name in names.values()):
        pytest.skip("network namespaces are not allowed here")
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", ends[1], check=True)
        for (address, name), end in zip(names.items(), ends, strict=True):
            ip("link", "set", end, "netns", name, "name", "cable", check=True)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable", check=True)
            for link in ("cable", "lo"):
                ip("-n", name, "link", "set", link, "up", check=True)
        yield names
    finally:
        for name in names.values():
            ip("netns", "del", name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Within, sockets and processes that this thread makes are on the host `name`."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _enter(Path("/run/netns", name))
        yield
    finally:
        _enter(Path(f"/proc/self/fd/{own}"))
        os.close(own)


def _enter(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"no entry to {path}")
    finally:
        os.close(handle)


def cable(name: str, state: str) -> None:
    """Plug the cable of the host `name` in ("up") or pull it ("down")."""
    ip("-n", name, "link", "set", "cable", state, check=True)
