"""Shared by the benchmark scripts: ComfyUI and this project on Python's path, options, and the table of results.

A script imports this before anything of those.
"""

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parent.parent
NAME = Path(sys.argv[0]).stem  # of the script
COMFYUI = os.environ.get("WAN_COMFYUI")  # `dev.py bench` sets it
if not COMFYUI:
    sys.exit(f"This runs with ComfyUI: start it as `python3 dev.py bench {NAME}`.")
sys.path[:0] = [COMFYUI]
sys.path += [str(ROOT / folder) for folder in (".", "tests", "tests/golden")]  # last: our `nodes` would hide the host's

import page  # noqa: E402, of this folder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

log = logging.getLogger("bench")


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every comparison has; description: of the script."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="preset", action="store_const", const="quick", help="only try that all runs")
    size.add_argument("--full", dest="preset", action="store_const", const="full", help="real clips, for a GPU")
    made.add_argument("--page", type=Path, help="file to write into; default: benchmarks/results.md, --quick: none")
    made.set_defaults(preset="default", only="")
    return made


def begin(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, with `page` as what to write into or None; and a log for this script alone.

    A quick or dry run writes nothing unless `page` is given.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)  # the host's
    log.setLevel(logging.INFO)
    options = arguments.parse_args()
    is_trial = getattr(options, "preset", None) == "quick" or getattr(options, "dry", False)
    if options.page is None and not is_trial:
        options.page = page.PAGE
    return options


def start_comfyui(*options: str) -> str:
    """Make the host's modules ready to be imported, with these options of its command line; return its version."""
    arguments, sys.argv = sys.argv, ["main.py", *options]
    if DEVICE.type == "cpu":
        sys.argv.append("--cpu")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import comfyui_version

    sys.argv = arguments
    return comfyui_version.__version__


def load_pack() -> Callable[[str], ModuleType]:
    """Load this pack as the host does; return a function from a name such as "host.vae.vae" to that module."""
    nodes = importlib.import_module("nodes")
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "the pack could not be loaded"
    return lambda name: importlib.import_module(f"{str(ROOT).replace('.', '_x_')}.{name}")


def run_node(node_id: str, **inputs: object) -> tuple:
    """The outputs of one of this pack's or the host's V3 nodes."""
    node = importlib.import_module("nodes").NODE_CLASS_MAPPINGS[node_id]
    return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result


def write(options: argparse.Namespace, title: str, versions: str, note: str, table: str) -> None:
    """Put a table into the page's section of this script, preset, choice of cases and device."""
    if options.page is None:
        return
    command, choice = f"python3 dev.py bench {NAME}", [options.preset, *filter(None, [options.only]), DEVICE.type]
    command += "" if options.preset == "default" else f" --{options.preset}"
    command += f' --only "{options.only}"' if options.only else ""
    section = page.section(f"{title} ({', '.join(choice)})", command, versions, f"{note}\n\n{table}")
    page.replace(options.page, f"{NAME} {' '.join(choice)}".replace(",", ""), section)
