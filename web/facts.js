// What a node tells of its file, its clip or its run.

import { chosenFile, filesBefore, infoOf, loaderOf, makerOfLatent } from "./files.js"
import { source, upstream, widgetValue } from "./graph.js"
import { kindOf } from "./nodes.js"
import { bar, schedule } from "./pictures.js"
import { reportFacts } from "./reports.js"
import { ask } from "./server.js"
import { clockTime, say } from "./text.js"

const GIB = 2 ** 30
const STRIDE = 4 // frames of a latent frame
const SCHEDULE = ["steps", "shift", "solver", "denoise", "preset", "boundary", "start_step", "end_step"] // of the sampler
const USUAL = { side_step: 16, frame_rate: 16 } // of clips whose VAE is not known: Wan 2.1's

const FACTS = { file: fileFacts, clip: clipFacts, video: clipFacts, run: runFacts }

/** Lines about `node` in the editor's language: a text, or { text, picture } with an element to show below it. */
export async function factsOf(node) {
    const facts = (await FACTS[kindOf(node).note]?.(node)) ?? []
    return [...facts, ...reportFacts(node)]
}

/** `side_step` and `frame_rate` of the clips of the model whose VAE is connected to `node`. */
export async function clipKind(node) {
    const info = await infoOf(loaderOf(node, "vae"))
    return info?.frame_rate ? info : USUAL
}

async function fileFacts(node) {
    const info = await infoOf(node)
    if (!info) return []
    const size = gib(info.bytes)
    if (!info.size) {
        const lines = [say("part", info.variant, info.precision, size)]
        return info.frame_rate ? [...lines, say("clip", info.frame_rate, info.side_step)] : lines
    }
    const needs = [info.text_encoder, info.clip_vision].filter(Boolean).join(", ")
    return [say("dit", info.variant, info.size, info.precision, size), say("needs", info.vae, needs)]
}

async function clipFacts(node) {
    const { side_step: step, frame_rate: fps } = await clipKind(node)
    const [width, height, length] = ["width", "height", "length"].map((name) => widgetValue(node, name))
    const lines = []
    if (width && height) {
        const sides = [width, height].map((side) => Math.floor(side / step) * step)
        const whole = sides[0] === width && sides[1] === height
        lines.push(whole ? say("size", ...sides) : say("snapped", ...sides, step))
    }
    if (length) {
        const latents = Math.floor((length - 1) / STRIDE) + 1
        const frames = (latents - 1) * STRIDE + 1
        lines.push(say("length", frames, latents, (frames / fps).toFixed(2), fps))
    }
    return lines
}

async function runFacts(node) {
    const [noise, memory] = await Promise.all([noiseFacts(node), memoryFacts(node)])
    return [...noise, ...memory]
}

async function noiseFacts(node) {
    if (source(node, "sigmas")) return [] // another node's
    const given = { names: filesBefore(node).join("\n") }
    for (const name of SCHEDULE) given[name] = widgetValue(node, name)
    const models = [loaderOf(node, "model"), loaderOf(node, "low_noise_model")]
    const known = await Promise.all(models.map(infoOf))
    if (known.every(Boolean)) [given.model, given.low_noise_model] = known.map((info) => info.name)
    const found = Object.values(given).includes(undefined) ? null : await ask("noise", given)
    if (!found) return []
    const { sigmas, switch: change } = found
    const ends = [sigmas[0], sigmas.at(-1)].map((sigma) => sigma.toFixed(2))
    const facts = [{ text: say("noise", sigmas.length - 1, ...ends), picture: schedule(sigmas, change) }]
    if (change !== null) facts.push(say("change", change, sigmas.length - 1 - change))
    return facts
}

async function memoryFacts(node) {
    const found = await estimate(node)
    if (!found) return []
    const { peak, free, ram, ram_free: ramFree } = found
    const lines = [{ text: say("memory", found.device.split(" : ")[0], gib(peak), gib(free)), picture: bar(peak / free) }]
    if (found.decoding?.tiles > 1) lines.push(say("tiles", found.decoding.tiles))
    if (found.offloaded) lines.push(say("offloaded", gib(found.offloaded)))
    if (free !== ramFree) lines.push({ text: say("ram", gib(ram), gib(ramFree)), picture: bar(ram / ramFree) })
    if (found.seconds != null) lines.push(say("time", clockTime(found.seconds)))
    if (!found.fits) lines.push(say("tight"))
    return lines
}

async function estimate(node) {
    const [loader, low] = [loaderOf(node, "model"), loaderOf(node, "low_noise_model")]
    const maker = makerOfLatent(node, "latent")
    const model = kindOf(loader).note === "file" && maker ? await infoOf(loader) : null
    if (!model) return null
    const given = { model: model.name, weight_dtype: widgetValue(loader, "weight_dtype") }
    const second = await infoOf(low)
    if (second) given.low_noise_model = second.name
    if (chosenFile(loader, "vace_name")) given.vace_name = chosenFile(loader, "vace_name")
    if (widgetValue(loader, "causal")) given.causal = widgetValue(loader, "causal")
    const vae = await infoOf(loaderOf(maker, "vae"))
    if (vae?.channels === model.channels) given.vae = vae.name
    for (const name of ["width", "height", "length", "batch_size"]) given[name] = widgetValue(maker, name)
    for (const name of ["steps", "guidance", "preset"]) given[name] = widgetValue(node, name)
    const parallel = upstream(node, "model", (found) => found.comfyClass === "WanParallel")
    if (parallel) for (const name of ["devices", "weights"]) given[name] = widgetValue(parallel, name)
    given.names = filesBefore(node).join("\n")
    return Object.values(given).includes(undefined) ? null : ask("estimate", given)
}

function gib(bytes) {
    const size = bytes / GIB
    return size.toFixed(size < 1 ? 2 : 1)
}
