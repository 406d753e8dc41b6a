"""The clip plays in the sampler node while it is sampled, with either of the editor's renderers."""

import pytest

STEPS, FRAMES = 6, 5  # of the run; latent frames of its clip
WATCH = """() => {
    window.seen = { steps: [], frames: new Set() }
    const { api } = window.comfyAPI.api
    api.addEventListener("wan.preview", ({ detail }) => seen.steps.push(detail))
    const note = () => {
        const canvas = document.querySelector(".wan-preview canvas")
        if (canvas?.isConnected && canvas.offsetParent && seen.steps.length) seen.frames.add(canvas.toDataURL())
        requestAnimationFrame(note)
    }
    note()
}"""
ALL_FRAMES = """async (expected) => {
    seen.frames.clear()
    while (seen.frames.size < expected) await new Promise(requestAnimationFrame)
    await new Promise(resolve => setTimeout(resolve, 2000))
    return seen.frames.size
}"""


@pytest.mark.parametrize(
    "vue_nodes, locale, last_words",
    [
        (False, "en", f"Step {STEPS} of {STEPS} \u00b7 "),
        (True, "zh", f"\u7b2c {STEPS} \u6b65\uff0c\u5171 {STEPS} \u6b65 \u00b7 "),
    ],
)
def test_the_clip_plays_while_it_is_sampled(editor, open_workflow, page, vue_nodes, locale, last_words):
    editor.go({"Comfy.VueNodes.Enabled": vue_nodes, "Comfy.Locale": locale})
    open_workflow("wan21_text_to_video", steps=STEPS, seed=int(vue_nodes) + 1)
    page.evaluate(WATCH)
    editor.run()
    page.locator(".wan-preview div", has_text=last_words).last.wait_for(timeout=5000)
    states = page.evaluate("seen.steps")
    assert [(state["step"], state["steps"], state["frames"]) for state in states] == [
        (step + 1, STEPS, FRAMES) for step in range(STEPS)
    ]
    assert states[-1]["seconds_left"] == 0 < states[0]["seconds_left"]
    assert page.evaluate("seen.frames.size") > FRAMES, "the picture stayed the same from step to step"
    assert page.evaluate(ALL_FRAMES, FRAMES) == FRAMES  # the last step's, over and over
