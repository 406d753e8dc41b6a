"""Inputs that several nodes have."""

from comfy_api.latest import io


def fraction(name: str, default: float, tooltip: str, *, step: float = 0.005, optional: bool = False) -> io.Float.Input:
    """Return an input for a number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=step, optional=optional, tooltip=tooltip)


def prompt(name: str, tooltip: str, default: str = "") -> io.String.Input:
    """Return an input for a prompt of several lines, in which the editor resolves {one|another}."""
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default=default, tooltip=tooltip)


def is_connected(hidden, output: int) -> bool:
    """Return whether an output of the node with these hidden inputs (unique_id, dynprompt) has a link.

    output: its position. Links that a loop made while the graph runs count too.
    """
    graph, link = hidden.dynprompt, [hidden.unique_id, output]
    if graph is None:
        return False
    nodes = (graph.get_node(node_id) for node_id in graph.all_node_ids())
    return any(link == given for node in nodes for given in node["inputs"].values())
