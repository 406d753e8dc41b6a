"""Runs the host's nodes in this process: one at a time, or a whole prompt through the host's executor."""

import asyncio
import inspect
from functools import cache

import nodes


@cache
def load_extra_nodes() -> None:
    """Register the nodes of comfy_extras, as the server does when it starts."""
    asyncio.run(nodes.init_builtin_extra_nodes())


def run_node(node_id: str, **inputs: object) -> tuple:
    """Outputs of one node of either interface."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    if not hasattr(node, "PREPARE_CLASS_CLONE"):
        return getattr(node(), node.FUNCTION)(**inputs)
    made = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
    return (asyncio.run(made) if inspect.iscoroutine(made) else made).result
