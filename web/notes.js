// The note under the widgets of each Wan node: what it works on, and what is wrong with that.

import { factsOf } from "./facts.js"
import { allNodes } from "./graph.js"
import { kindOf } from "./nodes.js"
import { addPanel } from "./panel.js"
import { offer, suggestionFor } from "./presets.js"
import { problemsOf } from "./problems.js"
import { SizeMenu } from "./sizes.js"

const PAUSE = 100 // milliseconds that changes are gathered for

const notes = new WeakMap() // node -> its Note
let timer

/** Gives `node` its note, where it is one that has one, and keeps it up to date. */
export function attach(node) {
    if (kindOf(node).note === null) return
    notes.set(node, new Note(node))
    for (const widget of node.widgets) {
        const { callback } = widget
        widget.callback = function () {
            const result = callback?.apply(this, arguments)
            updateSoon()
            return result
        }
    }
    const { onConnectionsChange } = node
    node.onConnectionsChange = function () {
        onConnectionsChange?.apply(this, arguments)
        updateSoon()
    }
    updateSoon()
}

/** Brings every note up to date, once for all changes of a moment: what one node is set to concerns others. */
export function updateSoon() {
    clearTimeout(timer)
    timer = setTimeout(() => {
        for (const node of allNodes()) notes.get(node)?.update()
    }, PAUSE)
}

class Note {
    constructor(node) {
        this.node = node
        this.text = document.createElement("div")
        const element = document.createElement("div")
        element.style.cssText = "font-size: 11px; line-height: 1.4; color: var(--input-text); overflow-wrap: anywhere"
        if (["clip", "video"].includes(kindOf(node).note)) {
            this.menu = new SizeMenu(node)
            element.append(this.menu.element)
        }
        element.append(this.text)
        this.panel = addPanel(node, "note", element)
        this.turn = 0
    }

    async update() {
        const turn = ++this.turn
        const suggestion = kindOf(this.node).note === "run" ? suggestionFor(this.node) : null
        const asked = [factsOf(this.node), problemsOf(this.node), suggestion, this.menu?.update()]
        const [facts, problems, suggested] = await Promise.all(asked)
        if (turn !== this.turn) return // the graph has changed since
        const lines = [...facts.map(factLine), ...problems.map(problemLine)]
        if (suggested) lines.push(offer(this.node, suggested))
        this.text.replaceChildren(...lines)
        this.panel.show(Boolean(this.menu || lines.length))
    }
}

function line(kind, text) {
    const element = document.createElement("div")
    element.className = `wan-${kind}`
    element.textContent = text
    return element
}

function factLine(fact) {
    const element = line("fact", fact.text ?? fact)
    if (fact.picture) element.append(fact.picture)
    return element
}

function problemLine(text) {
    const element = line("problem", text)
    element.style.cssText = "color: var(--error-text); border-left: 2px solid var(--error-text); padding-left: 4px"
    return element
}
