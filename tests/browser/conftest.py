"""The graph editor of a real server in a real headless Chromium."""

import sys

import pytest

from devtools import browser, demo
from devtools.editor import SIZE, Editor, chromium


@pytest.fixture(scope="module")
def running_browser():
    """One Chromium for the tests of a file; without one they are left out, which `.ci/run` does not let happen.

    While it runs, `asyncio.run` and so `Client` fail in this thread, hence not for longer: use `page.request`.
    """
    if browser.find(sys.executable) is None:
        pytest.skip(browser.missing(sys.executable))
    with chromium() as running:
        yield running


@pytest.fixture
def editor(running_browser, server, request) -> Editor:
    """An open editor in a window of its own; the pack may leave no error in its console."""
    context = running_browser.new_context(viewport=SIZE)
    newer_renderer = request.config.getoption("--newer-renderer")
    opened = Editor(context.new_page(), server.url, newer_renderer=newer_renderer)
    opened.go()
    yield opened
    context.close()
    assert not opened.errors


@pytest.fixture
def page(editor):
    """The page of `editor`, for what a test does by hand."""
    return editor.page


@pytest.fixture
def open_workflow(editor):
    """Function from the name of an example workflow to the editor with it open, demo files and values in place."""

    def load(name: str, **values: object) -> Editor:
        workflow = demo.load_workflow(name)
        if lacking := editor.lacking(workflow):
            pytest.skip(f"this ComfyUI lacks {', '.join(lacking)}")
        editor.open(demo.with_demo_files(workflow))
        samplers = [node for node in workflow["nodes"] if node["type"] == "WanSampler"]
        connected = [slot["name"] for node in samplers for slot in node["inputs"] if slot["link"] is not None]
        for widget, value in (demo.values(connected) | values).items():
            editor.set(widget, value)
        return editor

    return load
