"""Runs prompts on a ComfyUI server through its HTTP API and websocket."""

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path

import aiohttp

EventHandler = Callable[[str, dict], None]


class PromptError(Exception):
    """The server refused a prompt or a node of it failed; the message names the node and what it said."""


class Client:
    """One API client of the server at `url`."""

    def __init__(self, url: str):
        self.url = url
        self._id = uuid.uuid4().hex

    def get(self, path: str) -> dict:
        """The JSON that the server answers to GET `path`."""
        return asyncio.run(self._json("GET", path))

    def post(self, path: str, payload: dict) -> dict:
        """The JSON that the server answers to POST `path` with a JSON `payload`."""
        return asyncio.run(self._json("POST", path, json=payload))

    def upload(self, file: Path) -> str:
        """Put `file` (an image or a video) into the server's input folder; return its name there."""
        form = aiohttp.FormData()
        form.add_field("image", file.read_bytes(), filename=file.name)
        return asyncio.run(self._json("POST", "/upload/image", data=form))["name"]

    def run(
        self, prompt: dict, on_event: Callable[[str, dict], None] | None = None, timeout: float = 600
    ) -> list[dict]:
        """Queue `prompt`, wait until it is done, and return the files it made: [{"filename", "subfolder", "type"}].

        on_event: called with the type and data of each of the server's events for this prompt.
        Raise PromptError if the prompt is refused or fails, TimeoutError after `timeout` seconds.
        """
        prompt_id = asyncio.run(asyncio.wait_for(self._run(prompt, on_event), timeout))
        outputs = self.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
        files = [file for output in outputs.values() for file in output.values() if isinstance(file, list)]
        return [file for group in files for file in group if isinstance(file, dict) and "filename" in file]

    async def _json(self, method: str, path: str, **payload: object) -> dict:
        async with aiohttp.ClientSession() as session, session.request(method, self.url + path, **payload) as reply:
            return await reply.json()

    async def _run(self, prompt: dict, on_event: EventHandler | None) -> str:
        address = f"{self.url}/ws?clientId={self._id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as events:
            payload = {"prompt": prompt, "client_id": self._id}
            async with session.post(f"{self.url}/prompt", json=payload) as reply:
                answer = await reply.json()
            if answer.get("error") or answer.get("node_errors"):
                raise PromptError(_refusal(answer))
            prompt_id = answer["prompt_id"]
            async for message in events:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue  # a preview picture
                event, data = message.json()["type"], message.json()["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                if on_event:
                    on_event(event, data)
                if event == "executing" and data["node"] is None:  # sent after the history is written
                    return prompt_id
                if event == "execution_error":
                    raise PromptError(f"{_node(data)}: {data['exception_message'].strip()}")
                if event == "execution_interrupted":
                    raise PromptError(f"{_node(data)}: interrupted")
        raise PromptError("The server closed the connection before the prompt was done: see its log.")


def _node(event: dict) -> str:
    """How a message names the node of an event."""
    return f"{event['node_type']} (node {event['node_id']})"


def _refusal(answer: dict) -> str:
    """The server's answer to a prompt that it did not accept, as lines for a person."""
    lines = [
        f"{node['class_type']} (node {number}): {error['message']}: {error['details']}"
        for number, node in answer["node_errors"].items()
        for error in node["errors"]
    ]
    return "\n".join(lines or [f"{answer['error']['message']}: {answer['error']['details']}"])
