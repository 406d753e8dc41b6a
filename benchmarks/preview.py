"""Cost of the live preview for a run, by kind of client: `python3 dev.py bench preview`.

Samples the demo family on a running server; the result goes into a section of its own in benchmarks/results.md.
"""

import base64
import os
import socket
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import bench
import page
from bench import COMFYUI, DEVICE, log

from devtools import host
from devtools.client import Client
from devtools.server import Server
from tiny import GUIDANCE, SHIFT, family

TURNS = {"quick": 2, "default": 30, "full": 30}
LEAST = (64, 1.0, 100)  # side in pixels, guidance, steps: a step with as little work as there is
SMALL = (256, GUIDANCE, 5)  # what the last column compares with
NOTE = """The demo family's text-to-video model, {least[0]}x{least[0]}, 17 frames, {least[2]} steps without guidance,
on a running server: the least work that a step can be, so that what is sent shows. Runs take turns. Nobody: the prompt
is queued without a client, so there is no preview. Editor: a client reads every event and fetches every picture. Never
reads: a client keeps its socket open and reads nothing, so that what is sent piles up. Times are those of the server's
history, the least of {turns} runs, since other work on the machine only adds; the quartiles show how much it adds. The
last column is the addition against a step of {small[0]}x{small[0]} with guidance, {step:.0f} ms, small work as well."""
COLUMNS = ["who listens", "ms a step", "quartiles", "more than nobody (ms)", "part of a small step"]


def prompt(seed: int, work: tuple[int, float, int]) -> dict:
    """A run of the sampler alone, whose latent is kept; work: side, guidance and steps."""
    t2v, umt5, vae = (family.path(kind).name for kind in ("t2v", "umt5", "vae"))
    side, guidance, steps = work
    size = {"width": side, "height": side, "length": 17, "batch_size": 1}
    run = {"steps": steps, "guidance": guidance, "shift": SHIFT, "solver": "euler", "seed": seed, "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0]}
    nodes = {
        "clip": ("WanTextEncoderLoader", {"text_encoder_name": umt5}),
        "text": ("WanTextEncode", {"clip": ["clip", 0], "positive": "a red circle grows", "negative": ""}),
        "model": ("WanModelLoader", {"model_name": t2v, "weight_dtype": "float32"}),
        "vae": ("WanVAELoader", {"vae_name": vae, "decode_dtype": "auto", "encode_dtype": "auto"}),
        "latent": ("WanEmptyLatent", {"vae": ["vae", 0], **size}),
        "sampler": ("WanSampler", links | run),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "bench"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def took(stamps: dict[str, int]) -> float:
    """Seconds of a run, from its events' times."""
    return (stamps["execution_success"] - stamps["execution_start"]) / 1000


def seconds(client: Client, prompt_id: str) -> float:
    """Return the seconds that the run of a prompt took, once it is done."""
    while not (history := client.get(f"/history/{prompt_id}")):
        time.sleep(0.2)
    return took({name: data["timestamp"] for name, data in history[prompt_id]["status"]["messages"]})


def nobody(url: str, seed: int, work: tuple[int, float, int] = LEAST) -> float:
    """A run without a client."""
    client = Client(url)
    return seconds(client, client.post("/prompt", {"prompt": prompt(seed, work)})["prompt_id"])


def editor(url: str, seed: int) -> float:
    """A run whose client reads every event and fetches every picture."""
    stamps, pictures = {}, []

    def note(event: str, data: dict) -> None:
        if "timestamp" in data:
            stamps[event] = data["timestamp"]
        if event == "wan.preview":
            with urlopen(url + data["picture"]) as picture:
                pictures.append(picture.read())

    Client(url).run(prompt(seed, LEAST), note)
    assert len(pictures) == LEAST[2] and all(pictures), f"{len(pictures)} pictures came in {LEAST[2]} steps"
    return took(stamps)


def never_reads(url: str, seed: int) -> float:
    """A run whose client opens its socket and never reads from it."""
    name, address = uuid.uuid4().hex, urlsplit(url)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect((address.hostname, address.port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /ws?clientId={name} HTTP/1.1", f"Host: {address.netloc}", "Connection: Upgrade"]
        lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", ""]
        deaf.sendall("\r\n".join(lines).encode())
        assert deaf.recv(12) == b"HTTP/1.1 101"
        client = Client(url)
        return seconds(client, client.post("/prompt", {"prompt": prompt(seed, LEAST), "client_id": name})["prompt_id"])


LISTENERS = {"nobody": nobody, "editor": editor, "never reads": never_reads}


def main() -> None:
    """Measure all and write the section."""
    options = bench.begin(bench.parser(__doc__))
    comfyui, times = host.locate(COMFYUI), {name: [] for name in LISTENERS}
    with tempfile.TemporaryDirectory(prefix="wan-bench-") as folder:
        host.prepare_base(Path(folder))
        with Server(sys.executable, comfyui.folder, Path(folder), cpu=DEVICE.type == "cpu") as server:
            nobody(server.url, 0)  # loads the models
            small = min(nobody(server.url, seed, SMALL) for seed in range(3)) / SMALL[2]
            for turn in range(TURNS[options.preset]):
                for place, (name, run) in enumerate(LISTENERS.items()):
                    times[name].append(run(server.url, 1 + turn * len(LISTENERS) + place) / LEAST[2])
                log.info("%s", {name: round(taken[-1], 4) for name, taken in times.items()})
    alone, rows = min(times["nobody"]), []
    for name, taken in times.items():
        low, _, high = statistics.quantiles(taken, n=4)
        more = min(taken) - alone
        spread = f"{1000 * low:.1f} to {1000 * high:.1f}"
        rows.append([name, f"{1000 * min(taken):.1f}", spread, f"{1000 * more:.1f}", f"{more / small:.1%}"])
        log.info("%s", " | ".join(rows[-1]))
    note = NOTE.format(least=LEAST, small=SMALL, turns=TURNS[options.preset], step=1000 * small)
    bench.write(options, "Live preview", f"ComfyUI {comfyui.version}", note, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
