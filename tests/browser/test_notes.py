"""The notes on the nodes: files, sizes and what does not go together, with either renderer and in both languages."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from devtools.editor import RENDERER

WORDS = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))
DISTILLED = "note_lightx2v_4steps.safetensors"
VAE22 = "tiny_random_wan2.2_vae.safetensors"
T2V, I2V = (f"tiny_random_wan2.2_{task}_{{}}_noise.safetensors" for task in ("t2v", "i2v"))
LINES = """([type, kind]) => {
    const all = (graph) => graph.nodes.flatMap(node => [node, ...(node.subgraph ? all(node.subgraph) : [])])
    const note = all(app.graph).find(node => node.type === type).widgets.find(widget => widget.name === "wan_note")
    return [...note.element.querySelectorAll(`.wan-${kind}, ${kind}`)].map(line => line.textContent)
}"""
FIND = "(type) => app.graph.nodes.find(node => node.type === type)"
BEFORE = f"""([type, input, added, values]) => {{
    const node = ({FIND})(type)
    const between = LiteGraph.createNode(added)
    app.graph.add(between)
    const fed = node.getInputLink(node.findInputSlot(input))
    if (between.inputs?.length) app.graph.getNodeById(fed.origin_id).connect(fed.origin_slot, between, 0)
    between.connect(0, node, input)
    for (const [name, value] of Object.entries(values)) {{
        const widget = between.widgets.find(widget => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }}
}}"""

RECORDED = """(text) => {
    const { changeTracker } = app.extensionManager.workflow.activeWorkflow
    return JSON.stringify(changeTracker.activeState).includes(text)
}"""


@pytest.fixture(scope="module", autouse=True)
def loras(base):
    """A LoRA for the 14B and a distilled one for the tiny model, there before an editor opens and lists them."""
    (base / "models" / "loras").mkdir(exist_ok=True)
    place = "diffusion_model.blocks.0.self_attn.q"
    for name, width in [("note_14B.safetensors", 5120), (DISTILLED, 256)]:
        lora = {f"{place}.lora_A.weight": torch.ones(4, width), f"{place}.lora_B.weight": torch.ones(width, 4)}
        save_file(lora, base / "models" / "loras" / name)


@pytest.fixture(params=["en", "zh"])
def words(request, editor):
    """Expected texts, in an editor of that language: English with one renderer, Chinese with the other."""
    if request.param == "zh":
        editor.go({"Comfy.Locale": "zh", RENDERER: True})
    return WORDS[request.param]


@pytest.fixture
def expect(page):
    """Function (node class, kind of line, lines): waits until the note of the node has those lines and no others."""

    def wait(node, kind, lines):
        shown = f"([node, lines]) => JSON.stringify(({LINES})(node)) === JSON.stringify(lines)"
        try:
            page.wait_for_function(shown, arg=[[node, kind], lines], timeout=60_000)
        except Exception:
            assert page.evaluate(LINES, [node, kind]) == lines
            raise

    return wait


def test_files_sizes_and_lengths_explain_themselves(words, editor, open_workflow, page, expect):
    open_workflow("wan21_image_to_video", width=832, height=480, length=81)
    expect("WanModelLoader", "fact", words["model"])
    expect("WanVAELoader", "fact", words["vae"])
    expect("WanConditioning", "fact", words["clip"])
    expect("WanConditioning", "option", words["presets"])
    editor.set("length", 84)
    expect("WanConditioning", "fact", words["longer clip"])

    page.locator(".wan-note select").select_option(words["presets"][-1])
    first_widgets = f"(type) => ({FIND})(type).widgets.slice(0, 3).map(widget => widget.value)"
    assert page.evaluate(first_widgets, "WanConditioning") == [960, 960, 85]

    editor.set("vae_name", VAE22)
    editor.set("length", 81)
    editor.set("width", 848)
    editor.set("height", 480)
    expect("WanConditioning", "fact", words["5B clip"])


def test_what_does_not_go_together_is_marked(words, editor, open_workflow, page, expect):
    open_workflow("wan21_text_to_video")
    expect("WanSampler", "problem", [])
    page.evaluate(BEFORE, ["WanSampler", "latent", "Reroute", {}])
    editor.set("vae_name", VAE22)
    expect("WanSampler", "problem", [words["sampler with the 5B's VAE"]])
    expect("WanVAEDecodeToVideo", "problem", [words["decoder with the 5B's VAE"]])
    page.evaluate(f"() => {{ app.graph.convertToSubgraph(new Set([({FIND})('WanSampler')])) }}")
    expect("WanSampler", "problem", [words["sampler with the 5B's VAE"]])
    editor.set("vae_name", VAE22.replace("2.2", "2.1"))
    expect("WanSampler", "problem", [])

    page.evaluate(BEFORE, ["WanTextEncode", "clip", "CLIPLoader", {"type": "sd3"}])
    expect("WanTextEncode", "problem", [words["CLIP"]])


def test_experts_and_loras_that_do_not_fit_are_marked(words, editor, open_workflow, page, expect):
    open_workflow("wan22_text_to_video_a14b")
    expect("WanSampler", "problem", [])
    files = f"""([high, low]) => {{
        const sampler = ({FIND})("WanSampler")
        for (const [slot, name] of [["model", high], ["low_noise_model", low]]) {{
            const widget = sampler.getInputNode(sampler.findInputSlot(slot)).widgets[0]
            widget.value = name
            widget.callback?.(name)
        }}
    }}"""
    page.evaluate(files, [I2V.format("high"), T2V.format("low")])
    expect("WanSampler", "problem", [words["no pair"]])
    page.evaluate(files, [T2V.format("low"), T2V.format("high")])
    expect("WanSampler", "problem", [words["wrong way round"]])
    page.evaluate(BEFORE, ["WanSampler", "model", "WanLoraLoader", {"lora_1": "note_14B.safetensors"}])
    expect("WanLoraLoader", "problem", [words["LoRA"]])


def test_a_distilled_lora_offers_its_settings(words, editor, open_workflow, page, expect):
    open_workflow("wan21_text_to_video", steps=30, solver="unipc")
    read = f"""(names) => {{
        const {{ widgets }} = ({FIND})("WanSampler")
        return names.map((name) => widgets.find((widget) => widget.name === name).value)
    }}"""
    names = ["steps", "guidance", "shift", "solver"]
    before = page.evaluate(read, names)
    expect("WanSampler", "offer", [])
    page.evaluate(BEFORE, ["WanSampler", "model", "WanLoraLoader", {"lora_2": DISTILLED}])
    expect("WanSampler", "offer", [words["distilled"]])
    page.evaluate(f"() => {{ app.canvas.ds.scale = 1; app.canvas.centerOnNode(({FIND})('WanSampler')) }}")
    page.locator(".wan-offer button").click()
    expect("WanSampler", "offer", [])
    assert page.evaluate(read, names) == [4, 1, 5, "euler"]
    page.wait_for_function(RECORDED, arg='"euler"')
    editor.press("Control+z")
    expect("WanSampler", "offer", [words["distilled"]])
    assert page.evaluate(read, names) == before
    editor.set("preset", "auto")
    expect("WanSampler", "offer", [])
