"""Moves the nodes of the templates apart, so that none covers another, and leads links around the nodes between.

    python -m devtools.layout --comfyui PATH [NAME ...]

with the Python of an environment of `dev.py test`; WAN_FRONTEND names the pages of another editor than the host's. A
NAME is a file of workflows/; without one, all that this host can open are laid out. Nodes only move down their columns,
so that runs in one host and editor after another leave room for all of them. Columns stand far enough apart for nodes
of 1.2 times their size, as 0.3.75's newer renderer draws them.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from tiny import examples, random_weights

from . import demo, host, links
from .editor import RENDERER, SIZE, Editor, chromium
from .links import Boxes
from .server import Server

TITLE = 30  # pixels of a node's title, above its position
GAP = 40  # pixels between a node and the next one's title
SHOW_PREVIEWS = """(picture) => {
    for (const { id, type } of app.graph._nodes) {
        const state = { node: String(id), picture, frames: 1, fps: 4, step: 1, steps: 2 }
        const times = { seconds_per_step: 1, seconds_left: 1 }
        if (type === "WanSampler") window.comfyAPI.api.api.dispatchCustomEvent("wan.preview", { ...state, ...times })
    }
}"""
SIZES = """async () => {
    const sizes = () => app.graph._nodes.map(({ id, size }) => [Number(id), ...size])
    for (let last; last !== JSON.stringify(sizes()); await new Promise((resolve) => setTimeout(resolve, 700)))
        last = JSON.stringify(sizes())
    return sizes()
}"""  # once they stay the same


def openable(editor: Editor, names: Sequence[str]) -> list[str]:
    """Return those of the templates `names` whose nodes this host has."""
    return [name for name in names if not editor.lacking(demo.load_workflow(name))]


def boxes(editor: Editor, workflow: dict) -> Boxes:
    """Open the template `workflow` and return where its nodes lie, with their notes and with the samplers' previews.

    Sizes are the renderer's. Positions are the template's: the newer renderer of 0.3.75 moves most workflows apart, but
    not every one.
    """
    editor.open(demo.with_demo_files(workflow))
    editor.page.evaluate(SHOW_PREVIEWS, f"/view?type=input&filename={examples.FILES[0]}")
    sizes = {number: size for number, *size in editor.page.evaluate(SIZES)}
    found = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], sizes[node["id"]]
        found[node["id"]] = (x, y - TITLE, x + width, y + height)
    return found


def covered(places: Boxes) -> list[tuple[int, int]]:
    """Return the pairs of nodes that lie on each other."""
    return [
        (a, b)
        for a, b in combinations(places, 2)
        if _cross(places[a], places[b], 0) and _cross(places[a], places[b], 1)
    ]


def stack(workflow: dict, heights: dict[int, float]) -> None:
    """Move each node of `workflow` down, clear of those above it. heights: of the nodes, titles included."""
    placed = []
    for node in sorted(workflow["nodes"], key=lambda node: (node["pos"][1], node["pos"][0])):
        left, right = node["pos"][0], node["pos"][0] + node["size"][0]
        above = [bottom for bottom, *sides in placed if sides[0] < right and left < sides[1]]
        top = max([node["pos"][1] - TITLE, *(bottom + GAP for bottom in above)])
        node["pos"][1] = round(top + TITLE)
        placed.append((top + heights[node["id"]], left, right))


def lead_links(editor: Editor, workflow: dict) -> None:
    """Lead the links of `workflow` that would run under nodes around them, as the editor draws it without points."""
    workflow["extra"] = {}
    places = boxes(editor, workflow)
    links.lead_around(workflow, places, links.ends(editor), {link for link, _ in links.hidden(editor)})


def _cross(a: tuple, b: tuple, axis: int) -> bool:
    return a[axis] < b[axis + 2] and b[axis] < a[axis + 2]


def measure(editor: Editor, names: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the heights of the nodes of the templates `names`, in the renderer that makes each the taller."""
    heights = {name: {} for name in names}
    for newer_renderer in (False, True):
        editor.go({RENDERER: newer_renderer})
        for name, known in heights.items():
            for number, (_, top, _, bottom) in boxes(editor, demo.load_workflow(name)).items():
                known[number] = max(known.get(number, 0), bottom - top)
    return heights


def parse() -> argparse.Namespace:
    """Return the options of the command line: `comfyui`, a folder, and `names`; the log goes to the terminal."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME")
    return parser.parse_args()


@contextmanager
def opened(comfyui: Path, write_models: Callable[[Path], object], size: dict[str, int]) -> Iterator[Editor]:
    """Yield an editor page of `size` on a new server of `comfyui` that has examples and what `write_models` writes."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        host.prepare_base(base)
        write_models(base / "models")
        examples.write(base / "input")
        with Server(sys.executable, comfyui, base, cpu=True) as server, chromium() as browser:
            yield Editor(browser.new_page(viewport=size), server.url)


def main() -> None:
    """Lay out every template, or those named on the command line."""
    options = parse()
    with opened(options.comfyui, random_weights.write, SIZE) as editor:
        editor.go()
        names = options.names or openable(editor, sorted(path.stem for path in demo.WORKFLOWS.glob("*.json")))
        heights = measure(editor, names)
        editor.go()
        for name, known in heights.items():
            workflow = demo.load_workflow(name)
            stack(workflow, known)
            lead_links(editor, workflow)
            (demo.WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
            logging.info("%s", name)


if __name__ == "__main__":
    main()
