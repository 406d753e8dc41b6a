// A model file that is dropped onto the canvas: what it holds and where it belongs. The editor itself looks only for a
// workflow in it.

import { app } from "../../scripts/app.js"
import { send } from "./server.js"
import { word } from "./text.js"

const MODEL = /\.(safetensors|sft)$/i
const START = 8 // bytes before the header: its length
const LONGEST = 16 * 2 ** 20 // bytes of a header that the server reads
const LIFE = 20_000 // milliseconds that the answer stays

/** Answers for each model file that is dropped. */
export function listen() {
    app.canvas.canvas.addEventListener("drop", ({ dataTransfer }) => {
        for (const file of dataTransfer.files) if (MODEL.test(file.name)) explain(file)
    })
}

async function explain(file) {
    const start = await file.slice(0, START).arrayBuffer()
    const length = start.byteLength < START ? 0 : Number(new DataView(start).getBigUint64(0, true))
    if (!length || length > LONGEST) return
    const found = await send("header", { name: file.name, size: file.size }, file.slice(START, START + length))
    if (found) app.extensionManager.toast.add({ severity: "info", summary: "Wan Stream", detail: word(found), life: LIFE })
}
