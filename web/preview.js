// The clip while it is sampled: all its latent frames, played in the node that samples it.

import { api } from "../../scripts/api.js"
import { nodeAt } from "./graph.js"
import { addPicture } from "./panel.js"
import { clockTime, say } from "./text.js"

const EVENT = "wan.preview"

const players = new WeakMap() // node -> its Player

/** Plays what the server says of a run in the node that it is about. */
export function listen() {
    api.addEventListener(EVENT, ({ detail }) => {
        const node = nodeAt(detail.node)
        if (node) playerOf(node).show(detail)
    })
}

/** The player of `node`, made when it is first asked for and unseen until it has something to show. */
export function playerOf(node) {
    if (!players.has(node)) players.set(node, new Player(node))
    return players.get(node)
}

class Player {
    constructor(node) {
        this.node = node
        this.canvas = document.createElement("canvas")
        this.panel = addPicture(node, "preview", this.canvas)
        this.label = this.panel.label
    }

    /** Shows the state of a run and gets its picture, unless an older one is still on its way. */
    show(state) {
        const parts = [say("step", state.step, state.steps), say("pace", round(state.seconds_per_step))]
        if (state.step < state.steps) parts.push(say("left", clockTime(state.seconds_left)))
        this.label.textContent = parts.join(" · ")
        this.newest = state
        if (state.prompt_id === this.left) return
        this.panel.show(true)
        if (!this.fetching) this.fetch()
    }

    /** Shows no more of this run. */
    leave() {
        this.left = this.newest?.prompt_id
        this.panel.show(false)
    }

    async fetch() {
        this.fetching = true
        let state
        while (state !== this.newest) {
            state = this.newest
            const reply = await api.fetchApi(state.picture).catch(() => null)
            if (reply?.status === 200) this.play(await createImageBitmap(await reply.blob()), state)
        }
        this.fetching = false
    }

    /** Plays a sheet of `frames` pictures below one another, `fps` a second, from where the last one was. */
    play(sheet, { frames, fps }) {
        this.sheet?.close()
        this.sheet = sheet
        this.frames = frames
        this.canvas.width = sheet.width
        this.canvas.height = sheet.height / frames
        this.draw()
        clearInterval(this.clock)
        this.clock = setInterval(() => this.draw(), 1000 / fps)
    }

    draw() {
        if (!this.node.graph) clearInterval(this.clock)
        if (!this.canvas.isConnected) return // out of sight
        this.index = ((this.index ?? -1) + 1) % this.frames
        const { width, height } = this.canvas
        this.canvas.getContext("2d").drawImage(this.sheet, 0, this.index * height, width, height, 0, 0, width, height)
    }
}

function round(seconds) {
    return seconds.toFixed(seconds < 10 ? 2 : 1)
}
