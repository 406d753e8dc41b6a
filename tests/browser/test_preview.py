"""The clip plays in the sampler node while it is sampled, with either of the editor's renderers."""

import pytest

WATCH = """() => {
    window.seen = { steps: [], sheets: [], frames: new Set() }
    const { api } = window.comfyAPI.api
    api.addEventListener("wan.preview", ({ detail }) => seen.steps.push(detail))
    const note = () => {
        const canvas = document.querySelector(".wan-preview canvas")
        if (canvas?.width > 1) seen.frames.add(canvas.toDataURL())
        requestAnimationFrame(note)
    }
    note()
}"""


@pytest.mark.parametrize("renderer", ["canvas", "nodes 2.0"])
def test_the_preview_changes_between_steps_and_shows_more_than_one_frame(open_workflow, page, renderer):
    editor = open_workflow("wan21_text_to_video", steps=6)
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", renderer != "canvas")
    page.evaluate(WATCH)
    editor.run()
    page.wait_for_timeout(3000)
    print(page.evaluate("seen.steps"))
    print(page.evaluate("seen.frames.size"), editor.errors)
    page.screenshot(path=f"/tmp/shots/preview-{renderer}.png")
