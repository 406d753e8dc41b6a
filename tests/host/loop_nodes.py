"""A loop by the host's expansion of nodes, as packs of loop nodes make them: the body is copied for each turn."""

from comfy_execution.graph_utils import GraphBuilder, is_link

import nodes


class Any(str):
    """A type of link that fits every other one."""

    def __ne__(self, other: object) -> bool:
        return False


ANY = Any("*")
VALUES = {"value0": (ANY,), "value1": (ANY,)}


class Open:
    """The beginning of the body: the turns that are left, two values that go around, and a prompt for each turn."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("INT", ANY, ANY, "STRING"), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"left": ("INT",)}, "optional": VALUES}

    def run(self, left, value0=None, value1=None):
        return left, value0, value1, prompt_of(left)


class Close:
    """The end of the body: gives its values, or expands into another turn."""

    RETURN_TYPES, FUNCTION, CATEGORY = (ANY, ANY), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        hidden = {"unique_id": "UNIQUE_ID", "prompt": "DYNPROMPT"}
        required = {"opened": ("INT", {"rawLink": True}), "left": ("INT", {"forceInput": True})}
        return {"required": required, "optional": VALUES, "hidden": hidden}

    def run(self, opened, left, unique_id, prompt, value0=None, value1=None):
        if left <= 1:
            return value0, value1
        graph, body = GraphBuilder(), body_of(prompt, opened[0], unique_id)
        for node_id in body:
            graph.node(prompt.get_node(node_id)["class_type"], node_id).set_override_display_id(node_id)
        for node_id in body:
            for name, given in prompt.get_node(node_id)["inputs"].items():
                inner = is_link(given) and given[0] in body
                graph.lookup_node(node_id).set_input(
                    name, graph.lookup_node(given[0]).out(given[1]) if inner else given
                )
        for name, value in (("left", left - 1), ("value0", value0), ("value1", value1)):
            graph.lookup_node(opened[0]).set_input(name, value)
        again = graph.lookup_node(unique_id)
        return {"result": (again.out(0), again.out(1)), "expand": graph.finalize()}


def prompt_of(left: int) -> str:
    """The prompt of the turn that has so many left."""
    return f"a cat in scene {left}"


def body_of(prompt, begin: str, end: str) -> set[str]:
    """The nodes between the two that depend on the beginning, both included, and what only they lead to."""
    ids = prompt.all_node_ids()
    body, grown = {begin, end}, True
    links = {
        node_id: {given[0] for given in prompt.get_node(node_id)["inputs"].values() if is_link(given)}
        for node_id in ids
    }
    while grown:
        more = {node_id for node_id in ids - body if links[node_id] & (body - {end})}
        body, grown = body | more, bool(more)
    return body


def register() -> None:
    """Make the two nodes known to the host."""
    nodes.NODE_CLASS_MAPPINGS |= {"TestLoopOpen": Open, "TestLoopClose": Close}
