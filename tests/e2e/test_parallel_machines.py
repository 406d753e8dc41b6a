"""Runs that two machines share: a server in one network namespace and join.py in another, by a cable alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from namespaces import cable, inside
from PIL import Image, ImageChops
from safetensors.torch import load_file
from shared_run import (
    ENDING,
    LONG,
    AtStep,
    Place,
    assert_nothing_left,
    await_true,
    children,
    command,
    listening,
    patience,
    prompt,
)

from devtools import host
from devtools.client import Client, PromptError
from devtools.environment import ROOT

if sys.platform != "linux":
    pytest.skip("machines are network namespaces", allow_module_level=True)

ALONE = "cpu x1"
SLOW = pytest.mark.slow
STARTING = 300.0  # seconds until join.py has imported the host
SHOWN = re.compile(r"run this in the folder of ComfyUI: python custom_nodes/\S+/join\.py (\S+) --token (\S+)")


class Other:
    """Another machine, with a folder of its own, on which the user runs join.py."""

    def __init__(self, folder: Path, models: Path, comfyui: Path, name: str, shown: tuple[str, str]):
        host.prepare_base(folder)
        shutil.rmtree(folder / "models")
        shutil.copytree(models, folder / "models", symlinks=True)
        self.folder, self.comfyui, self.name, self.shown = folder, comfyui, name, shown
        self.log = folder / "join.log"

    @contextmanager
    def joined(self, token: str | None = None, pack: Path = ROOT):
        """Within, join.py runs, with a `token` on its command line or the shown one typed in."""
        line = [sys.executable, str(pack / "join.py"), self.shown[0], "--base-directory", str(self.folder)]
        line += ["--token", token] if token else []
        with inside(self.name), self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line, cwd=self.comfyui, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # without a terminal, of which the token would be asked
            )  # fmt: skip
        self.process.stdin.write(f"{self.shown[1]}\n".encode())
        self.process.stdin.close()
        try:
            assert await_true(lambda: "waits for runs" in self.said(), STARTING), self.said()
            yield self
        finally:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(ENDING) in (0, -signal.SIGKILL), self.said()

    def said(self) -> str:
        """Return what join.py has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[int]:
        """The launcher of join.py, and the processes of the group."""
        agents = children(self.process.pid)
        return agents + [pid for agent in agents for pid in children(agent)]

    def is_idle(self) -> bool:
        """Whether nothing is left of a group here."""
        return not self.processes() and not list((self.folder / "temp").glob("wan-parallel*"))


@pytest.fixture(scope="module")
def place(comfyui, base, hosts, tmp_path_factory):
    """A running server on the first machine, which names the second one."""
    place = Place(tmp_path_factory.mktemp("machines"), base / "models", comfyui)
    place.devices = f"cpu x1 + {list(hosts)[1]}: cpu x1"
    with inside(next(iter(hosts.values()))), place.running():
        yield place


@pytest.fixture(scope="module")
def other(comfyui, base, hosts, place, tmp_path_factory):
    """The second machine, as the log of the first one tells to set it up."""
    since = time.monotonic()
    with pytest.raises(PromptError, match=r"The machine 10\.213\.7\.2 has not joined: run there what the log"):
        place.run()
    assert time.monotonic() - since < patience() + 5  # the model is loaded before
    assert_nothing_left(place, [])
    shown = SHOWN.search(place.server.log.read_text(encoding="utf-8"))
    assert shown and shown[1] == "10.213.7.1:29555"
    return Other(tmp_path_factory.mktemp("other"), base / "models", comfyui, list(hosts.values())[1], shown.groups())


@pytest.fixture
def joined(other):
    """The second machine, taking part."""
    with other.joined():
        yield other


def decoded(devices: str, seed: int) -> dict:
    """The prompt of a clip that `devices` make, and decode to pictures in tiles."""
    nodes = prompt(seed, 3, devices=devices)
    for key, name, inputs in (
        ("shared", "WanParallelVAE", {"vae": ["vae", 0], "devices": devices}),
        (
            "decode",
            "WanVAEDecode",
            {"vae": ["shared", 0], "samples": ["sampler", 0], "tile_width": 32, "tile_height": 64},
        ),
        ("pictures", "SaveImage", {"images": ["decode", 0], "filename_prefix": "shared"}),
    ):
        nodes[key] = {"class_type": name, "inputs": inputs}
    return nodes


def results(place: Place, devices: str, seed: int) -> tuple[torch.Tensor, list[Image.Image]]:
    """The latent and the pictures that `devices` make."""
    paths = [
        place.folder / "output" / file["filename"] for file in Client(place.server.url).run(decoded(devices, seed))
    ]
    latents = [load_file(path)["latent_tensor"] for path in paths if path.suffix == ".latent"]
    return latents[0], [Image.open(path) for path in paths if path.suffix == ".png"]


