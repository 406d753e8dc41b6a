// Small pictures under the lines of a note: a bar, a strip of steps, a noise schedule.

const COLOURS = {
    good: "var(--p-primary-color, #60a5fa)",
    bad: "var(--error-text, #ef4444)",
    second: "#f472b6", // of two models
    faint: "var(--border-color, #4e4e4e)",
}
const STEPS = { computed: COLOURS.good, skipped: "transparent", other: COLOURS.faint }
const SVG = "http://www.w3.org/2000/svg"
const [WIDTH, HEIGHT, EDGE] = [100, 24, 2]

/** A bar of which `share` is filled; in the colour of errors where that is more than `most`. */
export function bar(share, most = 1) {
    const element = box("wan-bar", `height: 4px; background: ${COLOURS.faint}`)
    const filled = document.createElement("div")
    filled.style.cssText = `height: 100%; width: ${100 * Math.min(1, share)}%`
    filled.style.background = share > most ? COLOURS.bad : COLOURS.good
    element.append(filled)
    return element
}

/** A strip with a cell for each step: "computed", "skipped", or "other" where it was not this node's. */
export function strip(steps) {
    const element = box("wan-steps", "height: 8px; display: flex; gap: 1px")
    for (const kind of steps) {
        const cell = document.createElement("div")
        cell.dataset.kind = kind
        cell.style.cssText = `flex: 1; background: ${STEPS[kind]}; border: 1px solid ${COLOURS.faint}`
        element.append(cell)
    }
    return element
}

/** The noise levels `sigmas` from step to step; those from the step `change` on, where there is one, in another colour. */
export function schedule(sigmas, change) {
    const element = document.createElementNS(SVG, "svg")
    element.setAttribute("class", "wan-schedule")
    element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`)
    element.setAttribute("preserveAspectRatio", "none")
    element.style.cssText = `display: block; width: 100%; height: ${2 * HEIGHT}px`
    const point = (sigma, step) => [
        EDGE + ((WIDTH - 2 * EDGE) * step) / (sigmas.length - 1),
        EDGE + (HEIGHT - 2 * EDGE) * (1 - sigma),
    ]
    const points = sigmas.map(point)
    const middle = change ?? sigmas.length - 1
    element.append(line(points.slice(0, middle + 1), COLOURS.good), line(points.slice(middle), COLOURS.second))
    return element
}

function line(points, colour) {
    const element = document.createElementNS(SVG, "polyline")
    element.setAttribute("points", points.map((point) => point.join(",")).join(" "))
    const style = { fill: "none", stroke: colour, "stroke-width": 2, "vector-effect": "non-scaling-stroke" }
    for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value)
    return element
}

function box(name, style) {
    const element = document.createElement("div")
    element.className = name
    element.style.cssText = `margin: 1px 0 3px; border-radius: 2px; overflow: hidden; ${style}`
    return element
}
