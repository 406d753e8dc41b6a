// What nodes found while they ran: LoRA keys that matched, steps that were skipped.

import { api } from "../../scripts/api.js"
import { nodeAt } from "./graph.js"
import { bar, strip } from "./pictures.js"
import { say } from "./text.js"

const EVENT = "wan.report"

const reports = new WeakMap() // node -> what it found last

/** Keeps what the server says that a node found, and calls `changed` after each. */
export function listen(changed) {
    api.addEventListener(EVENT, ({ detail }) => {
        const node = nodeAt(detail.node)
        if (!node) return
        reports.set(node, detail)
        changed()
    })
}

/** Facts of the last run of `node`. */
export function reportFacts(node) {
    const { loras = [], steps = [] } = reports.get(node) ?? {}
    const facts = loras.map(({ name, matched, keys }) => ({
        text: say("keys", name, matched, keys),
        picture: bar(matched / keys),
    }))
    const own = steps.filter((kind) => kind !== "other").length
    const skipped = steps.filter((kind) => kind === "skipped").length
    if (own) facts.push({ text: say("skipped", skipped, own), picture: strip(steps) })
    return facts
}
