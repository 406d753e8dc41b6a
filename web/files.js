// The model files that a graph names, and what the server says of them.

import { upstream, widgetValue } from "./graph.js"
import { ask } from "./server.js"

const LOADERS = { // node class -> [model folder, widget with the file's name]
    WanModelLoader: ["diffusion_models", "model_name"],
    WanVAELoader: ["vae", "vae_name"],
    WanTextEncoderLoader: ["text_encoders", "text_encoder_name"],
    WanClipVisionLoader: ["clip_vision", "clip_vision_name"],
    UNETLoader: ["diffusion_models", "unet_name"],
    VAELoader: ["vae", "vae_name"],
}

/** The name of the file that the loader `node` loads; null for other nodes and for a file that is not there. */
export function fileOf(node) {
    const [, widget] = LOADERS[node?.comfyClass] ?? []
    const name = widget && widgetValue(node, widget)
    const listed = node?.widgets?.find((found) => found.name === widget)?.options.values
    return /\.\w+$/.test(name ?? "") && Array.isArray(listed) && listed.includes(name) ? name : null
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

/** What the server says of the file of the loader `node`, or null. */
export async function infoOf(node) {
    const name = fileOf(node)
    return name && ask("info", { folder: LOADERS[node.comfyClass][0], name })
}
