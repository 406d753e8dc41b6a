// Usual sizes of a clip to choose from.

import { api } from "../../scripts/api.js"
import { clipKind } from "./facts.js"
import { setWidgets, source, widgetValue } from "./graph.js"
import { say } from "./text.js"

const PRESETS = [
    ["480p", 832, 480],
    ["480p portrait", 480, 832],
    ["480p square", 624, 624],
    ["720p", 1280, 720],
    ["720p portrait", 720, 1280],
    ["720p square", 960, 960],
]
const IMAGE_WIDGETS = { LoadImage: "image" } // node class -> the widget with the name of its picture
const IMAGE_AREAS = [["480p image", 832 * 480], ["720p image", 1280 * 720]]

/** A menu of sizes for `node`, which sets its widgets width and height. */
export class SizeMenu {
    constructor(node) {
        this.node = node
        this.element = document.createElement("select")
        this.element.style.cssText =
            "width: 100%; margin-bottom: 3px; background: var(--comfy-input-bg); color: var(--input-text); border: none"
        this.element.addEventListener("change", () => this.choose(this.element.value))
    }

    /** Fill the menu anew: for the connected model and start image, in the editor's language. */
    async update() {
        const { side_step: step } = await clipKind(this.node)
        const sizes = PRESETS.map(([name, ...sides]) => [name, ...sides.map((side) => Math.floor(side / step) * step)])
        const picture = await startImage(this.node)
        if (picture) {
            for (const [name, area] of IMAGE_AREAS) {
                const aspect = picture.naturalHeight / picture.naturalWidth
                const snap = (side) => Math.max(step, Math.round(side / step) * step)
                sizes.push([name, snap(Math.sqrt(area / aspect)), snap(Math.sqrt(area * aspect))])
            }
        }
        const options = sizes.map(
            ([name, width, height]) => new Option(say("preset", say(name), width, height), `${width} ${height}`),
        )
        this.element.replaceChildren(new Option(say("presets"), ""), ...options)
    }

    choose(size) {
        if (!size) return
        const [width, height] = size.split(" ").map(Number)
        setWidgets(this.node, { width, height })
        this.element.value = ""
    }
}

/** The picture of the loader that is connected to `start_image` of `node`, loaded, or null. */
async function startImage(node) {
    const loader = source(node, "start_image")?.node
    const widget = IMAGE_WIDGETS[loader?.comfyClass]
    const name = widget && widgetValue(loader, widget)
    if (!name) return null
    const [, path, type] = /^(.*?)(?: \[(\w+)\])?$/.exec(name)
    const [, subfolder, filename] = /^(?:(.*)\/)?([^/]*)$/.exec(path)
    const picture = new Image()
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "input" })}`)
    return picture.decode().then(() => picture, () => null)
}
