// The video that a node writes, played while it grows.

import { api } from "../../scripts/api.js"
import { nodeAt } from "./graph.js"
import { addPicture } from "./panel.js"
import { playerOf } from "./preview.js"
import { clockTime, say } from "./text.js"

const EVENT = "wan.video"

const screens = new WeakMap() // node -> its Screen

/** Plays what the server says of a file in the node that writes it. */
export function listen() {
    api.addEventListener(EVENT, ({ detail }) => {
        const node = nodeAt(detail.node)
        if (node) screenOf(node).show(detail)
    })
    api.addEventListener("executed", ({ detail }) => screens.get(nodeAt(detail.display_node ?? detail.node))?.leave())
}

/** The screen of `node`, made when it is first asked for and unseen until there is a video. */
export function screenOf(node) {
    if (!screens.has(node)) screens.set(node, new Screen(node))
    return screens.get(node)
}

class Screen {
    constructor(node) {
        this.sampling = playerOf(node) // shows the first block until the video begins
        this.video = document.createElement("video")
        Object.assign(this.video, { muted: true, controls: true, playsInline: true })
        this.video.addEventListener("playing", () => this.sampling.leave())
        this.panel = addPicture(node, "video", this.video)
        this.label = this.panel.label
    }

    /** Shows what is written of a video: `state` is what host/observe/growing.py says of it. */
    show({ filename, subfolder, type, seconds, total, finished, live }) {
        const written = clockTime(seconds)
        if (finished) this.label.textContent = say("saved", written, filename)
        else if (total === null) this.label.textContent = say("written", written)
        else this.label.textContent = say("written of", written, clockTime(total))
        this.panel.show(true)
        if (finished) this.play(`/view?${new URLSearchParams({ filename, subfolder, type, seconds })}`)
        else this.play(live)
        this.video.loop = finished
    }

    /** Plays what the server has at `path`: the response for a growing file goes on as the file does. */
    play(path) {
        if (this.path === path) return
        this.path = path
        this.video.src = api.apiURL(path)
        this.video.play().catch(() => {}) // of no concern where another path comes before it has begun
    }

    /** The editor shows the file itself once its node is through; a run that was stopped leaves it here. */
    leave() {
        this.path = null
        this.video.removeAttribute("src")
        this.video.load()
        this.panel.show(false)
    }
}
