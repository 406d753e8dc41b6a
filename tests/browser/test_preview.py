"""The clip plays in the sampler node while it is sampled, with either of the editor's renderers."""

import json
from pathlib import Path

import pytest

from devtools.editor import RENDERER

WORDS = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))
STEPS, FRAMES = 6, 5  # of the run; latent frames of its clip
WATCH = """() => {
    window.seen = { steps: [], frames: new Set() }
    const { api } = window.comfyAPI.api
    api.addEventListener("wan.preview", ({ detail }) => seen.steps.push(detail))
    const note = () => {
        const canvas = document.querySelector(".wan-preview canvas")
        if (canvas?.offsetParent && seen.steps.length) seen.frames.add(canvas.toDataURL())
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
INTO_SUBGRAPH = """() => {
    const sampler = app.graph.nodes.find(node => node.type === "WanSampler")
    const { node } = app.graph.convertToSubgraph(new Set([sampler]))
    app.canvas.openSubgraph(node.subgraph, node)
}"""


@pytest.mark.parametrize("locale, in_subgraph", [("en", False), ("zh", False), ("en", True)])
def test_the_clip_plays_while_it_is_sampled(editor, open_workflow, page, locale, in_subgraph):
    if locale == "zh":  # with the newer renderer
        editor.go({RENDERER: True, "Comfy.Locale": locale})
    open_workflow("wan21_text_to_video", steps=STEPS, seed={"en": 1, "zh": 2}[locale] + 10 * in_subgraph)
    if in_subgraph:
        page.evaluate(INTO_SUBGRAPH)
    page.evaluate(WATCH)
    editor.run()
    page.locator(".wan-preview div", has_text=WORDS[locale]["last step"]).last.wait_for(timeout=5000)
    states = page.evaluate("seen.steps")
    assert [(state["step"], state["steps"], state["frames"]) for state in states] == [
        (step + 1, STEPS, FRAMES) for step in range(STEPS)
    ]
    assert (":" in states[0]["node"]) == in_subgraph
    assert states[-1]["seconds_left"] == 0 < states[0]["seconds_left"]
    assert page.evaluate("seen.frames.size") > FRAMES, "the picture stayed the same from step to step"
    assert page.evaluate(ALL_FRAMES, FRAMES) == FRAMES  # the last step's, over and over
