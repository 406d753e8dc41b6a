// Reading the graph: nodes by the ids that the server knows, and what feeds an input.

import { app } from "../../scripts/app.js"

const SUBGRAPH_INPUTS = -10 // origin of the links from a subgraph's own inputs; newer editors have ids in text
const BYPASSED = 4

/** The outermost graph. */
export function root() {
    return app.rootGraph ?? app.graph
}

/** The node that the server calls `id`: "12:7" is node 7 of the subgraph in node 12. */
export function nodeAt(id) {
    let graph = root()
    let node
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(part)
        graph = node?.subgraph
    }
    return node
}

/** Every node of every graph once, those of a subgraph also where several nodes show it. */
export function allNodes(graph = root(), seen = new Set()) {
    if (!graph || seen.has(graph)) return []
    seen.add(graph)
    return graph.nodes.flatMap((node) => [node, ...allNodes(node.subgraph, seen)])
}

/** Whether `node` has an input `name`, connected or not. */
export function hasInput(node, name) {
    return node.inputs?.some((input) => input.name === name) ?? false
}

/** {node, slot} whose output feeds the input `name`, seen through reroutes, bypassed nodes and subgraphs, or null. */
export function source(node, name) {
    const input = node.inputs?.find((input) => input.name === name)
    return input?.link == null ? null : origin(node.graph, input.link)
}

/** The first node up the wire of the input `name` that is `wanted`, or null. */
export function upstream(node, name, wanted) {
    return allUpstream(node, name).find(wanted) ?? null
}

/** The nodes up the wire of the input `name`, each passed by its input of that type. */
export function allUpstream(node, name) {
    const found = []
    for (let fed = source(node, name); fed && found.length < 100; ) {
        found.push(fed.node)
        const through = fed.node.inputs?.find((input) => input.type === fed.node.outputs[fed.slot].type)
        fed = through ? source(fed.node, through.name) : null
    }
    return found
}

/** What the widget `name` says, be it set on the node, on the subgraph around it, or by a primitive node. */
export function widgetValue(node, name) {
    const input = node.inputs?.find((input) => input.widget && input.name === name)
    if (input?.link != null) {
        const link = node.graph.getLink(input.link)
        if (link && fromOutside(link)) {
            const { holder, input: outer } = outside(node.graph, link.origin_slot)
            return holder && widgetValue(holder, outer.name)
        }
        const fed = origin(node.graph, input.link)
        return fed?.node.type === "PrimitiveNode" ? fed.node.widgets?.[0]?.value : undefined
    }
    return node.widgets?.find((widget) => widget.name === name)?.value
}

/** Sets widgets of `node` ({name: value}) as a hand would, in one change that can be undone. */
export function setWidgets(node, values) {
    app.canvas.emitBeforeChange()
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find((found) => found.name === name)
        widget.value = value
        widget.callback?.(value)
    }
    app.canvas.emitAfterChange()
    node.graph.setDirtyCanvas(true, true)
}

function origin(graph, id) {
    const link = graph.getLink(id)
    if (!link) return null
    if (fromOutside(link)) {
        const { holder, input } = outside(graph, link.origin_slot)
        return input?.link == null ? null : origin(holder.graph, input.link)
    }
    const node = graph.getNodeById(link.origin_id)
    const output = node?.outputs[link.origin_slot]
    if (!output) return null
    if (node.subgraph) {
        const inner = node.subgraph.outputs[link.origin_slot]?.linkIds[0]
        return inner == null ? null : origin(node.subgraph, inner)
    }
    if (node.type !== "Reroute" && node.mode !== BYPASSED) return { node, slot: link.origin_slot }
    const through = node.type === "Reroute" ? node.inputs[0] : node.inputs.find((input) => input.type === output.type)
    return through?.link == null ? null : origin(graph, through.link)
}

function fromOutside(link) {
    return Number(link.origin_id) === SUBGRAPH_INPUTS
}

/** The first node that shows the subgraph `graph`, and its input that feeds the subgraph's input `slot`. */
function outside(graph, slot) {
    const holder = allNodes().find((node) => node.subgraph === graph)
    return { holder, input: holder?.inputs.find((input) => input.name === graph.inputs[slot]?.name) }
}
