// The pack in the editor. Every widget of it is a DOM element, so that both of the editor's node renderers show it.

import { app } from "../../scripts/app.js"
import * as preview from "./preview.js"

app.registerExtension({
    name: "wan.editor",
    nodeCreated(node) {
        if (node.comfyClass === "WanSampler") preview.playerOf(node)
    },
    setup() {
        preview.listen()
    },
})
