"""A workflow of ComfyUI's own Wan nodes in the editor, with this pack's loaders in the place of its own."""

from devtools import demo


def test_a_template_of_comfyui_opens_and_runs_with_our_loaders(editor, page, migrated):
    editor.open(migrated("image_to_video_wan"))
    for widget, value in (demo.DEMO_VALUES | {"length": 9, "steps": 2}).items():
        editor.set(widget, value)
    types = set(page.evaluate("app.graph._nodes.map((node) => node.type)"))
    assert {"WanModelLoader", "WanImageToVideo", "KSampler", "VAEDecode"} <= types
    editor.run()
    assert page.evaluate("Object.values(app.nodeOutputs).flatMap((output) => output.images ?? []).length") > 0
