// What the server says of node classes: `Node` in host/editor/preflight.py.

import { ask } from "./server.js"

const NODES = (await ask("nodes", {})) ?? {}
const OTHER = { note: null, given: {}, folder: null, file: null, loras: {} }

/** What is known of the class of `node`, which may be null. */
export function kindOf(node) {
    return NODES[node?.comfyClass] ?? OTHER
}
