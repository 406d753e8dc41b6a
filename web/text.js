// Every word that the extension shows, in the editor's language: `wanStream` in locales/*/main.json. Messages of the
// server come in English, with the code under which other languages word them.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const reply = await api.fetchApi("/i18n")
const LOCALES = await reply.json()

/** The words under `key`, with `values` in the places {0}, {1} and so on. */
export function say(key, ...values) {
    return fill(locale().words[key], values)
}

/** A message of the server: the language's wording of its `code`, else its English `text`. */
export function word({ text, code, values }) {
    const wording = locale().messages?.[code]
    if (!wording) return text
    const inner = Object.entries(values).map(([name, value]) => [name, value?.code ? word(value) : value])
    return fill(wording, Object.fromEntries(inner))
}

/** Seconds as people read them: 3725 -> "1:02:05". */
export function clockTime(seconds) {
    const whole = Math.round(seconds)
    const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"))
    const hours = Math.floor(whole / 3600)
    return hours ? `${hours}:${parts.join(":")}` : parts.join(":").replace(/^0/, "")
}

/** What the pack says in the editor's language; in English where it does not speak it. */
function locale() {
    const chosen = app.extensionManager.setting.get("Comfy.Locale") ?? "en"
    return LOCALES[chosen.split("-")[0]]?.wanStream ?? LOCALES.en.wanStream
}

function fill(template, values) {
    return template.replace(/\{(\w+)\}/g, (_, name) => values[name])
}
