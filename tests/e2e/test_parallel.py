"""A run that several processes share, through a real server: preview, progress, cancelling, and what is left."""

import sys
from urllib.request import Request, urlopen

import pytest
from shared_run import await_true, children, command, listening

from devtools import demo
from devtools.client import Client, PromptError
from devtools.server import Server
from devtools.workflow import to_prompt

MARK = b"host/parallel/start.py"  # in the command lines of the agent and of the processes that it starts
LOOPBACK = {"127.0.0.1", "::1"}


@pytest.fixture
def own_server(comfyui, base):
    """A server whose processes are its own."""
    with Server(sys.executable, comfyui, base, cpu=True) as running:
        yield running


def processes(server: int) -> set[int]:
    """The processes that the server `server` (a PID) runs for Wan Parallel: torch's agent and those that it starts."""
    agents = [pid for pid in children(server) if MARK in command(pid)]
    return {*agents, *(pid for agent in agents for pid in children(agent))}


def shared(object_info: dict, seed: int, steps: int) -> tuple[dict, str]:
    """The template of text to video with Wan Parallel before its sampler, and the sampler's number."""
    prompt = demo.adapt(to_prompt(demo.load_workflow("wan21_text_to_video"), object_info), "a red ball")
    sampler = next(number for number, node in prompt.items() if node["class_type"] == "WanSampler")
    inputs = prompt[sampler]["inputs"]
    parallel = {"model": inputs["model"], "devices": "cpu x2", "share": "auto"}
    prompt["parallel"] = {"class_type": "WanParallel", "inputs": parallel, "_meta": {"title": "Wan Parallel"}}
    inputs |= {"model": ["parallel", 0], "seed": seed, "steps": steps}
    return prompt, sampler


def test_it_runs_shows_stops_and_leaves_nothing(own_server):
    client, events = Client(own_server.url), []
    info = client.get("/object_info")
    prompt, sampler = shared(info, 1, 3)
    assert client.run(prompt, lambda event, data: events.append((event, data)))
    started = processes(own_server.pid)
    assert len(started) == 2  # the agent, and the second process
    assert {own for pid in started for own in listening(pid)} <= LOOPBACK
    shown = {data["value"] for event, data in events if event == "progress" and data["node"] == sampler}
    assert {1, 3} <= shown <= {1, 2, 3}  # newer hosts leave out what comes within 0.1 s
    assert [data["step"] for event, data in events if event == "wan.preview"] == [1, 2, 3]

    def cancel(event, data):
        if event == "progress" and data["node"] == sampler:
            urlopen(Request(f"{own_server.url}/interrupt", method="POST"), timeout=10).close()

    with pytest.raises(PromptError, match="interrupted"):
        client.run(shared(info, 2, 200)[0], cancel)
    assert client.run(shared(info, 3, 2)[0])
    assert processes(own_server.pid) == started  # the same ones
    own_server.kill()
    assert await_true(lambda: not any(map(command, started)), 10)
