"""A server whose runs are shared by processes, and what is left of these."""

import os
import sys
import time
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from devtools import host
from devtools.client import Client
from devtools.server import Server

SENTENCE = 10.0  # seconds from a fault to its sentence, where each process has a core
ENDING = 30.0  # seconds until nothing is left: the host collects what an error held every ten
MODELS = {
    "model": ("WanModelLoader", {"model_name": "tiny_random_wan2.1_t2v.safetensors", "weight_dtype": "float32"}),
    "clip": ("WanTextEncoderLoader", {"text_encoder_name": "tiny_random_umt5.safetensors"}),
    "text": ("WanTextEncode", {"clip": ["clip", 0], "positive": "a cat", "negative": ""}),
    "vae": ("WanVAELoader", {"vae_name": "tiny_random_wan2.1_vae.safetensors"}),
}
SAMPLER = {"model": ["parallel", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0]}
SAMPLER |= {"guidance": 3.0, "shift": 5.0, "solver": "euler", "denoise": 1.0}
VAE = {"decode_dtype": "auto", "encode_dtype": "auto"}
LISTENS = "0A"  # state of a socket in /proc/net/tcp
LONG = 400  # steps that are never all made


def prompt(seed: int, steps: int, side: int = 64, devices: str = "cpu x2") -> dict:
    """The prompt of a clip whose steps `devices` share."""
    latent = {"vae": ["vae", 0], "width": side, "height": side, "length": 9, "batch_size": 1}
    nodes = MODELS | {
        "parallel": ("WanParallel", {"model": ["model", 0], "devices": devices, "share": "auto"}),
        "vae": ("WanVAELoader", MODELS["vae"][1] | VAE),
        "latent": ("WanEmptyLatent", latent),
        "sampler": ("WanSampler", SAMPLER | {"seed": seed, "steps": steps}),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "shared"}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


class Place:
    """A server's folder, its folder for temporary files, and its processes.

    seeds: of its prompts, so that none is known to it already.
    """

    def __init__(self, folder: Path, models: Path, comfyui: Path):
        host.prepare_base(folder)
        if (folder / "models").is_dir():
            (folder / "models").rmdir()
        (folder / "models").symlink_to(models)
        self.folder, self.temporary, self.seeds = folder, folder / "temporary", iter(range(10**6))
        self.temporary.mkdir()
        self.devices = "cpu x2"
        self.server = Server(sys.executable, comfyui, folder, cpu=True)

    @contextmanager
    def running(self):
        """Run the server, with one group made."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(self.temporary))
            with self.server:
                yield self

    def run(self, steps: int = 2, on_event=None, side: int = 64) -> list[dict]:
        """Run a prompt and return its files."""
        return Client(self.server.url).run(prompt(next(self.seeds), steps, side, self.devices), on_event)

    def others(self) -> tuple[int, list[int]]:
        """Return the launcher's process and those of the group."""
        (agent,) = [pid for pid in children(self.server.pid) if b"torch.distributed.run" in command(pid)]
        return agent, children(agent)


class AtStep:
    """Calls `act` when the sampler has made so many steps, and notes when."""

    def __init__(self, act, steps: int = 2):
        self.act, self.steps, self.at = act, steps, None

    def __call__(self, event: str, data: dict) -> None:
        if event == "progress" and data["node"] == "sampler" and data["value"] >= self.steps and self.at is None:
            self.act()
            self.at = time.monotonic()


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and that live."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def patience() -> float:
    """Return `SENTENCE` for a machine on which so many other processes run."""
    return SENTENCE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def command(pid: int) -> bytes:
    """The command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def listening(pid: int) -> list[str]:
    """The addresses on which a process listens, on its own host."""
    links = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # it was closed meanwhile
            links.add(os.readlink(path))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return [address(row[1].split(":")[0]) for row in rows if row[3] == LISTENS and f"socket:[{row[9]}]" in links]


def address(text: str) -> str:
    """An address as /proc/net has it, in words of four bytes, as people write it."""
    words = [text[start : start + 8] for start in range(0, len(text), 8)]
    found = ip_address(b"".join(int(word, 16).to_bytes(4, "little") for word in words))
    return str(getattr(found, "ipv4_mapped", None) or found)


def await_true(condition, within: float) -> bool:
    """Whether `condition` comes true within so many seconds."""
    end = time.monotonic() + within
    while not (is_true := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return is_true


def assert_nothing_left(place: Place, pids: list[int]) -> None:
    """No process of the group, no port but the server's own, no temporary file, no shared memory."""
    assert await_true(lambda: not any(map(command, pids)), ENDING), [command(pid) for pid in pids]
    assert await_true(lambda: len(listening(place.server.pid)) == 1, ENDING), listening(place.server.pid)
    assert await_true(lambda: not list(place.temporary.glob("wan-parallel*")), ENDING), list(place.temporary.iterdir())
    names = [path.name for path in Path("/dev/shm").glob("*")]
    assert not [name for name in names for pid in (*pids, place.server.pid) if f"_{pid}" in name]
