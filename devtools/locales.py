"""Writes locales/en/nodeDefs.json from the nodes themselves, the list that every other language translates.

    python -m devtools.locales --comfyui PATH

with the Python of an environment of `dev.py`. It also names what other languages lack or have too much.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from . import host
from .client import Client
from .environment import ROOT
from .server import Server

LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh")


def read(language: str) -> dict:
    """The node texts of `language`."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(object_info: dict) -> dict:
    """The texts of this pack's nodes, in the editor's form, from what a server says of them."""
    own = {name: node for name, node in object_info.items() if node["python_module"] == f"custom_nodes.{host.LINK}"}
    return {name: _texts(own[name]) for name in sorted(own)}


def _texts(node: dict) -> dict:
    """Title, description, inputs by name and outputs by index of one node."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (_kind, options) in node["input"].get(group, {}).items():
            inputs[name] = {"name": options.get("display_name", name), "tooltip": options.get("tooltip", "")}
    outputs = {
        str(index): {"name": name, "tooltip": tooltip or ""}
        for index, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
    }
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def paths(texts: dict, prefix: str = "") -> set[str]:
    """Where `texts` has a text, as slash-separated keys."""
    found = set()
    for key, value in texts.items():
        found |= paths(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key}
    return found


def main() -> None:
    """Write the English texts and compare the other languages with them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        host.prepare_base(Path(scratch))
        with Server(sys.executable, options.comfyui, Path(scratch), cpu=True) as server:
            texts = english(Client(server.url).get("/object_info"))
    text = json.dumps(texts, indent=2, ensure_ascii=False) + "\n"
    (LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    for language in LANGUAGES[1:]:
        for path in sorted(paths(texts) ^ paths(read(language))):
            logging.info("%s: %s", language, path)


if __name__ == "__main__":
    main()
