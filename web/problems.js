// What a run would fail with at a node, asked of the server, whose own checks they are.

import { fileOf, loaderOf, lorasOf, modelOfLatent, vaeOfLatent } from "./files.js"
import { hasInput, source, upstream, widgetValue } from "./graph.js"
import { kindOf } from "./nodes.js"
import { ask } from "./server.js"
import { word } from "./text.js"

const GIVEN = { // argument of a check -> what of it reaches a node; several values are checked one by one
    file: fileOf,
    model: (node) => fileOf(hasInput(node, "model") ? loaderOf(node, "model") : modelOfLatent(node, "samples")),
    low_noise_model: (node) => fileOf(loaderOf(node, "low_noise_model")),
    vae: (node) => fileOf(hasInput(node, "vae") ? loaderOf(node, "vae") : vaeOfLatent(node, "latent")),
    lora_name: lorasOf,
    end_image: (node) => source(node, "end_image") !== null,
    clip_type: clipType,
}

/** The sentences that a run would fail with at `node`, in the editor's language. */
export async function problemsOf(node) {
    const answers = await Promise.all(questions(node).map((given) => check(node, given)))
    return answers.filter((answer) => answer?.problem).map((answer) => word({ text: answer.problem, ...answer }))
}

/** Every combination of what reaches `node`, for the server's check of its class. */
function questions(node) {
    const names = Object.keys(kindOf(node).given)
    const combine = (all, name) => {
        const values = [GIVEN[name](node)].flat()
        return all.flatMap((given) => values.map((value) => ({ ...given, [name]: value })))
    }
    return names.length ? names.reduce(combine, [{}]) : []
}

/** What the host's loader of the CLIP of `node` was told that it is; null for other loaders. */
function clipType(node) {
    const loader = upstream(node, "clip", (found) => found.comfyClass?.endsWith("CLIPLoader"))
    return loader && (widgetValue(loader, "type") ?? loader.comfyClass)
}

/** The server's answer, or null where too little is known to ask. */
function check(node, given) {
    const known = Object.fromEntries(Object.entries(given).filter(([, value]) => value != null))
    const needed = Object.entries(kindOf(node).given).filter(([, always]) => always)
    const enough = Object.keys(known).length && needed.every(([name]) => name in known)
    return enough ? ask("check", { node: node.comfyClass, ...known }) : null
}
