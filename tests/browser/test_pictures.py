"""The pictures under nodes: the noise schedule with the experts' change, memory, LoRA keys, skipped steps."""

import pytest

from devtools.editor import RENDERER

WITH_CACHE = """() => {
    const sampler = app.graph.nodes.find((node) => node.type === "WanSampler")
    const cache = LiteGraph.createNode("WanStepCache")
    app.graph.add(cache)
    const fed = sampler.getInputLink(sampler.findInputSlot("model"))
    app.graph.getNodeById(fed.origin_id).connect(fed.origin_slot, cache, 0)
    cache.connect(0, sampler, "model")
    for (const [name, value] of Object.entries({ budget: 1, start_percent: 0, end_percent: 1 }))
        cache.widgets.find((widget) => widget.name === name).value = value
}"""
LENGTHS = """() => [...document.querySelectorAll(".wan-schedule")].map((picture) =>
    [...picture.querySelectorAll("polyline")].map((line) => line.getAttribute("points").trim().split(" ").length))"""
FILLED = """() => [...document.querySelectorAll(".wan-bar")].map((bar) =>
    [bar.parentElement.firstChild.textContent, bar.firstChild.style.width])"""
STEPS = "() => [...document.querySelectorAll('.wan-steps > div')].map((cell) => cell.dataset.kind)"


@pytest.mark.parametrize("newer_renderer", [False, True])
def test_the_sampler_draws_its_noise_levels_and_where_the_experts_change(editor, open_workflow, page, newer_renderer):
    editor.go({RENDERER: newer_renderer})
    open_workflow("wan22_text_to_video_a14b", steps=40, shift=12)
    shown = f"(points) => JSON.stringify(({LENGTHS})()[0]) === JSON.stringify(points)"
    page.wait_for_function(shown, arg=[27, 15])  # 26 steps down to 0.875, then 14; the lines share a point
    editor.set("boundary", 0.5)
    page.wait_for_function(shown, arg=[38, 4])
    text, width = next(row for row in page.evaluate(FILLED) if "GiB" in row[0])
    needed, free = (float(word) for word in text.split(": ")[1].removesuffix(" GiB").split(" of "))
    assert float(width.removesuffix("%")) == pytest.approx(100 * needed / free, abs=1)


def test_loras_and_step_caches_draw_what_a_run_found(editor, open_workflow, page):
    open_workflow("Try it - in four steps", length=9)
    page.evaluate(WITH_CACHE)
    editor.set("steps", 6)
    editor.set("preset", "none")
    editor.set("strength_1", 0.85)
    editor.run()
    page.wait_for_function(f"() => ({STEPS})().length === 6")
    steps = page.evaluate(STEPS)
    assert steps[:2] == ["computed", "computed"] and "skipped" in steps[2:]
    page.wait_for_function(f"() => ({FILLED})().some(([text, width]) => text.includes('keys') && width === '100%')")
