"""What the live preview costs a run, by who listens: `python3 dev.py bench preview`.

Samples the demo family on a running server; the result goes into a section of its own in benchmarks/results.md.
"""

import asyncio
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

import bench
import aiohttp
import page
from bench import COMFYUI, DEVICE, log

from devtools import host
from devtools.client import Client
from devtools.demo import FAMILY
from devtools.server import Server

TURNS = {"quick": 1, "default": 15, "full": 15}
SIZE = {"width": 128, "height": 128, "length": 17, "batch_size": 1}
STEPS = 20
CLIP = "{width}x{height}, {length} frames".format(**SIZE)
NOTE = f"""The demo family's text-to-video model, {CLIP}, {STEPS} steps, on a running server; runs take turns. Nobody:
the prompt is queued without a client, so there is no preview. Editor: a client reads every event and fetches every
picture. Never reads: a client keeps its socket open and reads nothing, so that what is sent piles up. Seconds: median
of {{turns}} runs after the models are loaded, as the server's history has them; spread: from the lower to the upper
quartile."""
COLUMNS = ["who listens", "seconds", "spread", "against nobody"]


def prompt(seed: int) -> dict:
    """A run of the sampler alone, whose latent is kept."""
    t2v, _, umt5, vae = FAMILY
    run = {"steps": STEPS, "guidance": 4.0, "shift": 3.0, "solver": "euler", "seed": seed, "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0]}
    nodes = {
        "clip": ("WanTextEncoderLoader", {"text_encoder_name": umt5}),
        "text": ("WanTextEncode", {"clip": ["clip", 0], "positive": "a red circle grows", "negative": ""}),
        "model": ("WanModelLoader", {"model_name": t2v, "weight_dtype": "float32"}),
        "vae": ("WanVAELoader", {"vae_name": vae, "decode_dtype": "auto", "encode_dtype": "auto"}),
        "latent": ("WanEmptyLatent", {"vae": ["vae", 0], **SIZE}),
        "sampler": ("WanSampler", links | run),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "bench"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def seconds(client: Client, prompt_id: str) -> float:
    """What the run of a prompt took, once it is done."""
    while not (history := client.get(f"/history/{prompt_id}")):
        time.sleep(0.2)
    stamps = {name: data["timestamp"] for name, data in history[prompt_id]["status"]["messages"]}
    return (stamps["execution_success"] - stamps["execution_start"]) / 1000


def nobody(url: str, seed: int) -> float:
    """A run without a client."""
    client = Client(url)
    return seconds(client, client.post("/prompt", {"prompt": prompt(seed)})["prompt_id"])


def editor(url: str, seed: int) -> float:
    """A run whose client reads every event and fetches every picture."""

    async def play() -> str:
        name = uuid.uuid4().hex
        async with aiohttp.ClientSession(url) as session, session.ws_connect(f"/ws?clientId={name}") as events:
            async with session.post("/prompt", json={"prompt": prompt(seed), "client_id": name}) as reply:
                prompt_id = (await reply.json())["prompt_id"]
            pictures = 0
            async for message in events:
                if message.type is aiohttp.WSMsgType.BINARY:
                    continue
                event, data = message.json()["type"], message.json()["data"]
                if event == "wan.preview":
                    async with session.get(data["picture"]) as picture:
                        pictures += len(await picture.read()) > 0
                if event == "execution_success":
                    assert pictures == STEPS, f"{pictures} pictures came in {STEPS} steps"
                    return prompt_id

    return seconds(Client(url), asyncio.run(play()))


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
        return seconds(client, client.post("/prompt", {"prompt": prompt(seed), "client_id": name})["prompt_id"])


LISTENERS = {"nobody": nobody, "editor": editor, "never reads": never_reads}


def main() -> None:
    """Measure all and write the section."""
    options = bench.begin(bench.parser(__doc__))
    comfyui, times = host.locate(COMFYUI), {name: [] for name in LISTENERS}
    with tempfile.TemporaryDirectory(prefix="wan-bench-") as folder:
        host.prepare_base(Path(folder))
        with Server(sys.executable, comfyui.folder, Path(folder), cpu=DEVICE.type == "cpu") as server:
            nobody(server.url, 0)  # loads the models
            for turn in range(TURNS[options.preset]):
                for place, (name, run) in enumerate(LISTENERS.items()):
                    times[name].append(run(server.url, 1 + turn * len(LISTENERS) + place))
                log.info("%s", {name: round(taken[-1], 3) for name, taken in times.items()})
    alone, rows = statistics.median(times["nobody"]), []
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else 3 * taken
        rows.append([name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{middle / alone - 1:+.1%}"])
        log.info("%s", " | ".join(rows[-1]))
    note = NOTE.format(turns=TURNS[options.preset])
    bench.write(options, "Live preview", f"ComfyUI {comfyui.version}", note, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
