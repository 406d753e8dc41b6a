"""Runs the host's nodes in this process: one at a time, or a whole prompt through the host's executor."""

import asyncio
import inspect
import uuid
from functools import cache
from types import SimpleNamespace

import execution
import server
import torch

import nodes
from .cuts import Keep, register


class Failure(Exception):
    """A prompt that stopped: the class of the node, the type of the error and its message."""

    def __init__(self, node: str, kind: str, message: str):
        super().__init__(f"{node}: {message}")
        self.node, self.kind, self.message = node, kind, message


class Receiver:
    """A receiver that drops the executor's progress."""

    client_id = last_node_id = last_prompt_id = None
    node_replace_manager = SimpleNamespace(register=lambda *_: None)

    def send_sync(self, *_: object) -> None:
        """One message to the editor."""

    send_progress_text = send_sync


@cache
def load_extra_nodes() -> None:
    """Register the nodes of comfy_extras, as the server does when it starts, and those of `cuts`."""
    if getattr(server.PromptServer, "instance", None) is None:
        server.PromptServer.instance = Receiver()
    asyncio.run(nodes.init_builtin_extra_nodes())
    register()


def run_node(node_id: str, **inputs: object) -> tuple:
    """Outputs of one node of either interface."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    if not hasattr(node, "PREPARE_CLASS_CLONE"):
        return getattr(node(), node.FUNCTION)(**inputs)
    made = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
    return (asyncio.run(made) if inspect.iscoroutine(made) else made).result


def run_prompt(prompt: dict, ends: list[str]) -> dict[str, torch.Tensor]:
    """The latents that the nodes `ends` keep, by the host's own check and executor. Raises Failure."""
    prompt_id = str(uuid.uuid4())
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, ends))
    if not valid or node_errors:
        raise _invalid(error, node_errors)
    Keep.latents.clear()
    torch.manual_seed(0)  # some nodes draw without a seed of their own
    executor = execution.PromptExecutor(Receiver(), cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
    executor.execute(prompt, prompt_id, {}, ends)
    if not executor.success:
        found = next(data for event, data in executor.status_messages if event == "execution_error")
        raise Failure(found["node_type"], found["exception_type"], found["exception_message"].strip())
    return dict(Keep.latents)


def _invalid(error: dict, node_errors: dict) -> Failure:
    """Return the first error that the check of a prompt found."""
    for node in node_errors.values():
        first = node["errors"][0]
        refused = first["type"] == "custom_validation_failed"
        return Failure(node["class_type"], "ValueError" if refused else first["type"], first["details"])
    return Failure("prompt", error["type"], error["message"])