def test_two_machines_make_the_clip_of_one(place, joined, hosts, relative_error):
    (alone, pictures), (both, shared) = (results(place, devices, 5) for devices in (ALONE, place.devices))
    assert len(joined.processes()) == 2
    assert relative_error(both, alone) < 1e-5
    assert len(shared) == len(pictures) == 9
    differences = [ImageChops.difference(*pair).getextrema() for pair in zip(shared, pictures, strict=True)]
    assert max(high for extrema in differences for _, high in extrema) <= 1
    assert relative_error(results(place, ALONE, 6)[0], alone) > 1e-2
    pids = [place.server.pid, joined.process.pid, *joined.processes()]
    listing = {own for pid in pids for own in listening(pid)}
    assert listing <= {"127.0.0.1", *hosts} and "10.213.7.1" in listing


def test_cancelling_in_a_step_leaves_the_group_as_it_is(place, joined):
    assert place.run()
    before, watch = joined.processes(), AtStep(lambda: urlopen(Request(f"{place.server.url}/interrupt", method="POST")))
    with pytest.raises(PromptError, match="interrupted"):
        place.run(LONG, watch)
    assert time.monotonic() - watch.at < patience()
    assert place.run() and joined.processes() == before


FAULTS = {
    "dies": (lambda other: os.kill(other.processes()[1], signal.SIGKILL), "A process of Wan Parallel has ended"),
    "hangs": (lambda other: os.kill(other.processes()[1], signal.SIGSTOP), r"Process 1 \(on cpu of 10\..* no sign of"),
    "cable": (lambda other: cable(other.name, "down"), r"The machine 10\.213\.7\.2 has shown no sign of life for 7"),
}


@pytest.mark.parametrize("fault", ["dies", *(pytest.param(name, marks=SLOW) for name in ("hangs", "cable"))])
def test_a_machine_fails_in_a_step(fault, place, joined):
    """Then it goes on waiting, and takes part in the next run."""
    strike, sentence = FAULTS[fault]
    assert place.run()
    pids, watch = joined.processes(), AtStep(lambda: strike(joined))
    try:
        with pytest.raises(PromptError, match=sentence):
            place.run(LONG, watch)
        assert time.monotonic() - watch.at < patience()
        assert_nothing_left(place, pids)
        assert await_true(joined.is_idle, ENDING)
    finally:
        cable(joined.name, "up")
    assert place.run()


@pytest.mark.parametrize("way", ["SIGINT", *(pytest.param(name, marks=SLOW) for name in ("SIGTERM", "SIGKILL"))])
def test_join_ends_in_a_step(way, place, other):
    """Killed, it leaves its processes to end by themselves, and their logs to the host, which empties its folder."""
    with other.joined():
        assert place.run()
        assert not any(other.shown[1].encode() in command(pid) for pid in (other.process.pid, *other.processes()))
        pids, watch = other.processes(), AtStep(lambda: other.process.send_signal(getattr(signal, way)))
        with pytest.raises(PromptError, match="A process of Wan Parallel has ended"):
            place.run(LONG, watch)
        assert time.monotonic() - watch.at < patience()
        assert_nothing_left(place, [*pids, other.process.pid])
        if way == "SIGKILL":
            shutil.rmtree(other.folder / "temp")
        assert other.is_idle()
    with other.joined():
        assert place.run()


def test_another_token_takes_no_part(place, other):
    with other.joined("another"), pytest.raises(PromptError, match="has not joined"):
        place.run()
    assert "runs a group without 10.213.7.2, or with another token" in other.said()


@pytest.mark.parametrize("change", ["missing", pytest.param("longer", marks=SLOW)])
def test_a_file_that_is_not_the_same_there_is_said(change, place, joined):
    path = joined.folder / "models" / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors"
    kept, sentence = path.rename(path.with_suffix(".kept")), "is not in the models/diffusion_models folder"
    if change == "longer":
        path.write_bytes(kept.read_bytes() + b" ")
        sentence = "bytes here and .* copy the file"
    try:
        with pytest.raises(PromptError, match=rf"Process 1 \(on cpu of 10\.213\.7\.2\) cannot load .*{sentence}"):
            place.run()
    finally:
        kept.rename(path)
    assert place.run()


@SLOW
def test_another_version_of_the_pack_is_refused(place, other):
    pack = other.folder / "another"
    left_out = shutil.ignore_patterns(".*", "tests", "benchmarks", "pictures", "__pycache__")
    shutil.copytree(ROOT, pack, ignore=left_out)
    with (pack / "host" / "parallel" / "version.py").open("a") as source:
        source.write("# a later version\n")
    with other.joined(pack=pack):
        with pytest.raises(PromptError, match=r"10\.213\.7\.2 has another version of Wan Stream than ComfyUI: copy"):
            place.run()
        assert await_true(other.is_idle, ENDING)


def test_a_machine_that_cannot_be_reached_is_said(place, joined):
    place.devices, before = "cpu x1 + 192.0.2.1: cpu x1", place.devices
    try:
        with pytest.raises(PromptError, match=r"192\.0\.2\.1 is on no network of this one"):
            place.run()
    finally:
        place.devices = before
    assert place.run()
