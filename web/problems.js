// What a run would fail with at a node, asked of the server, whose own checks they are.

import { source, upstream, widgetValue } from "./graph.js"
import { chosenFile, fileOf, loaderOf, modelOfLatent, vaeOfLatent } from "./files.js"
import { ask } from "./server.js"
import { translate } from "./text.js"

const OTHER_TEXT_LOADERS = { // node class of the host -> the widget that says what it loads, where that can be umT5
    CLIPLoader: "type",
    DualCLIPLoader: null,
    TripleCLIPLoader: null,
    QuadrupleCLIPLoader: null,
}
const LORA_SLOTS = [1, 2, 3, 4]

const WIRES = { // node class -> what reaches a node, as lists of values for the server's check of it
    WanModelLoader: (node) => [{ file: fileOf(node) }],
    WanVAELoader: (node) => [{ file: fileOf(node) }],
    WanTextEncoderLoader: (node) => [{ file: fileOf(node) }],
    WanClipVisionLoader: (node) => [{ file: fileOf(node) }],
    WanSampler: (node) => [
        {
            model: fileOf(loaderOf(node, "model")),
            low_noise_model: fileOf(loaderOf(node, "low_noise_model")),
            vae: fileOf(vaeOfLatent(node, "latent")),
        },
    ],
    WanVAEDecode: decoder,
    WanVAEDecodeToVideo: decoder,
    WanVACE: (node) => [{ vae: fileOf(loaderOf(node, "vae")) }],
    WanConditioning: (node) => (source(node, "end_image") ? [{ vae: fileOf(loaderOf(node, "vae")) }] : []),
    WanLoraLoader: (node) =>
        LORA_SLOTS.filter((slot) => widgetValue(node, `strength_${slot}`) !== 0)
            .map((slot) => chosenFile(node, `lora_${slot}`))
            .filter(Boolean)
            .map((lora_name) => ({ model: fileOf(loaderOf(node, "model")), lora_name })),
    WanTextEncode(node) {
        const loader = upstream(node, "clip", (found) => found.comfyClass in OTHER_TEXT_LOADERS)
        if (!loader) return []
        const widget = OTHER_TEXT_LOADERS[loader.comfyClass]
        return [{ clip_type: widget ? widgetValue(loader, widget) : loader.comfyClass }]
    },
}
const ALL_NEEDED = ["WanVACE", "WanConditioning", "WanLoraLoader"]

/** The sentences that a run would fail with at `node`, in the editor's language. */
export async function problemsOf(node) {
    const wires = WIRES[node.comfyClass]?.(node) ?? []
    const answers = await Promise.all(wires.map((given) => check(node, given)))
    return answers.filter(Boolean).map(translate)
}

function decoder(node) {
    return [{ vae: fileOf(loaderOf(node, "vae")), model: fileOf(modelOfLatent(node, "samples")) }]
}

async function check(node, given) {
    const known = Object.entries(given).filter(([, value]) => value != null)
    const whole = known.length === Object.keys(given).length
    if (!known.length || (!whole && ALL_NEEDED.includes(node.comfyClass))) return null
    return (await ask("check", { node: node.comfyClass, ...Object.fromEntries(known) }))?.problem
}
