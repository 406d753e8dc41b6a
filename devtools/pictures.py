"""Takes the pictures of templates and help pages from the editor itself.

    python -m devtools.pictures --comfyui PATH [NAME ...]

with the Python of an environment of `dev.py test`. A NAME is a file of workflows/, whose picture lies beside it, or a
node, whose picture is the small graph of its help page; without one, all that this host can open are taken. The demo
family's workflows are run before their pictures are taken. The NAME "film" takes the film of a run for the README.
"""

import io
import json
import logging
import time
from pathlib import Path

from PIL import Image

from tiny import examples, layouts, random_weights

from . import layout
from .demo import DEMO_WORKFLOW, WORKFLOWS
from .editor import RUN_BUTTON, Editor
from .environment import ROOT

HELP = ROOT / "web" / "docs" / "pictures"
SIZE = {"width": 1600, "height": 1100}  # of the window, in pixels
FILM = HELP / "run.webp"
FILM_NAME = "film"  # on the command line
FILM_WIDTH = 960  # pixels
AFTER = 3  # seconds that the saved video is filmed
OF_THE_FAMILY = "Try it"  # begins the names of the demo family's workflows
MARGIN = 24  # around a graph, in pixels
BARS = (130, 70)  # what the editor's own bars cover at the top and at the bottom, in pixels
TOAST = 8000  # milliseconds until the editor's word of a finished run is gone
SETTLING = 4000  # milliseconds in which pictures and notes arrive in the nodes and change their sizes

