"""Runs this pack beside other packs, one at a time: do both list their nodes, and does the demo make its video?

    python -m devtools.neighbours --comfyui PATH FOLDER

with a Python that has what the host and the packs in FOLDER need. Each folder in FOLDER is a pack.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import demo, host, locales
from .client import Client
from .environment import SetupError
from .server import Server
from .workflow import to_prompt

PATIENCE = 900  # seconds for a server to start: some packs import much

log = logging.getLogger("dev")


@contextmanager
def served(comfyui: Path, pack: Path, *, ours: bool) -> Iterator[tuple[Path, Client]]:
    """Yield the base folder and a client of a server that has the pack in the folder `pack`, and this one if `ours`."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (host.prepare_base if ours else host.make_folders)(base)
        os.symlink(pack, base / "custom_nodes" / pack.name, target_is_directory=True)
        with Server(sys.executable, comfyui, base, cpu=True, timeout=PATIENCE) as running:
            yield base, Client(running.url)


def nodes_of(client: Client, pack: str) -> set[str]:
    """Return the node classes that the server has from the folder `pack` of custom_nodes."""
    module = f"custom_nodes.{pack}"
    return {name for name, node in client.get("/object_info").items() if node["python_module"] == module}


def beside(comfyui: Path, pack: Path) -> str:
    """Return a line of what was found with `pack` beside ours; raise SetupError if either pack lost something."""
    with served(comfyui, pack, ours=False) as (_, client):
        alone = nodes_of(client, pack.name)
        taken = {path for path in client.get("/extensions") if f"/{host.LINK}/" in path}
    if not alone or taken:
        raise SetupError(
            f"{pack.name} lists {len(alone)} nodes by itself and serves {len(taken)} scripts under our name."
        )
    with served(comfyui, pack, ours=True) as (base, client):
        own = set(locales.read("en"))
        if lost := own - nodes_of(client, host.LINK) | alone - nodes_of(client, pack.name):
            raise SetupError(f"Beside {pack.name}, nodes are lost: {', '.join(sorted(lost))}.")
        if set(client.get("/wan/nodes")) & own == set():
            raise SetupError(f"Beside {pack.name}, /wan/nodes is answered by another pack.")
        prompt = to_prompt(demo.load_workflow(demo.DEMO_WORKFLOW), client.get("/object_info"))
        files = [base / file["type"] / file["subfolder"] / file["filename"] for file in client.run(prompt)]
        video = next(path for path in files if path.suffix == ".mp4")
        return f"{pack.name}: {len(alone)} nodes beside our {len(own)}, and {demo.describe(video)}"


def main() -> int:
    """Run every pack of the folder beside ours; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    failed = 0
    for pack in sorted(path for path in options.folder.resolve().iterdir() if path.is_dir()):
        try:
            log.info("%s", beside(options.comfyui, pack))
        except SetupError as error:
            log.error("%s", error)
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
