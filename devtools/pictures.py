"""Takes the pictures of the example workflows from the editor itself: workflows/NAME.jpg for each workflows/NAME.json.

    python -m devtools.pictures --comfyui PATH [NAME ...]

with the Python of an environment of `dev.py` that also has playwright, and a Chromium on the machine.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tiny import examples

from . import host
from .demo import WORKFLOWS
from .server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
SIZE = {"width": 1600, "height": 1100}  # of a picture, in pixels
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
FIT = """async (workflow) => {
    const app = window.app ?? window.comfyAPI.app.app
    await app.loadGraphData(workflow)
    const nodes = app.graph._nodes
    const bounds = nodes.map(node => node.getBounding())
    const left = Math.min(...bounds.map(b => b[0])), top = Math.min(...bounds.map(b => b[1]))
    const right = Math.max(...bounds.map(b => b[0] + b[2])), bottom = Math.max(...bounds.map(b => b[1] + b[3]))
    const area = app.canvas.canvas.getBoundingClientRect()
    const scale = Math.min((area.width - 140) / (right - left), (area.height - 140) / (bottom - top), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [
        (area.width / scale - right - left) / 2,
        (area.height / scale - bottom - top) / 2,
    ]
    app.canvas.setDirty(true, true)
    const [dx, dy] = app.canvas.ds.offset
    return {
        missing: nodes.map(node => node.type).filter(type => !(type in window.LiteGraph.registered_node_types)),
        clip: {
            x: area.left + (left + dx) * scale - 20,
            y: area.top + (top + dy) * scale - 30,
            width: (right - left) * scale + 40,
            height: (bottom - top) * scale + 50,
        },
    }
}"""


def browser_path() -> str:
    """The Chromium of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"There is no Chromium here: install one of {', '.join(BROWSERS)}.")
    return found


def place_models(models: Path, workflows: list[Path]) -> None:
    """Empty files under the names that the workflows load, so that the editor marks none of them as missing."""
    for workflow in workflows:
        for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]:
            for model in node["properties"].get("models", ()):
                (models / model["directory"]).mkdir(exist_ok=True)
                (models / model["directory"] / model["name"]).touch()


def photograph(page: Page, workflow: Path) -> None:
    """Write the picture of one workflow beside it."""
    view = page.evaluate(FIT, json.loads(workflow.read_text(encoding="utf-8")))
    if view["missing"]:
        raise SystemExit(f"{workflow.name} has nodes that the server lacks: {view['missing']}")
    for _ in range(3):
        page.keyboard.press("Escape")  # dialogs about missing models
        page.wait_for_timeout(500)
    page.screenshot(path=workflow.with_suffix(".jpg"), type="jpeg", quality=80, clip=view["clip"])


def main() -> None:
    """Take every picture, or those of the workflows named on the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    workflows = [WORKFLOWS / f"{name}.json" for name in options.names] or sorted(WORKFLOWS.glob("*.json"))
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        host.prepare_base(base)
        place_models(base / "models", workflows)
        examples.write(base / "input")
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
        with Server(sys.executable, options.comfyui, base, cpu=True) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
            page = browser.new_page(viewport=SIZE)
            page.goto(server.url)
            page.wait_for_function("(window.app ?? window.comfyAPI?.app?.app)?.graph", timeout=60_000)
            page.wait_for_timeout(3000)
            for workflow in workflows:
                photograph(page, workflow)
                logging.info("%s", workflow.with_suffix(".jpg"))
            browser.close()


if __name__ == "__main__":
    main()
