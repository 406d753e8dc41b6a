"""Everyday work with any node: search, connect, bypass, mute, copy and group it; and drop a model file beside it."""

import json

import pytest

from devtools.editor import RENDERER

BYPASSED, MUTED = 4, 2
WORKFLOW = "Try it - in four steps"
NODES = """() => app.graph.nodes.filter(({ type }) => !["SaveVideo", "MarkdownNote"].includes(type))
    .map(({ id, type }) => [id, type])"""
MODE = """([id, mode]) => {
    app.graph.getNodeById(id).mode = mode
    app.graph.change?.()
    window.comfyAPI.api.api.dispatchCustomEvent("graphChanged", app.graph.serialize())
}"""
COPIES = """() => app.graph.nodes.map(({ type, widgets, inputs }) => JSON.stringify([
    type,
    (widgets ?? []).filter(({ serialize }) => serialize !== false).map(({ name, value }) => [name, value]),
    (widgets ?? []).some(({ name }) => name === "wan_note"),
    (inputs ?? []).filter(({ link }) => link != null).length,
])).sort()"""

LOADER = """() => {
    app.graph.clear()
    const node = LiteGraph.createNode("WanModelLoader")
    app.graph.add(node)
    const { ds } = app.canvas
    node.pos = [300 / ds.scale - ds.offset[0], 400 / ds.scale - ds.offset[1]]
}"""  # puts a loader into the view
GROUPED = """() => {
    const [group] = app.graph.groups
    group?.recomputeInsideNodes()
    return app.graph.nodes.filter((node) => group?.children.has(node)).map(({ type }) => type).sort()
}"""
MODES = "[...new Set(app.graph.nodes.map(({ mode }) => mode))]"


@pytest.mark.parametrize("words, title", [("wan 2.2 i2v 4 steps", "Wan Sampler"), ("lightx2v", "Wan LoRA Loader")])
def test_the_search_finds_a_node_by_what_people_type(editor, page, object_info, words, title):
    if "search_aliases" not in json.dumps(object_info["WanSampler"]):
        pytest.skip("the search of this ComfyUI knows no other words")
    page.evaluate("app.graph.clear()")
    editor.point(1000, 900)
    page.mouse.dblclick(1000, 900, delay=30)
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type(words)
    page.get_by_text(title, exact=True).first.wait_for()


def test_a_bypassed_or_muted_node_is_passed_or_refused_and_nothing_breaks(editor, open_workflow, page):
    open_workflow(WORKFLOW, length=5)
    ran = set()
    for number, kind in page.evaluate(NODES):
        for mode in (BYPASSED, MUTED):
            page.evaluate(MODE, [number, mode])
            try:
                editor.run()
                ran.add((kind, mode))
            except ValueError as refusal:
                assert "prompt_outputs_failed_validation" in str(refusal), refusal
                editor.close_dialogs()
            page.evaluate(MODE, [number, 0])
    assert ran == {("WanLoraLoader", BYPASSED), ("WanSampler", BYPASSED)}  # what has an input of its output's type
    editor.run()


def test_pasted_nodes_are_the_copied_ones_with_their_notes(editor, open_workflow, page):
    open_workflow(WORKFLOW, steps=3)
    before = page.evaluate(COPIES)
    editor.point(1500, 1000)
    page.mouse.click(1500, 1000)
    for keys in ("Control+a", "Control+c", "Control+v"):
        editor.press(keys)
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=2 * len(before))
    assert page.evaluate(COPIES) == sorted(2 * before)


def test_a_link_let_go_over_nothing_offers_our_nodes(editor, page):
    editor.go({"Comfy.LinkRelease.Action": "search box"})
    page.evaluate(LOADER)
    editor.point(*editor.socket("WanModelLoader", "MODEL", is_input=False))
    page.mouse.down()
    page.mouse.move(1000, 700, steps=8)
    page.mouse.up()
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type("wan sampler")
    page.get_by_text("Wan Sampler", exact=True).first.wait_for()


def test_nodes_are_grouped_and_bypassed_together(editor, open_workflow, page):
    open_workflow(WORKFLOW)
    types = sorted(page.evaluate("app.graph.nodes.map(({ type }) => type)"))
    editor.point(1500, 1000)
    page.mouse.click(1500, 1000)
    for keys, mode in [("Control+a", 0), ("Control+b", BYPASSED), ("Control+b", 0), ("Control+m", MUTED)]:
        editor.press(keys)
        page.wait_for_function(f"(mode) => JSON.stringify({MODES}) === JSON.stringify([mode])", arg=mode)
    editor.press("Control+g")
    page.wait_for_function("app.graph.groups.length === 1")
    assert page.evaluate(GROUPED) == types


@pytest.mark.parametrize("newer_renderer", [False, True])
def test_a_model_file_dropped_on_the_canvas_says_what_it_is_and_where_it_belongs(editor, page, base, newer_renderer):
    editor.go({RENDERER: newer_renderer})
    file = base / "models" / "vae" / "tiny_random_wan2.2_vae.safetensors"
    for content, said in [
        (
            file.read_bytes(),
            "dropped.safetensors holds a Wan VAE (vae22): put it into models/vae, press R and choose it",
        ),
        (file.read_bytes()[:-1], "dropped.safetensors is truncated"),
    ]:
        editor.drop("dropped.safetensors", content)
        page.get_by_text(said).first.wait_for()
