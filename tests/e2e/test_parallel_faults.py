"""A server whose run is shared by processes, when something goes wrong with them.

Each fault once, and ten times with -m slow. After each: a sentence within ten seconds, nothing left behind, and the
next prompt runs.
"""

import os
import resource
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from shared_run import (
    ENDING,
    LONG,
    SENTENCE,
    AtStep,
    Place,
    assert_nothing_left,
    await_true,
    children,
    command,
    patience,
    prompt,
)

from devtools.client import Client, PromptError
from devtools.environment import ROOT

if sys.platform != "linux":
    pytest.skip("processes are looked at in /proc", allow_module_level=True)

TIMES = pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def place(comfyui, base, tmp_path_factory):
    """A running server for the faults that it survives."""
    with Place(tmp_path_factory.mktemp("faults"), base / "models", comfyui).running() as running:
        yield running


def out_of_memory(pid: int) -> None:
    """Let the process have no more memory than it has."""
    held = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (held, held))


FAULTS = {
    "dies": (lambda agent, pid: os.kill(pid, signal.SIGKILL), "A process of Wan Parallel has ended.* Run the"),
    "hangs": (lambda agent, pid: os.kill(pid, signal.SIGSTOP), "Process 1 .* no sign of life.* Run the prompt again"),
    "memory": (lambda agent, pid: out_of_memory(pid), r"Process 1 \(on cpu\) ran out of memory: choose a smaller size"),
    "launcher": (lambda agent, pid: os.kill(agent, signal.SIGKILL), "A process of Wan Parallel has ended.* Run the"),
}


@TIMES
@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_fails_in_a_step(fault, times, place):
    strike, sentence = FAULTS[fault]
    side = 256 if fault == "memory" else 64  # whose tensors are beyond what the allocator keeps
    for _ in range(times):
        place.run()
        agent, (pid,) = place.others()
        watch = AtStep(lambda agent=agent, pid=pid: strike(agent, pid))
        with pytest.raises(PromptError, match=sentence):
            place.run(LONG, watch, side)
        assert time.monotonic() - watch.at < patience()
        assert_nothing_left(place, [agent, pid])
    assert place.run()


@TIMES
@pytest.mark.parametrize("moment", ["step", "start"])
def test_cancelling(moment, times, place):
    """In a step the group stays; while it starts it ends."""
    for _ in range(times):
        if moment == "start" and place.run():
            os.kill(place.others()[1][0], signal.SIGKILL)
            await_true(lambda: not children(place.server.pid), ENDING)
        before = place.run() and place.others() if moment == "step" else None
        watch = AtStep(lambda: urlopen(Request(f"{place.server.url}/interrupt", method="POST")))
        if moment == "start":
            watch.steps = 0
        with pytest.raises(PromptError, match="interrupted"):
            place.run(LONG, watch if before else on_start(watch, place))
        assert time.monotonic() - watch.at < patience()
        if before:
            assert place.others() == before
        else:
            assert_nothing_left(place, watch.pids)
    assert place.run()


def on_start(watch: AtStep, place: Place):
    """Act once the launcher runs, before its processes have said hello."""

    def hear(event: str, data: dict) -> None:
        if event == "executing" and data["node"] == "sampler":
            assert await_true(lambda: children(place.server.pid), SENTENCE)
            watch.pids = children(place.server.pid)
            watch.act()
            watch.at = time.monotonic()

    return hear


@TIMES
@pytest.mark.parametrize("way", ["terminate", "kill"])
def test_the_server_ends_in_a_step(way, times, comfyui, base, tmp_path):
    place = Place(tmp_path, base / "models", comfyui)
    for _ in range(times):
        with place.running():
            place.run()
            agent, (pid,) = place.others()
            watch = AtStep(getattr(place.server, way))
            with pytest.raises((PromptError, OSError)):
                place.run(LONG, watch)
            assert await_true(lambda pids=(agent, pid): not any(map(command, pids)), ENDING)
            assert not list(place.temporary.glob("wan-parallel*"))


@TIMES
def test_two_prompts_at_once_run_in_turn(times, place):
    for _ in range(times):
        client = Client(place.server.url)
        ids = [client.post("/prompt", {"prompt": prompt(next(place.seeds), 3)})["prompt_id"] for _ in range(2)]
        assert await_true(lambda ids=ids, client=client: all(i in client.get("/history") for i in ids), 60)
        history = client.get("/history")
        assert all(history[i]["status"]["status_str"] == "success" for i in ids)


@TIMES
def test_ports_that_are_taken_do_not_matter(times, place):
    """Neither the port that torch's launcher takes by default, nor those just left."""
    with socket.socket() as taken:
        with suppress(OSError):  # another program has it, which is as good
            taken.bind(("127.0.0.1", 29500))
            taken.listen()
        for _ in range(times):
            place.run()
            agent, (pid,) = place.others()
            os.kill(pid, signal.SIGKILL)
            assert await_true(lambda pids=(agent, pid): not any(map(command, pids)), ENDING)
        assert place.run()


@TIMES
def test_another_version_of_the_pack_is_refused_until_it_is_the_same(times, comfyui, base, tmp_path):
    """The pack is updated on disk while the server runs."""
    place = Place(tmp_path, base / "models", comfyui)
    (link,) = (tmp_path / "custom_nodes").iterdir()
    link.unlink()
    left_out = shutil.ignore_patterns(".*", "tests", "benchmarks", "pictures", "__pycache__")
    shutil.copytree(ROOT, link, ignore=left_out)
    source = link / "host" / "parallel" / "version.py"
    before = source.read_bytes()
    with place.running():
        for _ in range(times):
            source.write_bytes(before + b"# a later version\n")
            with pytest.raises(PromptError, match=r"Process 1 has another version of Wan Stream .*restart ComfyUI"):
                place.run()
            assert_nothing_left(place, [])
            source.write_bytes(before)
            assert place.run()
            agent, (pid,) = place.others()
            os.kill(pid, signal.SIGKILL)
            assert await_true(lambda pids=(agent, pid): not any(map(command, pids)), ENDING)
