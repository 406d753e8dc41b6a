"""User actions with the mouse: find a node, place it, wire it, run it, and drop its video back into the editor."""

import json

import pytest

from devtools import blueprints, demo
from devtools.editor import Editor

NAME = "wan21_text_to_video"
FIRST_WIDGET = "(type) => LiteGraph.createNode(type).widgets[0].name"
AROUND = """() => {
    const [blueprint] = app.graph._nodes
    const save = LiteGraph.createNode("SaveVideo")
    app.graph.add(save)
    blueprint.connect(0, save, 0)
    if (!blueprint.inputs.some((input) => input.name === "start_image")) return
    const load = LiteGraph.createNode("LoadImage")
    app.graph.add(load)
    load.widgets[0].value = "wan_example_start.png"
    load.connect(0, blueprint, blueprint.inputs.findIndex((input) => input.name === "start_image"))
}"""
TYPES = "app.graph._nodes.map((node) => node.type).sort()"


def wire(editor: Editor, origin: str, output: str, target: str, given: str) -> None:
    """Drag a link with the mouse from an output of one type of node to an input of another."""
    mouse = editor.page.mouse
    editor.point(*editor.socket(origin, output, is_input=False))
    mouse.down()
    mouse.move(*editor.socket(target, given, is_input=True), steps=8)
    mouse.up()


def pick(editor: Editor, words: str, title: str) -> None:
    """Find a node in the search and put it onto the canvas."""
    page = editor.page
    editor.point(1000, 900)
    count = page.evaluate("app.graph._nodes.length")
    page.mouse.dblclick(1000, 900, delay=30)  # the editor takes no two clicks in one millisecond for a double one
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type(words)
    page.get_by_text(title, exact=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("(count) => app.graph._nodes.length > count", arg=count)
    if page.evaluate("'ghostNodeId' in app.canvas.state"):  # the newer editor's node follows the mouse until a click
        page.wait_for_function("app.canvas.state.ghostNodeId !== null")
        editor.point(1150, 800)
        page.mouse.click(1150, 800)


def test_a_node_from_the_search_is_placed_and_wired_by_hand_and_its_video_restores_the_graph(open_workflow, page):
    editor = open_workflow(NAME)
    types = page.evaluate(TYPES)
    page.evaluate("app.graph.remove(app.graph._nodes.find((node) => node.type === 'WanSampler'))")

    pick(editor, "wan sampler", "Wan Sampler")
    wire(editor, "WanModelLoader", "MODEL", "WanSampler", "model")
    wire(editor, "WanTextEncode", "positive", "WanSampler", "positive")
    wire(editor, "WanTextEncode", "negative", "WanSampler", "negative")
    wire(editor, "WanEmptyLatent", "LATENT", "WanSampler", "latent")
    wire(editor, "WanSampler", "LATENT", "WanVAEDecodeToVideo", "samples")
    assert page.evaluate("app.graph._nodes.find((node) => node.type === 'WanSampler').inputs[0].link") is not None
    editor.set("steps", 2)
    editor.run()

    saved = page.evaluate("Object.values(app.nodeOutputs).flatMap((output) => output.images)[0]")
    video = page.request.get(f"{editor.url}/view", params=saved).body()
    page.evaluate("app.graph.clear()")
    assert page.evaluate(TYPES) == []
    editor.drop(saved["filename"], video, "video/mp4")
    page.wait_for_function("app.graph._nodes.length > 0")
    assert page.evaluate(TYPES) == types


@pytest.mark.parametrize("blueprint", blueprints.BLUEPRINTS, ids=lambda blueprint: blueprint.workflow)
def test_a_blueprint_is_found_in_the_search_and_runs(editor, page, blueprint):
    page.evaluate("app.graph.clear()")
    pick(editor, blueprint.name, blueprint.name)
    for node in demo.load_workflow(blueprint.workflow)["nodes"]:
        for real in node["widgets_values"][:1]:
            if real in demo.DEMO_FILES:
                widget = page.evaluate(FIRST_WIDGET, node["type"])
                editor.set(widget, demo.DEMO_FILES[real])
    for widget, value in (demo.DEMO_VALUES | {"length": 9, "steps": 2}).items():
        editor.set(widget, value)
    page.evaluate(AROUND)
    editor.run()
    assert page.evaluate("Object.values(app.nodeOutputs).flatMap((output) => output.images ?? [])")


def test_the_blueprints_are_those_of_the_templates():
    for blueprint in blueprints.BLUEPRINTS:
        written = json.loads((blueprints.FOLDER / f"{blueprint.name}.json").read_text(encoding="utf-8"))
        assert written == blueprints.build(blueprint), "run `python -m devtools.blueprints`"
