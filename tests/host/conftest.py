"""ComfyUI's own code in this process, with this pack loaded the way the server loads it.

The host is set up when pytest imports this file, so a test module may `import comfy...` at its top. It reads its
options from `sys.argv` while it is imported.
"""

import asyncio
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from devtools import host
from tiny import random_weights

COMFYUI = os.environ.get("WAN_COMFYUI")
collect_ignore_glob = [] if COMFYUI else ["test_*.py"]  # `dev.py test` sets it
_scratch = tempfile.TemporaryDirectory(prefix="wan-stream-")
BASE = Path(_scratch.name)


def start_host() -> None:
    """Import the host on the CPU, with its files under `BASE`."""
    sys.path.insert(0, COMFYUI)
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(BASE)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # as main.py does: 0.3.75's nodes would make `utils` comfy/utils.py
    importlib.import_module("nodes")
    sys.argv = arguments


if COMFYUI:
    start_host()


@pytest.fixture(autouse=True)
def _as_the_server_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def models() -> Path:
    """The host's models folder, with the random-weight checkpoints (`tiny.random_weights.FILES`) in its folders."""
    random_weights.write(BASE / "models")
    return BASE / "models"


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack as the host loaded it from custom_nodes."""
    host.prepare_base(BASE)
    link = BASE / "custom_nodes" / host.LINK
    nodes = importlib.import_module("nodes")
    assert asyncio.run(nodes.load_custom_node(str(link))), "the host could not load the pack: see its warning"
    return sys.modules[str(link).replace(".", "_x_")]


@pytest.fixture(scope="session")
def room(pack) -> Callable[[str], ModuleType]:
    """Function from a name such as "host.model" to that module of the loaded pack."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="session")
def run_node(pack) -> Callable[..., tuple]:
    """Function (node id, **inputs) -> outputs of one of this pack's or the host's V3 nodes."""
    nodes = importlib.import_module("nodes")

    def run(node_id: str, **inputs: object) -> tuple:
        return nodes.NODE_CLASS_MAPPINGS[node_id].PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result

    return run
