"""The help page of a node in the editor, in each language."""

import pytest

from devtools import locales

TITLE = """() => {
    app.graph.clear()
    const node = LiteGraph.createNode("WanSampler")
    app.graph.add(node)
    const { ds, canvas } = app.canvas
    const { left, top } = canvas.getBoundingClientRect()
    node.pos = [500 / ds.scale - ds.offset[0], 400 / ds.scale - ds.offset[1]]
    return [left + 500 + 60 * ds.scale, top + 400 - 12 * ds.scale]
}"""  # puts a sampler into the view and says where its title is


@pytest.fixture(params=locales.LANGUAGES)
def language(request, editor) -> str:
    """An editor in each language in turn."""
    editor.go({"Comfy.Locale": request.param})
    return request.param


def test_the_help_page_speaks_the_language(language, editor, page):
    texts = locales.read(language)["WanSampler"]
    title = page.evaluate(TITLE)
    editor.point(*title)
    page.mouse.click(*title)
    page.get_by_test_id("info-button").click()
    page.get_by_text(texts["inputs"]["boundary"]["tooltip"][:30]).first.wait_for()
    picture = page.locator('img[src*="docs/pictures/WanSampler.jpg"]')
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=picture.element_handle())
    editor.errors = [error for error in editor.errors if "/en.md" not in error]  # asked for before WanSampler.md
