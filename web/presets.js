// One click to the settings that the distilled files of a run were made for.

import { filesBefore } from "./files.js"
import { setWidgets, widgetValue } from "./graph.js"
import { ask } from "./server.js"
import { say, word } from "./text.js"

const NO_PRESET = "none"

/**
 * What the server suggests for `node`: a message and `settings` (widget -> value). Null where they are set already, and
 * where a preset is chosen, which counts more.
 */
export async function suggestionFor(node) {
    if ((widgetValue(node, "preset") ?? NO_PRESET) !== NO_PRESET) return null
    const names = filesBefore(node)
    if (!names.length) return null
    const found = await ask("preset", names.map((name) => ["name", name]))
    const differs = ([widget, value]) => widgetValue(node, widget) !== value
    return found?.settings && Object.entries(found.settings).some(differs) ? found : null
}

/** `suggestion` in words, with a button that follows it. */
export function offer(node, suggestion) {
    const element = document.createElement("div")
    element.className = "wan-offer"
    element.style.cssText = "border-left: 2px solid var(--p-primary-color, #60a5fa); padding-left: 4px"
    element.textContent = word(suggestion)
    const button = document.createElement("button")
    button.textContent = say("apply")
    button.style.cssText =
        "margin-left: 6px; padding: 0 6px; cursor: pointer; color: var(--input-text);" +
        " background: var(--comfy-input-bg); border: 1px solid var(--border-color); border-radius: 4px"
    button.addEventListener("click", () => setWidgets(node, suggestion.settings))
    element.append(button)
    return element
}
