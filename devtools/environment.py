"""The virtual environment that the host, the demo and the tests run in, under `.dev/`. Standard library only."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"

TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ["torchvision==0.28.0", "torchaudio==2.11.0"]  # the ones that match TORCH
FUZZER = "atheris; sys_platform == 'linux' and python_version < '3.14'"  # has no wheels elsewhere
OFFICIAL_TEMPLATES = "comfyui-workflow-templates-json==0.1.123"  # the newest
TEMPLATES_FOLDER = "official-templates"  # beside the packages: a host serves its templates from its own older version
FRONTEND = "comfyui-frontend-package"
TRITON = "triton>=3.4; sys_platform == 'linux'"  # which no torch without CUDA brings along
EXTRA_PACKAGES = {  # what a command of dev.py needs besides
    "test": [
        *("pytest>=9", "pytest-timeout", "pytest-xdist", "ruff==0.17.6", "mypy==2.4.1", "comfy-test==0.4.15"),
        *("playwright==1.65.2", "gguf>=0.17", "pathspec>=1", FUZZER, TRITON),
    ],
    "bench": ["diffusers==0.42.1", "gguf>=0.17"],  # a peer to compare with, and for the files that are checked
}

log = logging.getLogger("dev")


class SetupError(Exception):
    """A step of the set-up failed; the message says which, why and what to do."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Log that `name` begins, and how long it took."""
    log.info("%s ...", name)
    start = time.monotonic()
    yield
    log.info("%s: done in %.0f s", name, time.monotonic() - start)


def run_step(name: str, command: list[str | Path], advice: str) -> None:
    """Run `command` with its output in `.dev/setup.log`; on failure raise SetupError with the last lines of it."""
    DEV.mkdir(exist_ok=True)
    path = DEV / "setup.log"
    with step(name), path.open("a+", encoding="utf-8", errors="replace") as output:
        start = output.tell()
        output.write(f"$ {' '.join(map(str, command))}\n")
        output.flush()
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            output.seek(start)
            tail = "".join(f"    {line}" for line in output.readlines()[-15:])
            raise SetupError(f"{name} failed (exit status {code}):\n{tail}{advice} All output is in {path}.")


class Environment:
    """A virtual environment for one version of the host: `.dev/venv-<version>`."""

    def __init__(self, version: str):
        self.folder = DEV / f"venv-{version}"
        scripts, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
        self.python = self.folder / scripts / f"python{suffix}"

    def create(self) -> None:
        """Make the environment unless a working one is there."""
        if self.python.exists() and self._succeeds("import pip"):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        run_step(
            f"Virtual environment for Python {sys.version.split()[0]}",
            [sys.executable, "-m", "venv", self.folder],
            "Install Python's venv and pip (on Debian and Ubuntu: apt install python3-venv) and run this again.",
        )

    def install(self, group: str, requirements: list[str], *options: str) -> None:
        """Install `requirements`; at once where the same list was installed as `group` before."""
        stamp = self.folder / f"{group}.json"
        wanted = json.dumps([TORCH, *requirements])
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return
        stamp.unlink(missing_ok=True)
        run_step(
            f"Packages: {group}",
            [self.python, "-m", "pip", "install", "--disable-pip-version-check", *options, *requirements],
            "Check the network and the free disk space, then run this again: what is installed is kept.",
        )
        stamp.write_text(wanted, encoding="utf-8")

    def install_torch(self) -> None:
        """Install torch and its companions, and make these importable beside a torch without CUDA."""
        self.install("torch", [TORCH])
        done = (self.folder / "torch companions.json").exists()
        self.install("torch companions", TORCH_COMPANIONS, "--no-deps")
        if not done and sys.platform == "linux" and not self._succeeds("import torch; assert torch.version.cuda"):
            self._adapt_companions()

    def install_all(self, host_requirements: Path, command: str) -> None:
        """Install what a host with `host_requirements` needs to run this pack, and what `command` of dev.py does."""
        self.install_torch()
        pack = read_requirements(ROOT / "requirements.txt")
        self.install("host", [TORCH, *read_requirements(host_requirements), "requests", *pack])
        if command in EXTRA_PACKAGES:
            self.install(command, [TORCH, *EXTRA_PACKAGES[command]])
        if command == "test":
            target = ("--no-deps", "--upgrade", "--target", str(self.folder / TEMPLATES_FOLDER))
            self.install("official templates", [OFFICIAL_TEMPLATES], *target)

    def install_frontend(self, version: str) -> Path:
        """Install the editor of `version`, or the newest for "latest", beside the host; return its folder of pages."""
        group, folder = f"frontend-{version}", self.folder / f"frontend-{version}"
        if version == "latest":  # which another one may be today
            (self.folder / f"{group}.json").unlink(missing_ok=True)
        wanted = FRONTEND if version == "latest" else f"{FRONTEND}=={version}"
        self.install(group, [wanted], "--no-deps", "--upgrade", "--target", str(folder))
        return folder / FRONTEND.replace("-", "_") / "static"

    def has_accelerator(self) -> bool:
        """Whether torch finds a GPU: without one the host must be told to use the CPU."""
        return self._succeeds("import torch; assert torch.cuda.is_available() or torch.backends.mps.is_available()")

    def _adapt_companions(self) -> None:
        """The registry builds them for CUDA alone: declare torchvision's operators, drop torchaudio's libraries."""
        packages = next(self.folder.glob("lib/python*/site-packages"))
        shutil.copy(Path(__file__).with_name("declare_torchvision.py"), packages)
        (packages / "declare_torchvision.pth").write_text("import declare_torchvision\n", encoding="utf-8")
        for library in (packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()

    def _succeeds(self, code: str) -> bool:
        return subprocess.run([self.python, "-c", code], capture_output=True).returncode == 0


def read_requirements(path: Path) -> list[str]:
    """The requirements of a file, without comments and without the torch packages, which have their own step."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not re.match(r"torch(vision|audio)?\b(?!-)", line)]
