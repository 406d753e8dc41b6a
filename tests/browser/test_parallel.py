"""A run that two processes share, in the editor: estimated, watched, cancelled, and run again."""

from devtools import demo
from devtools.editor import RUN_BUTTON

NAME = "wan22_text_to_video_a14b_several_cards"
DEVICES = "devices=cpu+x2"
WATCH = """() => {
    window.seen = { steps: [], previews: [] }
    const { api } = window.comfyAPI.api
    api.addEventListener("progress", ({ detail }) => seen.steps.push(detail.value))
    api.addEventListener("wan.preview", ({ detail }) => seen.previews.push(detail.step))
}"""
PICTURE = """() => {
    const canvas = document.querySelector(".wan-preview canvas")
    if (!canvas?.offsetParent) return false
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
    return new Set(data).size > 8
}"""


def test_estimate_watch_cancel_and_run_again(open_workflow, editor, page):
    open_workflow(NAME, seed=3, width=832, height=480)
    with page.expect_response(lambda answer: DEVICES in answer.url) as answer:
        editor.set("devices", "cpu x2")
    alone = page.request.get(answer.value.url.replace(DEVICES, "devices=auto"))
    shared, whole = (found.json()["models"][0]["activations"] for found in (answer.value, alone))
    assert 0 < shared < 0.7 * whole

    for side in ("width", "height"):
        editor.set(side, demo.DEMO_VALUES[side])
    page.evaluate(WATCH)
    editor.run()
    assert page.evaluate("seen.previews") == [1, 2, 3, 4]
    assert set(page.evaluate("seen.steps")) >= {1, 4}  # newer hosts leave out what comes within 0.1 s
    page.wait_for_function(PICTURE)

    editor.set("steps", 200)
    editor.set("seed", 4)
    with page.expect_response("**/prompt"):
        page.locator(RUN_BUTTON).first.click()
    page.wait_for_function("seen.previews.length > 6")
    page.evaluate("comfyAPI.api.api.interrupt()")
    page.wait_for_function("ended.length > 1")
    assert page.evaluate("ended.at(-1).name") == "execution_interrupted"
    assert page.evaluate("seen.previews.length") < 100

    editor.set("steps", 4)
    editor.set("seed", 5)
    editor.run()
    assert page.evaluate("seen.previews.slice(-4)") == [1, 2, 3, 4]
