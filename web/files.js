// The model files that a graph names, and what the server says of them.

import { allUpstream, hasInput, upstream, widgetValue } from "./graph.js"
import { kindOf } from "./nodes.js"
import { ask } from "./server.js"

/** The name of the file that the loader `node` loads; null for other nodes and for a file that is not there. */
export function fileOf(node) {
    const { file } = kindOf(node)
    return file ? chosenFile(node, file) : null
}

/** The names of the LoRAs that `node` adds, those without strength left out. */
export function lorasOf(node) {
    return Object.entries(kindOf(node).loras)
        .filter(([, strength]) => widgetValue(node, strength) !== 0)
        .map(([widget]) => chosenFile(node, widget))
        .filter(Boolean)
}

/** The file name that the widget `name` says; null where it is none and where the file is not there. */
export function chosenFile(node, name) {
    const value = widgetValue(node, name)
    const listed = node.widgets.find((widget) => widget.name === name)?.options.values
    return /\.\w+$/.test(value ?? "") && Array.isArray(listed) && listed.includes(value) ? value : null
}

/** The loader up the wire of the input `name` of `node`, or null. */
export function loaderOf(node, name) {
    return upstream(node, name, (found) => kindOf(found).file)
}

/** The loader of the VAE that the latent in the input `name` of `node` is for, or null. */
export function vaeOfLatent(node, name) {
    const maker = makerOfLatent(node, name)
    return maker && loaderOf(maker, "vae")
}

/** The node that begins the latent in the input `name` of `node`: the first up the wire that has a VAE. */
export function makerOfLatent(node, name) {
    return upstream(node, name, (found) => hasInput(found, "vae"))
}

/** The loader of the model that sampled the latent in the input `name` of `node`, or null. */
export function modelOfLatent(node, name) {
    const sampler = upstream(node, name, (found) => hasInput(found, "model"))
    return sampler && loaderOf(sampler, "model")
}

/** The names of the models and LoRAs up the wires of the models of the sampler `node`. */
export function filesBefore(node) {
    const found = ["model", "low_noise_model"].flatMap((input) => allUpstream(node, input))
    const names = found.flatMap((loader) => [fileOf(loader), ...lorasOf(loader)])
    return [...new Set(names.filter(Boolean))]
}

/**
 * What the server says of the file of the loader `node`, with its `name`: by the time that the answer is there, the node
 * may have another one. Null where the file is no part of Wan.
 */
export async function infoOf(node) {
    const name = fileOf(node)
    if (!name) return null
    const checked = await ask("check", { node: node.comfyClass, file: name })
    if (checked?.problem !== null) return null
    const info = await ask("info", { folder: kindOf(node).folder, name })
    return info && { ...info, name }
}
