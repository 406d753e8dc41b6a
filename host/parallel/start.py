"""The script that torch's agent runs: ComfyUI without its server, with this pack, as one process of a group.

Of the standard library alone until the card is chosen.
"""

import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass

VARIABLE = "WAN_PARALLEL"  # of the environment: a `Setup` as JSON
PACKAGE = "wan_parallel_pack"  # name of the pack in these processes


@dataclass(frozen=True)
class Setup:
    """The settings that a process gets from the one that had it started.

    address, port, name: of the store, and of the group in it. own: address of this machine for the others. size: number
    of processes. first: number of the first one here. pack: its folder. devices: variables for each process here, by
    which it sees its card alone. arguments: the host's options. folders: its model folders by name, each with paths and
    extensions. logs: those of the processes here.
    """

    address: str
    port: int
    name: str
    own: str
    size: int
    first: int
    pack: str
    devices: list
    arguments: dict
    folders: dict
    logs: str


def host_folder() -> str:
    """Return the folder from which ComfyUI's packages are imported."""
    return os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["comfy.cli_args"].__file__)))


def start_host(setup: Setup) -> None:
    """Import the host's packages with the options of the process that had this one started."""
    sys.path.insert(0, os.getcwd())
    arguments = importlib.import_module("comfy.cli_args").args
    for name, value in setup.arguments.items():
        setattr(arguments, name, value)
    folder_paths = importlib.import_module("folder_paths")
    for name, (paths, kinds) in setup.folders.items():
        folder_paths.folder_names_and_paths[name] = (list(paths), set(kinds))


def import_pack(folder: str, module: str):
    """Import the pack from its folder, which need not be named as a module is, and return a `module` of this room."""
    path = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location(PACKAGE, path, submodule_search_locations=[folder])
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.host.parallel.{module}")


def main() -> None:
    """Run one process, until the group ends."""
    setup, number = Setup(**json.loads(os.environ.pop(VARIABLE))), int(os.environ["RANK"])
    os.environ.update(setup.devices[number])
    start_host(setup)
    import_pack(setup.pack, "worker").serve(setup, setup.first + number)


if __name__ == "__main__":
    sys.path.pop(0)  # of this file, beside which modules have names of others
    main()
