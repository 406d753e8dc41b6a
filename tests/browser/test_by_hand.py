"""What people do with the mouse: find a node, place it, wire it, run it, and drop its video back into the editor."""

import base64

NAME = "wan21_text_to_video"
SLOT = """([type, isInput, name]) => {
    const node = app.graph._nodes.find((node) => node.type === type)
    const index = (isInput ? node.inputs : node.outputs).findIndex((slot) => slot.name === name)
    const [x, y] = node.getConnectionPos(isInput, index)
    const { ds, canvas } = app.canvas
    const { left, top } = canvas.getBoundingClientRect()
    return [left + (x + ds.offset[0]) * ds.scale, top + (y + ds.offset[1]) * ds.scale]
}"""
DROP = """async ([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type: "video/mp4" }))
    const canvas = document.getElementById("graph-canvas")
    for (const event of ["dragenter", "dragover", "drop"])
        canvas.dispatchEvent(new DragEvent(event, { dataTransfer, bubbles: true, cancelable: true }))
}"""
TYPES = "app.graph._nodes.map((node) => node.type).sort()"


def wire(page, origin: str, output: str, target: str, given: str) -> None:
    """Drag a link with the mouse from an output of one type of node to an input of another."""
    page.mouse.move(*page.evaluate(SLOT, [origin, False, output]))
    page.mouse.down()
    page.mouse.move(*page.evaluate(SLOT, [target, True, given]), steps=8)
    page.mouse.up()


def test_a_node_from_the_search_is_placed_and_wired_by_hand_and_its_video_restores_the_graph(open_workflow, page):
    editor = open_workflow(NAME)
    types = page.evaluate(TYPES)
    page.evaluate("app.graph.remove(app.graph._nodes.find((node) => node.type === 'WanSampler'))")

    page.mouse.dblclick(1000, 900)
    page.keyboard.type("wan sampler")
    page.get_by_text("Wan Sampler", exact=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("app.graph._nodes.some((node) => node.type === 'WanSampler')")
    page.mouse.move(1000, 700, steps=4)
    page.mouse.click(1000, 700)  # the newer editor's node follows the mouse until then
    wire(page, "WanModelLoader", "MODEL", "WanSampler", "model")
    wire(page, "WanTextEncode", "positive", "WanSampler", "positive")
    wire(page, "WanTextEncode", "negative", "WanSampler", "negative")
    wire(page, "WanEmptyLatent", "LATENT", "WanSampler", "latent")
    wire(page, "WanSampler", "LATENT", "WanVAEDecodeToVideo", "samples")
    assert page.evaluate("app.graph._nodes.find((node) => node.type === 'WanSampler').inputs[0].link") is not None
    editor.set("steps", 2)
    editor.run()

    saved = page.evaluate("Object.values(app.nodeOutputs).flatMap((output) => output.images)[0]")
    video = page.request.get(f"{editor.url}/view", params=saved).body()
    page.evaluate("app.graph.clear()")
    assert page.evaluate(TYPES) == []
    page.evaluate(DROP, [saved["filename"], base64.b64encode(video).decode()])
    page.wait_for_function("app.graph._nodes.length > 0")
    assert page.evaluate(TYPES) == types
