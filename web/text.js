// Every word that the extension shows, by language. `{0}` and the like are filled in.

import { app } from "../../scripts/app.js"

const WORDS = {
    en: {
        step: "Step {0} of {1}",
        pace: "{0} s a step",
        left: "{0} left",
    },
    zh: {
        step: "第 {0} 步，共 {1} 步",
        pace: "每步 {0} 秒",
        left: "剩余 {0}",
    },
}

/** The language of the editor, as far as there are words in it. */
export function language() {
    const locale = app.extensionManager.setting.get("Comfy.Locale") ?? "en"
    return locale.split("-")[0] in WORDS ? locale.split("-")[0] : "en"
}

/** The words under `key` in the editor's language, with `values` in their places. */
export function say(key, ...values) {
    return fill(WORDS[language()][key], values)
}

/** `template` with each {n} replaced by values[n]. */
export function fill(template, values) {
    return template.replace(/\{(\d+)\}/g, (_, index) => values[index])
}
