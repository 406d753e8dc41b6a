"""ComfyUI's own code in this process, with this pack loaded the way the server loads it.

The host is set up when pytest imports this file, so a test module may `import comfy...` at its top. It reads its
options from `sys.argv` while it is imported.
"""

import asyncio
import importlib
import importlib.util
import os
import subprocess
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


def register(name: str) -> None:
    """Make the module `name` beside this file, which needs the host, importable by that name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


if COMFYUI:
    start_host()
    register("beside")
    register("node_inputs")
    register("inner_patches")
    register("loop_nodes")


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
    """Function from a name such as "host.model.loading" to that module of the loaded pack."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="session")
def run_node(pack) -> Callable[..., tuple]:
    """Function (node id, **inputs) -> outputs of one of this pack's or the host's V3 nodes."""
    nodes = importlib.import_module("nodes")

    def run(node_id: str, **inputs: object) -> tuple:
        return nodes.NODE_CLASS_MAPPINGS[node_id].PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result

    return run


@pytest.fixture(scope="session")
def t2v(room, models):
    """The tiny text-to-video MODEL, in float32. A test that changes it clones it first."""
    return room("host.model.loading").load(
        str(models / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors"), "float32"
    )


@pytest.fixture(scope="session")
def prompts(t2v) -> list:
    """A positive and a negative CONDITIONING of random tokens for `t2v`."""
    width = t2v.model.diffusion_model.config.text_dim
    generator = torch.Generator().manual_seed(3)
    return [[[torch.randn(1, 512, width, generator=generator), {}]] for _ in range(2)]


@pytest.fixture(scope="session")
def sample(run_node, prompts) -> Callable[..., torch.Tensor]:
    """Function (model, **inputs of WanSampler) -> latent of a clip of 3 x 4 x 5 tokens; by default in 12 steps."""

    def run(model, **inputs):
        given = dict(steps=12, guidance=4.0, shift=5.0, solver="unipc", seed=11, denoise=1.0)
        given |= {"positive": prompts[0], "negative": prompts[1], "latent": {"samples": torch.zeros(1, 16, 3, 8, 10)}}
        return run_node("WanSampler", model=model, **(given | inputs))[0]["samples"]

    return run


@pytest.fixture
def asked_memory(monkeypatch) -> list[int]:
    """The bytes that the host is asked to keep free, each time that it loads models."""
    management = importlib.import_module("comfy.model_management")
    asked, load = [], management.load_models_gpu

    def noted(models, memory_required=0, **options):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", noted)
    return asked


@pytest.fixture
def small_disk(tmp_path, request):
    """A folder on a disk of so many kB, its parameter."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.param}k"
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)