PROMPTS = ("WanTextEncode.positive WanSampler.positive", "WanTextEncode.negative WanSampler.negative")
SAVED = ("WanSampler.LATENT WanVAEDecodeToVideo.samples", "WanVAEDecodeToVideo.VIDEO SaveVideo.video")
GRAPHS = {  # the links of the small graph around each node
    "WanModelLoader": ("WanModelLoader.MODEL WanLoraLoader.model", "WanLoraLoader.MODEL WanSampler.model"),
    "WanLoraLoader": ("WanModelLoader.MODEL WanLoraLoader.model", "WanLoraLoader.MODEL WanSampler.model"),
    "WanVAELoader": ("WanVAELoader.VAE WanEmptyLatent.vae", "WanVAELoader.VAE WanVAEDecodeToVideo.vae"),
    "WanTextEncoderLoader": ("WanTextEncoderLoader.CLIP WanTextEncode.clip",),
    "WanTextEncode": ("WanTextEncoderLoader.CLIP WanTextEncode.clip", *PROMPTS),
    "WanClipVisionLoader": ("WanClipVisionLoader.CLIP_VISION WanClipVision.clip_vision",),
    "WanClipVision": (
        "WanClipVisionLoader.CLIP_VISION WanClipVision.clip_vision",
        "LoadImage.IMAGE WanClipVision.start_image",
        "LoadImage.IMAGE WanConditioning.start_image",
        "WanClipVision.CLIP_VISION_OUTPUT WanConditioning.clip_vision_output",
    ),
    "WanConditioning": (
        "WanTextEncode.positive WanConditioning.positive",
        "WanTextEncode.negative WanConditioning.negative",
        "WanVAELoader.VAE WanConditioning.vae",
        "LoadImage.IMAGE WanConditioning.start_image",
        "WanConditioning.positive WanSampler.positive",
        "WanConditioning.negative WanSampler.negative",
        "WanConditioning.latent WanSampler.latent",
    ),
    "WanVACE": (
        "WanTextEncode.positive WanVACE.positive",
        "WanTextEncode.negative WanVACE.negative",
        "WanVAELoader.VAE WanVACE.vae",
        "LoadImage.IMAGE WanVACE.reference_image",
        "WanVACE.positive WanSampler.positive",
        "WanVACE.negative WanSampler.negative",
        "WanVACE.latent WanSampler.latent",
    ),
    "WanContinue": (
        "WanTextEncode.positive WanContinue.positive",
        "WanTextEncode.negative WanContinue.negative",
        "WanVAEEncode.LATENT WanContinue.previous",
        "WanContinue.positive WanSampler.positive",
        "WanContinue.negative WanSampler.negative",
        "WanContinue.latent WanSampler.latent",
    ),
    "WanEmptyLatent": ("WanVAELoader.VAE WanEmptyLatent.vae", "WanEmptyLatent.LATENT WanSampler.latent"),
    "WanStepCache": ("WanModelLoader.MODEL WanStepCache.model", "WanStepCache.MODEL WanSampler.model"),
    "WanGuidance": ("WanModelLoader.MODEL WanGuidance.model", "WanGuidance.MODEL WanSampler.model"),
    "WanParallel": ("WanModelLoader.MODEL WanParallel.model", "WanParallel.MODEL WanSampler.model"),
    "WanParallelVAE": (
        "WanVAELoader.VAE WanParallelVAE.vae",
        "WanParallelVAE.VAE WanVAEDecodeToVideo.vae",
        "WanVAEDecodeToVideo.VIDEO SaveVideo.video",
    ),
    "WanSampler": (
        "WanModelLoader.MODEL WanSampler.model",
        *PROMPTS,
        "WanEmptyLatent.LATENT WanSampler.latent",
        "WanSampler.LATENT WanVAEDecodeToVideo.samples",
    ),
    "WanStream": (
        "WanModelLoader.MODEL WanStream.model",
        "WanTextEncoderLoader.CLIP WanStream.clip",
        "WanVAELoader.VAE WanStream.vae",
    ),
    "WanVAEEncode": (
        "LoadVideo.VIDEO WanVAEEncode.images",
        "WanVAELoader.VAE WanVAEEncode.vae",
        "WanVAEEncode.LATENT WanSampler.latent",
    ),
    "WanVAEDecode": (
        "WanVAELoader.VAE WanVAEDecode.vae",
        "WanSampler.LATENT WanVAEDecode.samples",
        "WanVAEDecode.IMAGE SaveImage.images",
    ),
    "WanVAEDecodeToVideo": ("WanVAELoader.VAE WanVAEDecodeToVideo.vae", *SAVED),
    "WanVAEDecodePart": (
        "WanVAELoader.VAE WanVAEDecodePart.vae",
        "WanSampler.LATENT WanVAEDecodePart.samples",
        "WanVAEDecodePart.VIDEO SaveVideo.video",
    ),
    # the last one: the editor would give its "file" to the LoadVideo that follows it under the same number
    "WanModelInfo": ("WanModelInfo.text PreviewAny.source",),
}
VALUES = (  # of widgets in the small graphs: node, widget, value
    ("WanModelLoader", "model_name", "wan2.1_t2v_1.3B_fp16.safetensors"),
    ("WanVAELoader", "vae_name", "wan_2.1_vae.safetensors"),
    ("LoadImage", "image", examples.FILES[0]),
    ("LoadVideo", "file", examples.FILES[-1]),
)
OF_ONE = {  # values of one small graph alone
    "WanStream": (("WanModelLoader", "model_name", "causal_forcing-framewise.safetensors"),),
}
BUILD = """([links, values]) => {
    app.graph.clear()
    app.nodeOutputs = {}  // their keys are the numbers of nodes, which begin anew
    const nodes = {}, column = {}
    const place = (type) => {
        if (nodes[type]) return
        nodes[type] = LiteGraph.createNode(type)
        column[type] = 0
        for (const [node, name, value] of values)
            if (node === type) nodes[type].widgets.find((widget) => widget.name === name).value = value
        app.graph.add(nodes[type])
    }
    for (const link of links) {
        const [[from, output], [to, input]] = link.split(" ").map((end) => end.split("."))
        place(from)
        place(to)
        column[to] = Math.max(column[to], column[from] + 1)
        nodes[from].connect(nodes[from].findOutputSlot(output), nodes[to], nodes[to].findInputSlot(input))
    }
    for (const type in nodes) nodes[type].pos = [1000 * column[type], 0]
}"""
ARRANGE = """() => {
    const columns = Object.groupBy(app.graph._nodes, (node) => node.pos[0])
    let x = 0
    for (const at of Object.keys(columns).sort((a, b) => a - b)) {
        let y = 0
        for (const node of columns[at]) {
            const [width, height] = node.computeSize()
            node.setSize([Math.max(width, 280), height])
            node.pos = [x, y]
            y += height + 70
        }
        x += Math.max(...columns[at].map((node) => node.size[0])) + 80
    }
}"""
PLAYS = "[...document.querySelectorAll('video')].some((video) => video.readyState > 1)"
FIT = """async ([margin, [above, below]]) => {
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const bounds = app.graph._nodes.map(({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title])
    const left = Math.min(...bounds.map((b) => b[0])), top = Math.min(...bounds.map((b) => b[1]))
    const right = Math.max(...bounds.map((b) => b[0] + b[2])), bottom = Math.max(...bounds.map((b) => b[1] + b[3]))
    const area = app.canvas.canvas.getBoundingClientRect()
    const scale = Math.min((area.width - 160) / (right - left), (area.height - above - below - 60) / (bottom - top), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [
        (area.width / scale - right - left) / 2,
        ((area.height + above - below) / scale - bottom - top) / 2,
    ]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
    await new Promise((done) => setTimeout(done, 300))
    const [dx, dy] = app.canvas.ds.offset
    return {
        x: area.left + (left + dx) * scale - margin,
        y: area.top + (top + dy) * scale - margin,
        width: (right - left) * scale + 2 * margin,
        height: (bottom - top) * scale + 2 * margin,
    }
}"""


