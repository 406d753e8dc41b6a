"""The example workflows in the editor: opened, run with its button, their video played."""

import re

import pytest
from playwright.sync_api import expect

from devtools import demo, layout, links
from devtools.editor import RENDERER
from devtools.host import LINK
from tiny import examples

NAMES = sorted(path.stem for path in demo.WORKFLOWS.glob("*.json"))
QUICK = {"length": 9, "seconds": 0.5, "steps": 2}
VIDEO = """() => {
    const node = app.graph._nodes.find((node) => ["SaveVideo", "WanStream"].includes(node.type))
    const name = app.nodeOutputs[node.id].images[0].filename
    return [...document.querySelectorAll("video")].find((video) => video.src.includes(name)) ?? null
}"""
HAS_LENGTH = (
    "app.graph._nodes.some((node) => node.widgets?.some((widget) => ['length', 'seconds'].includes(widget.name)))"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_runs_and_its_video_plays_in_the_node(open_workflow, page, name):
    editor = open_workflow(name, **QUICK)
    editor.run()
    video = page.wait_for_function(VIDEO).as_element()
    editor.play(video)
    page.wait_for_function("(video) => video.currentTime > 0.1", arg=video)
    size = [demo.DEMO_VALUES["width"], demo.DEMO_VALUES["height"]]
    assert video.evaluate("(video) => [video.videoWidth, video.videoHeight]") == size
    parts = max(1, page.evaluate("app.graph._nodes.filter((node) => node.type === 'WanContinue').length"))
    made = 1 + parts * (QUICK["length"] - 1) if page.evaluate(HAS_LENGTH) else examples.FRAMES  # else the given clip's
    assert video.evaluate("(video) => video.duration") == pytest.approx(made / 16, abs=0.2)


@pytest.mark.parametrize("newer_renderer", [False, True])
def test_no_node_covers_another_or_a_link(editor, newer_renderer):
    editor.go({RENDERER: newer_renderer})
    covered, hidden = {}, {}
    for name in layout.openable(editor, NAMES):
        covered[name] = layout.covered(layout.boxes(editor, demo.load_workflow(name)))
        hidden[name] = links.hidden(editor)
    assert len(covered) >= 20
    assert not any(covered.values()), f"{covered}: run `python -m devtools.layout`"
    if not newer_renderer:  # 0.3.75's newer renderer moves nodes, and not the points that links are led by
        assert not any(hidden.values()), f"{hidden}: run `python -m devtools.layout`"


def test_the_dialog_lists_the_templates_with_their_pictures(editor, page):
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(LINK, exact=True).click()
    page.get_by_text(NAMES[0], exact=True).first.hover()
    for name in NAMES:
        card = page.get_by_text(name, exact=True)
        for _ in range(30):  # the dialog adds cards when it is scrolled to its end
            if card.count():
                break
            page.mouse.wheel(0, 2000)
            page.wait_for_timeout(200)
        card.first.scroll_into_view_if_needed()
        assert page.request.get(f"{editor.url}/api/workflow_templates/{LINK}/{name}.jpg").ok
    page.wait_for_function("[...document.images].filter((image) => image.naturalWidth > 1000).length > 3")
    page.get_by_text(NAMES[-1], exact=True).first.click()
    page.wait_for_function("app.graph._nodes.some((node) => node.type === 'WanSampler')")


def test_a_template_offers_the_files_it_lacks(editor, page):
    for name in layout.openable(editor, NAMES):
        workflow = demo.load_workflow(name)
        models = {model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])}
        if not models:  # it loads the demo family
            continue
        page.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        details = page.get_by_role("button", name="View details")  # the newer editor lists them in its side panel
        details.or_(page.get_by_text("Missing Models")).first.wait_for()
        if details.is_visible():
            details.click()
        for model in models:
            page.get_by_text(model).first.wait_for()
        downloads = page.locator("button", has_text=re.compile(r"^\s*Download( \(\?\))?\s*$"))
        expect(downloads).to_have_count(len(models))
        editor.close_dialogs()
