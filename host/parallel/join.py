"""Another machine's side: it waits for groups of a ComfyUI that name it, and starts its processes for each."""

import itertools
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from comfy.cli_args import args
from torch.distributed import PrefixStore, TCPStore
from utils import extra_config

from ... import DEMO_MODELS
from .. import files
from . import machines, version, wire
from .launch import Launch, visible

LOOK = 0.5  # seconds between two looks for a group, and between two beats
ANSWER = 7.0  # seconds in which ComfyUI's machine answers, or is gone


@dataclass(frozen=True)
class Found:
    """A group that names this machine. host, port, name: of its store, and of it there. own: this machine's address."""

    host: str
    port: int
    name: str
    own: str
    order: machines.Order

    def connect(self) -> PrefixStore:
        """Return a connection of its own to the store; raise an error of `wire` if the group has ended."""
        return wire.connect(self.host, self.port, self.name, timedelta(seconds=ANSWER))


class Beats:
    """A thread that shows ComfyUI twice a second that this machine is there, and finds when ComfyUI is gone.

    store: a connection of its own, on which a question waits as long as the network is gone.
    """

    def __init__(self, store: PrefixStore, own: str):
        self.store, self.key, self.last = store, f"beat/{own}", time.monotonic()
        threading.Thread(target=self.run, daemon=True).start()

    @property
    def are_heard(self) -> bool:
        """Whether ComfyUI has answered lately."""
        return time.monotonic() - self.last < ANSWER

    def run(self) -> None:
        """Beat until the group has ended."""
        try:
            for number in itertools.count():
                self.store.set(self.key, f"{number} 0 1")
                self.store.get(self.key)
                self.last = time.monotonic()
                time.sleep(LOOK)
        except wire.Ended:
            self.last -= ANSWER


def run(address: str, token: str) -> None:
    """Take part in the groups of the ComfyUI at `address`, "ADDRESS" or "ADDRESS:PORT", until the user ends it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is ignored where a script starts this in the background
        signal.signal(number, signal.default_int_handler)
    prepare_host()
    host, _, port = address.partition(":")
    try:
        look(host, int(port or machines.PORT), token)
    except KeyboardInterrupt:
        logging.info("This machine takes part no more.")


def prepare_host() -> None:
    """Have the host's folders and cards as its own options say, as ComfyUI does when it starts."""
    if args.cuda_device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(args.cuda_device)
    configs = [path for path in ("extra_model_paths.yaml",) if os.path.isfile(path)]
    for path in (*configs, *itertools.chain(*(args.extra_model_paths_config or []))):
        extra_config.load_extra_path_config(path)
    files.offer(DEMO_MODELS)


def look(host: str, port: int, token: str) -> None:
    """Look for groups and take part in each, until the process is interrupted."""
    logging.info("This machine waits for runs of the ComfyUI at %s, port %d. Ctrl-C ends it.", host, port)
    last = said = None
    while True:
        found, trouble = find(host, port, token)
        if trouble not in (None, said):
            logging.info(trouble)
        said = trouble
        if found is not None and found.name != last:
            last = found.name
            take_part(found)
        time.sleep(LOOK)


def find(host: str, port: int, token: str) -> tuple[Found | None, str | None]:
    """Return the group that runs now and names this machine, or None; and why it does not, where one runs."""
    try:
        with socket.create_connection((host, port), ANSWER) as probe:
            own = probe.getsockname()[0]
        server = TCPStore(host, port, None, False, timeout=timedelta(seconds=ANSWER), wait_for_workers=False)
        name, order = machines.find(server, token, own)
    except (OSError, *wire.Ended):  # no group runs
        return None, None
    except (ValueError, KeyError, TypeError) as error:  # it is no store of ComfyUI's
        return None, f"What runs at {host}, port {port}, is not ComfyUI with this token: {error}"
    if order is None:
        return None, (
            f"ComfyUI runs a group without {own}, or with another token: name {own} in devices, and give the token "
            "that its log shows."
        )
    return Found(host, port, name, own, order), None


def take_part(found: Found) -> None:
    """Run this machine's processes of a group until it ends, or one of them does."""
    order, problem = found.order, unfit(found.order)
    try:
        store, beats = found.connect(), Beats(found.connect(), found.own)
        wire.put(store, f"joined/{found.own}", {"version": version.LOADED, "error": problem})
    except wire.Ended:
        return
    if problem:
        logging.error("This machine cannot take part: %s.", problem)
        return
    devices = [visible(order.type, number) for number in order.numbers]
    logging.info("A group begins, with %d of its processes here.", len(devices))
    place = found.host, found.port, found.name, found.own
    processes = Launch(devices, order.first, order.size, *place, cpu=order.type == "cpu")
    try:
        while processes.is_alive and beats.are_heard:
            time.sleep(LOOK)
        logging.info("The group has ended. Its processes here said:\n%s", processes.logs())
    finally:
        with suppress(wire.Ended):
            wire.put(store, f"left/{found.own}", {"logs": processes.logs()})
        processes.kill()
        processes.close()


def unfit(order: machines.Order) -> str:
    """Return why this machine cannot do its part of a group, "" if it can."""
    count = torch.cuda.device_count() if order.type == "cuda" else 0
    if order.type == "cuda" and max(order.numbers) >= count:
        return f"devices names its cards {order.numbers} and it has {count}, numbered from 0"
    return ""
