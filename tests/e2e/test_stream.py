"""Endless video on a real server: watched while it grows, stopped, killed and gone on with."""

import sys
from urllib.request import Request, urlopen

import av
import numpy as np
import pytest

from devtools import host
from devtools.client import Client, PromptError
from devtools.server import Server

MODEL = {
    "1": ("WanModelLoader", {"model_name": "tiny_random_wan2.1_self_forcing.safetensors", "weight_dtype": "float32"}),
    "2": ("WanTextEncoderLoader", {"text_encoder_name": "tiny_random_umt5.safetensors"}),
    "3": (
        "WanVAELoader",
        {"vae_name": "tiny_random_wan2.1_vae.safetensors", "decode_dtype": "float32", "encode_dtype": "float32"},
    ),
}
VIDEO = {
    "model": ["1", 0],
    "clip": ["2", 0],
    "vae": ["3", 0],
    "prompts": "0 s: a small cat; 3 s: a red ball",
    "negative": "",
    "width": 64,
    "height": 64,
    "seconds": 6.0,
    "steps": 4,
    "guidance": 1.0,
    "shift": 5.0,
    "solver": "lcm",
    "seed": 5,
    "preset": "auto",
    "resume": True,
}


def graph(prefix: str, **changes: object) -> dict:
    """The prompt of a video whose name begins with `prefix`."""
    nodes = MODEL | {"4": ("WanStream", VIDEO | {"filename_prefix": prefix} | changes)}
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


@pytest.fixture
def place(base, tmp_path):
    """A folder for a server of its own, with the models of the others."""
    host.prepare_base(tmp_path)
    if (tmp_path / "models").is_dir():
        (tmp_path / "models").rmdir()
    (tmp_path / "models").symlink_to(base / "models")
    return tmp_path


@pytest.fixture
def start(comfyui, place):
    """Function that returns a server on `place`, to be entered."""
    return lambda: Server(sys.executable, comfyui, place, cpu=True)


def frames(path) -> np.ndarray:
    """All frames of a video file, (n, H, W, 3)."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Watcher:
    """Notes what the server says of a video, and does something once `blocks` of it are written."""

    def __init__(self, blocks: int, action):
        self.blocks, self.action, self.seen = blocks, action, []

    def __call__(self, event: str, data: dict) -> None:
        if event == "wan.video":
            self.seen.append(data)
            if len(self.seen) == self.blocks:
                self.action()


def test_kill_and_go_on(start, place):
    """A killed run leaves a file that plays, and the next run makes of it what an unbroken one makes."""
    output = place / "output"
    with start() as server:
        Client(server.url).run(graph("whole"))
        watcher = Watcher(4, server.kill)
        with pytest.raises((PromptError, OSError)):
            Client(server.url).run(graph("broken"), watcher)
    whole, left = frames(output / "whole_00001_.mp4"), frames(output / "broken_00001_.mp4")
    assert len(whole) == 105
    assert len(left) >= 9 + 3 * 12
    assert np.array_equal(left, whole[: len(left)])
    assert (output / "broken_00001_.resume.safetensors").exists()
    with start() as server:
        Client(server.url).run(graph("broken", seed=6))
    assert np.array_equal(frames(output / "broken_00001_.mp4"), whole)
    assert [path.name for path in sorted(output.glob("broken*"))] == ["broken_00001_.mp4"]
    assert len(np.unique(whole[-1])) > 2  # no empty picture


def test_cancel(start, place):
    """It ends a video without end, which goes on to the next node, and another one before its time.

    Both files are finished; while they grow they can be played, and the first frames come at once.
    """
    output, grown, played = place / "output", [], []
    with start() as server:

        def stop(name: str) -> None:
            grown.append(len(frames(output / name)))
            live = (endless if name.startswith("endless") else long).seen[-1]["live"]
            with urlopen(server.url + live) as reply:  # what the player gets, which goes on from here
                played.append((reply.headers["Content-Type"], reply.read(8)[4:]))
            urlopen(Request(f"{server.url}/interrupt", method="POST"))

        prompt = graph("endless", seconds=0.0)
        prompt["5"] = {
            "class_type": "SaveVideo",
            "inputs": {"video": ["4", 0], "filename_prefix": "after", "format": "auto", "codec": "auto"},
        }
        endless = Watcher(3, lambda: stop("endless_00001_.mp4"))
        made = Client(server.url).run(prompt, endless)
        long = Watcher(1, lambda: stop("long_00001_.mp4"))
        with pytest.raises(PromptError, match="interrupted"):
            Client(server.url).run(graph("long", seconds=600.0), long)
        with urlopen(server.url + endless.seen[-1]["live"]) as reply:
            assert (reply.status, reply.read()) == (204, b""), "to ask late is no fault"
    assert {file["filename"] for file in made} == {"endless_00001_.mp4", "after_00001_.mp4"}
    assert grown == [33, 9]
    assert played == 2 * [("video/mp4", b"ftyp")]
    for name, least in (("endless_00001_.mp4", 33), ("after_00001_.mp4", 33), ("long_00001_.mp4", 9)):
        with av.open(output / name) as container:
            stream = container.streams.video[0]
            assert stream.frames >= least  # an index, which a file that grows has not
            assert stream.frames == sum(1 for _ in container.decode(stream))
    assert [watched.seen[-1]["finished"] for watched in (endless, long)] == [True, True]
    assert endless.seen[0]["total"] is None and long.seen[0]["total"] > 600
    assert not list(output.glob("*.resume*"))
