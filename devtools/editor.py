"""ComfyUI's graph editor in a real browser: opened, filled with a workflow, and run with its own Run button."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, ElementHandle, Page, sync_playwright

from . import browser
from .environment import SetupError
from .host import LINK

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 120_000  # milliseconds, for a busy machine
SIZE = {"width": 1600, "height": 1100}  # of the window, in pixels
SETTINGS = {  # a first visit without its tour and its dialogs
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.InstalledVersion": "1.99.0",
    "Comfy.Locale": "en",  # the server remembers what the last visit chose
}
RENDERER = "Comfy.VueNodes.Enabled"  # the newer renderer, which draws nodes as elements of the page
RUN_BUTTON = 'button[data-testid="queue-button"], [data-testid="queue-button"] button'
READY = """() => {
    const app = window.app ?? window.comfyAPI?.app?.app
    return !!app?.graph && !!app.extensionManager?.workflow?.activeWorkflow
        && !!window.LiteGraph?.registered_node_types.WanSampler
}"""
WATCH = """() => {
    window.app ??= window.comfyAPI.app.app
    window.ended = []
    const { api } = window.comfyAPI.api
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
        api.addEventListener(name, (event) => window.ended.push({ name, ...event.detail }))
}"""
DRAWN = """async () => {
    app.canvas.setDirty(true, true)
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame)
}"""
UNCOVERED = """([x, y]) => {
    const met = document.elementFromPoint(x, y)
    return met?.id === "graph-canvas" || Boolean(met?.closest("[data-node-id]"))
}"""  # the canvas, or a node that the newer renderer draws above it
SOCKET = """([type, isInput, name]) => {
    const node = app.graph._nodes.find((node) => node.type === type)
    const index = (isInput ? node.inputs : node.outputs).findIndex((slot) => slot.name === name)
    const drawn = document.querySelector(`[data-slot-key="${node.id}-${isInput ? "in" : "out"}-${index}"]`)
    if (drawn) {
        const { x, y, width, height } = drawn.getBoundingClientRect()
        return [x + width / 2, y + height / 2]
    }
    const [x, y] = node.getConnectionPos(isInput, index)
    const { ds, canvas } = app.canvas
    const { left, top } = canvas.getBoundingClientRect()
    return [left + (x + ds.offset[0]) * ds.scale, top + (y + ds.offset[1]) * ds.scale]
}"""
DROP = """async ([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type }))
    const canvas = document.getElementById("graph-canvas")
    for (const event of ["dragenter", "dragover", "drop"])
        canvas.dispatchEvent(new DragEvent(event, { dataTransfer, bubbles: true, cancelable: true }))
}"""
MISSING = "(types) => types.filter(type => !(type in LiteGraph.registered_node_types))"
SET = """([type, widget, value]) => {
    for (const graph of [app.graph, ...app.graph.subgraphs.values()])
        for (const node of graph._nodes)
            for (const found of node.widgets ?? [])
                if ((type === null || node.type === type) && found.name === widget) {
                    found.value = value
                    found.callback?.(value, app.canvas, node)
                }
}"""


class Editor:
    """The editor of the server at `url` in `page`, by default in one of its two renderers.

    `errors` collects what the browser's console says of this pack's files and routes.
    """

    def __init__(self, page: Page, url: str, *, newer_renderer: bool = False):
        self.page = page
        self.url = url
        self.usual = SETTINGS | {RENDERER: newer_renderer}
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self._keep(f"{error} {error.stack}"))

    def go(self, settings: dict[str, object] | None = None) -> None:
        """Open the editor, with other `settings` than the usual, and wait until it has opened its first workflow."""
        self.page.request.post(f"{self.url}/settings", data=self.usual | (settings or {}))
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.page.locator(RUN_BUTTON).first.wait_for()
        self.page.evaluate(WATCH)

    def open(self, workflow: dict) -> None:
        """Load `workflow` (the editor's JSON) and close the dialogs about files that are not there.

        Raise ValueError if the server lacks one of its nodes.
        """
        if missing := self.lacking(workflow):
            raise ValueError(f"The server lacks nodes of the workflow: {missing}")
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self.close_dialogs()

    def lacking(self, workflow: dict) -> list[str]:
        """Return the classes of nodes in `workflow` that this server does not have, those in subgraphs left out."""
        subgraphs = {graph["id"] for graph in workflow.get("definitions", {}).get("subgraphs", [])}
        return self.page.evaluate(MISSING, sorted({node["type"] for node in workflow["nodes"]} - subgraphs))

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a point of the canvas or of a node, in pixels of the window, when it can be met there.

        The graph has to be drawn as it is now, and a dialog that fades out covers it for a while.
        """
        self.page.evaluate(DRAWN)
        self.page.wait_for_function(UNCOVERED, arg=[x, y])
        self.page.mouse.move(x, y, steps=4)

    def socket(self, type: str, name: str, *, is_input: bool) -> tuple[float, float]:
        """Return where the input or output `name` of the first node of a `type` is drawn, in pixels of the window."""
        self.page.evaluate(DRAWN)
        return tuple(self.page.evaluate(SOCKET, [type, is_input, name]))

    def press(self, keys: str) -> None:
        """Press a key or a chord such as "Control+z" with a frame drawn after each key, as it is under a hand.

        The editor acts on a key in the next frame. Where a key is up again before that, undo may take back less.
        """
        chord = keys.split("+")
        for key in chord:
            self.page.keyboard.down(key)
            self.page.evaluate(DRAWN)
        for key in reversed(chord):
            self.page.keyboard.up(key)

    def close_dialogs(self) -> None:
        """Close what covers the canvas."""
        for _ in range(3):
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(200)

    def set(self, widget: str, value: object, type: str | None = None) -> None:
        """Give the widgets named `widget`, of the nodes of one `type` or of all, a value, as a hand would.

        Nodes inside subgraphs are among them.
        """
        self.page.evaluate(SET, [type, widget, value])

    def drop(self, name: str, content: bytes, type: str = "") -> None:
        """Drop the file `name` onto the canvas. type: its media type, empty as in a browser that does not know it."""
        self.page.evaluate(DROP, [name, type, base64.b64encode(content).decode()])

    def run(self, timeout: float = 300) -> None:
        """Press Run and wait for the end. Raise ValueError with what the server said where it is not a success."""
        before = self.page.evaluate("ended.length")
        with self.page.expect_response("**/prompt") as reply:
            self.page.locator(RUN_BUTTON).first.click()
        if reply.value.status != 200:
            raise ValueError(reply.value.text())
        self.page.wait_for_function("(before) => ended.length > before", arg=before, timeout=timeout * 1000)
        ended = self.page.evaluate("ended.at(-1)")
        if ended["name"] != "execution_success":
            raise ValueError(f"{ended.get('node_type')}: {ended.get('exception_message', ended['name'])}")

    def play(self, video: ElementHandle) -> None:
        """Play a finished video in its node as a user does: by a click. In the newer renderer a click does nothing."""
        if self.usual[RENDERER]:
            video.evaluate("(video) => video.play()")
        else:
            video.click()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._keep(f"{message.text} {message.location.get('url', '')}")

    def _keep(self, text: str) -> None:
        if f"/extensions/{LINK}/" in text or "/wan/" in text:
            self.errors.append(text)


@contextmanager
def chromium(python: str | Path = sys.executable) -> Iterator[Browser]:
    """A headless Chromium of this machine. Raise SetupError if there is none."""
    path = browser.find(python)
    if path is None:
        raise SetupError(browser.missing(python))
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()
