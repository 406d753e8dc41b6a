"""A real ComfyUI server with this pack, and a client of its API."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from devtools import demo, host
from devtools.client import Client
from devtools.server import Server
from tiny import examples, random_weights

LOADERS = {  # ComfyUI's to this pack's; the file is the first widget of each
    "UNETLoader": "WanModelLoader",
    "CLIPLoader": "WanTextEncoderLoader",
    "VAELoader": "WanVAELoader",
    "CLIPVisionLoader": "WanClipVisionLoader",
}


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
    """The server's description of its nodes."""
    return Client(server.url).get("/object_info")


@pytest.fixture(scope="session")
def migrated(server) -> Callable[[str], dict]:
    """Function from the name of one of ComfyUI's own Wan templates to it, with this pack's loaders and demo files."""

    def load(name: str) -> dict:
        with urlopen(f"{server.url}/templates/{name}.json") as reply:
            workflow = json.load(reply)
        for node in workflow["nodes"]:
            if node["type"] in LOADERS:
                node |= {"type": LOADERS[node["type"]], "inputs": [], "widgets_values": node["widgets_values"][:1]}
            if node["type"] == "LoadImage":
                node["widgets_values"][0] = examples.FILES[0]
        return demo.with_demo_files(workflow)

    return load
