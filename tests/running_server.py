"""A real ComfyUI server with this pack, and a client of its API."""

import os
import sys
from pathlib import Path

import pytest

from devtools import host
from devtools.client import Client
from devtools.server import Server
from tiny import examples, random_weights


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI folder that the suite runs against: WAN_COMFYUI, which `dev.py test` sets."""
    folder = os.environ.get("WAN_COMFYUI")
    if not folder:
        pytest.skip("WAN_COMFYUI names no ComfyUI folder: run `python3 dev.py test`")
    return Path(folder)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The server's own folder, with the random-weight checkpoints in its models and the examples in its input."""
    folder = tmp_path_factory.mktemp("base")
    host.prepare_base(folder)
    random_weights.write(folder / "models")
    examples.write(folder / "input")
    return folder


@pytest.fixture(scope="session")
def server(comfyui, base):
    """The running server, on the CPU, for all tests of the session."""
    with Server(sys.executable, comfyui, base, cpu=True) as running:
        yield running


@pytest.fixture
def client(server) -> Client:
    """A client of the server."""
    return Client(server.url)


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """What the server says of its nodes."""
    return Client(server.url).get("/object_info")
