"""Leads the links of the templates around the nodes between their ends, by reroute points of the editor's own."""

from collections.abc import Iterable, Iterator

from .editor import Editor
from .workflow import as_link

Boxes = dict[int, tuple[float, float, float, float]]  # number of a node -> left, top (of its title), right, bottom

SIDE = 20  # pixels between a node and a point where a link turns, and between links that run side by side
STEEP = 150  # pixels up or down from where the editor's curve swings out under the nodes beside it
HIDDEN = """async (margin) => {
    const { ds, canvas } = app.canvas
    const all = app.graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]])
    const [left, top] = [0, 1].map((side) => Math.min(...all.map((box) => box[side])) - 200)
    const [right, bottom] = [2, 3].map((side) => Math.max(...all.map((box) => box[side])) + 200)
    ds.scale = Math.min(canvas.clientWidth / (right - left), canvas.clientHeight / (bottom - top))
    ds.offset = [-left, -top]
    app.canvas.setDirty(true, true)
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
    const pen = document.createElement("canvas").getContext("2d")
    pen.lineWidth = 6
    const crosses = (path, [left, top, right, bottom]) => {
        const touched = (x, y) => pen.isPointInStroke(path, x, y)
        for (let x = left + margin; x < right - margin; x += 4)
            if (touched(x, top + margin) || touched(x, bottom - margin)) return true
        for (let y = top + margin; y < bottom - margin; y += 4)
            if (touched(left + margin, y) || touched(right - margin, y)) return true
        return false
    }
    const node = (id) => app.graph.getNodeById(id)
    const forward = [...app.graph.links.values()].filter(({ origin_id, target_id }) =>
        node(origin_id).pos[0] + node(origin_id).size[0] < node(target_id).pos[0])
    const drawn = forward.map((link) => [link, link.path])
    for (const reroute of app.graph.reroutes.values())
        for (const link of forward) if (reroute.linkIds.has(link.id)) drawn.push([link, reroute.path])
    if (drawn.some(([, path]) => !path)) throw new Error("a link was not drawn")
    const found = []
    for (const [{ id, origin_id, target_id }, path] of drawn)
        app.graph.nodes.forEach((other, index) => {
            const outside = all[index][2] < node(origin_id).pos[0] || node(target_id).pos[0] < all[index][0]
            if (outside || other.id == origin_id || other.id == target_id) return
            if (crosses(path, all[index])) found.push([Number(id), Number(other.id)])
        })
    return found
}"""
SLOTS = """() => [...app.graph.links.values()].map(({ id, origin_id, origin_slot, target_id, target_slot }) => {
    const [from, to] = [origin_id, target_id].map((id) => app.graph.getNodeById(id))
    return [Number(id), ...from.getConnectionPos(false, origin_slot), ...to.getConnectionPos(true, target_slot)]
})"""
MARGIN = 3  # pixels of a node's edge that a link may touch


def hidden(editor: Editor) -> list[tuple[int, int]]:
    """Return (number of a link, number of a node that it runs under) in the editor's graph as it is drawn.

    Links back into their own column are left out: they turn around at their ends.
    """
    return sorted({tuple(pair) for pair in editor.page.evaluate(HIDDEN, MARGIN)})


def ends(editor: Editor) -> dict[int, tuple[float, float, float, float]]:
    """Return number of a link -> x and y of its output, x and y of its input, in the editor's graph."""
    return {number: tuple(points) for number, *points in editor.page.evaluate(SLOTS)}


def lead_around(workflow: dict, boxes: Boxes, ends: dict, numbers: Iterable[int]) -> None:
    """Give the links `numbers` of `workflow` points to run between, clear of the nodes in `boxes`.

    ends: as the function of that name returns them, for the same positions.
    """
    points, taken = {}, []
    links = {link["id"]: link for link in map(as_link, workflow["links"])}
    for number in sorted(numbers, key=lambda number: abs(ends[number][1] - ends[number][3])):
        origin, target = (boxes[links[number][end]] for end in ("origin_id", "target_id"))
        points[number] = _way(origin, target, ends[number], list(boxes.values()), taken)
    _write(workflow, points)


def _way(origin: tuple, target: tuple, ends: tuple, boxes: list[tuple], taken: list[tuple]) -> list[tuple]:
    """Return the points of a link: before and behind the columns between, and at its ends where it turns steeply.

    taken: (height, left, right) of the ways of other links, to which this one is added.
    """
    _, y, _, to_y = ends
    way = []
    if between := [box for box in boxes if origin[2] <= box[0] and box[2] <= target[0]]:
        left, right = min(box[0] for box in between) - SIDE, max(box[2] for box in between) + SIDE
        lane = min(lanes(between, taken, left, right), key=lambda lane: abs(lane - y) + abs(lane - to_y))
        taken.append((lane, left, right))
        way = [(left, lane), (right, lane)]
    first, last = (way[0][1], way[-1][1]) if way else (to_y, y)
    top, bottom = sorted((y, first))
    passed = [box[2] for box in boxes if box[0] < origin[2] <= box[2] and box[1] < bottom and top < box[3]]
    if abs(first - y) > STEEP and max(passed) + SIDE < target[0]:
        way.insert(0, (max(passed) + SIDE // 2, y))
    if abs(last - to_y) > STEEP and origin[2] < target[0]:
        way.append((target[0] - SIDE, to_y))
    return way


def lanes(between: list[tuple], taken: list[tuple], left: float, right: float) -> Iterator[float]:
    """Yield the heights at which a link from `left` to `right` crosses no box of `between` and no link of `taken`."""
    edges = [edge for _, top, _, bottom in between for edge in (top - SIDE, bottom + SIDE)]
    beside = [lane + side for lane, *_ in taken for side in (-SIDE, SIDE)]
    for lane in edges + beside:
        free = all(lane <= top - SIDE or bottom + SIDE <= lane for _, top, _, bottom in between)
        if free and all(abs(lane - other) >= SIDE or b < left or right < a for other, a, b in taken):
            yield lane


def _write(workflow: dict, points: dict[int, tuple]) -> None:
    """Put `points`, number of a link -> (x, y) of each of its points in order, into `workflow`."""
    reroutes, extensions = [], []
    for number, places in points.items():
        parent = {}
        for place in places:
            position = [round(value) for value in place]
            reroutes.append({"id": len(reroutes) + 1, **parent, "pos": position, "linkIds": [number]})
            parent = {"parentId": len(reroutes)}
        extensions += [{"id": number, **parent}] if parent else []
    workflow["extra"] = {"reroutes": reroutes, "linkExtensions": extensions} if reroutes else {}
