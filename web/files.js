// The model files that a graph names, and what the server says of them.

import { upstream, widgetValue } from "./graph.js"
import { ask } from "./server.js"

const LOADERS = { // node class -> [model folder, widget with the file's name, class of ours that takes such files]
    WanModelLoader: ["diffusion_models", "model_name", "WanModelLoader"],
    WanVAELoader: ["vae", "vae_name", "WanVAELoader"],
    WanTextEncoderLoader: ["text_encoders", "text_encoder_name", "WanTextEncoderLoader"],
    WanClipVisionLoader: ["clip_vision", "clip_vision_name", "WanClipVisionLoader"],
    UNETLoader: ["diffusion_models", "unet_name", "WanModelLoader"],
    VAELoader: ["vae", "vae_name", "WanVAELoader"],
}

/** The name of the file that the loader `node` loads; null for other nodes and for a file that is not there. */
export function fileOf(node) {
    const [, widget] = LOADERS[node?.comfyClass] ?? []
    return widget ? chosenFile(node, widget) : null
}

/** The file name that the widget `name` says; null where it is none and where the file is not there. */
export function chosenFile(node, name) {
    const value = widgetValue(node, name)
    const listed = node.widgets.find((widget) => widget.name === name)?.options.values
    return /\.\w+$/.test(value ?? "") && Array.isArray(listed) && listed.includes(value) ? value : null
}

/** The loader up the wire of the input `name` of `node`, or null. */
export function loaderOf(node, name) {
    return upstream(node, name, (found) => found.comfyClass in LOADERS)
}

/** The loader of the VAE that the latent in the input `name` of `node` is for, or null. */
export function vaeOfLatent(node, name) {
    const maker = makerOfLatent(node, name)
    return maker && loaderOf(maker, "vae")
}

/** The node that begins the latent in the input `name` of `node`: the first up the wire that has a VAE. */
export function makerOfLatent(node, name) {
    return upstream(node, name, (found) => found.inputs.some((input) => input.name === "vae"))
}

/** The loader of the model that sampled the latent in the input `name` of `node`, or null. */
export function modelOfLatent(node, name) {
    const sampler = upstream(node, name, (found) => found.inputs.some((input) => input.name === "model"))
    return sampler && loaderOf(sampler, "model")
}

/** What the server says of the file of the loader `node`; null where it is no part of Wan. */
export async function infoOf(node) {
    const name = fileOf(node)
    if (!name) return null
    const [folder, , taker] = LOADERS[node.comfyClass]
    const checked = await ask("check", { node: taker, file: name })
    return checked?.problem === null ? ask("info", { folder, name }) : null
}