def place_models(models: Path) -> None:
    """The files that the workflows load, as the editor sees them: whole headers, and weights that take no space."""
    for tiny in random_weights.FILES:
        (models / tiny.folder).mkdir(exist_ok=True)
        for name in tiny.stands_in_for:
            kind, width = ("F8_E4M3", 1) if "fp8" in name else ("F16", 2)
            layouts.write_hollow(models / tiny.folder / name, layouts.full(tiny.layout), kind, width, tiny.metadata)


def photograph(editor: Editor, name: str) -> Path:
    """Take the picture of the template or node `name`; return its path."""
    if name in GRAPHS:
        editor.page.evaluate(BUILD, [GRAPHS[name], VALUES + OF_ONE.get(name, ())])
        editor.page.evaluate(FIT, [MARGIN, BARS])  # notes have no height out of sight
        editor.page.wait_for_timeout(SETTLING)
        editor.page.evaluate(ARRANGE)
        path = HELP / f"{name}.jpg"
    else:
        editor.open(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
        if name.startswith(OF_THE_FAMILY):
            editor.run()
            editor.page.wait_for_timeout(TOAST)
        path = WORKFLOWS / f"{name}.jpg"
    editor.page.wait_for_timeout(SETTLING)
    clip = editor.page.evaluate(FIT, [MARGIN, BARS])
    editor.page.screenshot(path=path, type="jpeg", quality=80, clip=clip)
    return path


def film(editor: Editor) -> Path:
    """Film a run of the demo family from Run until its video plays; return the path of the film."""
    editor.open(json.loads((WORKFLOWS / f"{DEMO_WORKFLOW}.json").read_text(encoding="utf-8")))
    editor.page.wait_for_timeout(SETTLING)
    clip = editor.page.evaluate(FIT, [MARGIN, BARS])
    pictures, ends, stop = [], [], None
    editor.page.locator(RUN_BUTTON).first.click()
    while stop is None or time.monotonic() < stop:
        shot = editor.page.screenshot(type="jpeg", quality=95, clip=clip)
        picture = Image.open(io.BytesIO(shot))
        pictures.append(picture.resize((FILM_WIDTH, round(picture.height * FILM_WIDTH / picture.width))))
        ends.append(time.monotonic())
        if stop is None and editor.page.evaluate(PLAYS):
            stop = time.monotonic() + AFTER
    lasting = [round(1000 * (end - start)) for start, end in zip(ends, [*ends[1:], ends[-1] + 1], strict=True)]
    pictures[0].save(FILM, save_all=True, append_images=pictures[1:], duration=lasting, loop=0, quality=60)
    return FILM


def main() -> None:
    """Take every picture, or those named on the command line."""
    options = layout.parse()
    HELP.mkdir(parents=True, exist_ok=True)
    with layout.opened(options.comfyui, place_models, SIZE) as editor:
        editor.go({"LiteGraph.Canvas.MinFontSizeForLOD": 0})  # texts however small
        templates = layout.openable(editor, sorted(path.stem for path in WORKFLOWS.glob("*.json")))
        for name in options.names or [*templates, *GRAPHS]:
            logging.info("%s", film(editor) if name == FILM_NAME else photograph(editor, name))


if __name__ == "__main__":
    main()
