// A DOM element under the widgets of a node, which saves nothing and is as high as what it holds.

const MARGIN = 6
const PICTURE = 200 // pixels of a picture and its words at least

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

/** Adds a panel of the element `picture` with a line of words, its `label`, below. */
export function addPicture(node, name, picture) {
    picture.style.cssText = "width: 100%; height: calc(100% - 18px); object-fit: contain"
    const label = document.createElement("div")
    label.style.cssText = "height: 18px; font-size: 11px; text-align: center; color: var(--input-text)"
    const element = document.createElement("div")
    element.style.cssText = `height: 100%; min-height: ${PICTURE}px`
    element.append(picture, label)
    return { label, ...addPanel(node, name, element, PICTURE) }
}
