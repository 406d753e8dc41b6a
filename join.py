"""Lets this machine take part in runs of the ComfyUI on another one, by its nodes Wan Parallel and Wan Parallel VAE.

    python custom_nodes/wan-stream/join.py ADDRESS[:PORT] [--token TOKEN] [options of ComfyUI]

in the folder of the ComfyUI here, with its Python. The log of the other ComfyUI shows the address and the token.
"""

import argparse
import getpass
import importlib
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent


def main() -> None:
    """Import the pack as part of the ComfyUI in the current folder, and take part in runs until the user ends it."""
    parser = argparse.ArgumentParser(prog="join.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("address", help="of the other machine, as the log of its ComfyUI shows it: ADDRESS[:PORT]")
    parser.add_argument("--token", help="as that log shows it; asked for without, so that no list of processes has it")
    given, sys.argv[1:] = parser.parse_known_args()
    if not os.path.exists("comfy/options.py"):
        sys.exit(f"{os.getcwd()} is not the folder of ComfyUI: change to the one in which main.py lies.")
    sys.path[0] = str(PACK / "host" / "parallel")  # in place of the pack, where `nodes` hides the host's module
    start = importlib.import_module("start")
    sys.path[0] = os.getcwd()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the end of a group is no reason for a warning
    importlib.import_module("comfy.options").enable_args_parsing()
    token = given.token or getpass.getpass("Token: ")
    start.import_pack(str(PACK), "join").run(given.address, token.strip())


if __name__ == "__main__":
    main()
