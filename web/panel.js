// A DOM element under the widgets of a node, which saves nothing and is as high as what it holds.

const MARGIN = 6

/**
 * Adds `element` under the widgets of `node`. minHeight: how high it is at least once it shows something; it may grow.
 * Without it, it is as high as its content. Call before the node is drawn: old editors overlook later widgets.
 */
export function addPanel(node, name, element, minHeight) {
    const box = document.createElement("div")
    box.className = `wan-${name}`
    box.append(element)
    box.hidden = true
    let height = 0
    new ResizeObserver(() => {
        if (element.offsetHeight) height = element.offsetHeight + 2 * MARGIN
        node.graph?.setDirtyCanvas(true, true)
    }).observe(element)
    const measure = () => (box.hidden ? 0 : (minHeight ?? height))
    const options = { serialize: false, margin: MARGIN, hideOnZoom: false, getMinHeight: measure }
    options.getMaxHeight = () => (minHeight && !box.hidden ? undefined : measure())
    const widget = node.addDOMWidget(`wan_${name}`, `wan_${name}`, box, options)
    widget.serialize = false
    widget.hidden = true // or its empty frame would lie over the canvas below the node and take its clicks
    return {
        show(visible) {
            box.hidden = widget.hidden = !visible
            node.graph?.setDirtyCanvas(true, true)
        },
    }
}
