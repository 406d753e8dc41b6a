// The pack in the editor. Every widget of it is a DOM element, so that both of the editor's node renderers show it.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import * as dropped from "./dropped.js"
import { kindOf } from "./nodes.js"
import * as notes from "./notes.js"
import * as preview from "./preview.js"
import * as reports from "./reports.js"
import * as server from "./server.js"
import * as video from "./video.js"

app.registerExtension({
    name: "wanstream.editor",
    setup() {
        dropped.listen()
        preview.listen()
        video.listen()
        reports.listen(notes.updateSoon)
        api.addEventListener("graphChanged", notes.updateSoon)
        api.addEventListener("execution_success", askAnew)
        app.ui.settings.addEventListener("Comfy.Locale.change", notes.updateSoon)
    },
    nodeCreated(node) {
        notes.attach(node)
        if (kindOf(node).note === "run") preview.playerOf(node)
        if (kindOf(node).note === "video") video.screenOf(node)
    },
    afterConfigureGraph: notes.updateSoon,
    refreshComboInNodes: askAnew,
})

function askAnew() {
    server.forget()
    notes.updateSoon()
}
