"""Processes 1 and up: each does what process 0 says, until that ends it or is gone."""

import itertools
import logging
import os
import shutil
import threading
import time
from datetime import timedelta

import comfy.model_management
import torch
from torch.distributed import DistStoreError, PrefixStore

from .. import compat
from . import link, wire
from .following import Models
from .start import Setup
from .tiles import Decodes
from .version import LOADED

BEAT = 0.5  # seconds
LOOKED = timedelta(minutes=10)  # how often an idle process asks the store again


def connect(setup: Setup) -> PrefixStore:
    """Return a connection of its own to the store of the group."""
    return wire.connect(setup.address, setup.port, setup.name, LOOKED)


def serve(setup: Setup, rank: int) -> None:
    """Run process `rank` until process 0 ends it or is gone."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    store = connect(setup)
    with Report(store, rank), torch.inference_mode():
        device = comfy.model_management.get_torch_device()
        hello = {"pid": os.getpid(), "version": LOADED, "device": str(device)}
        wire.put(store, f"hello/{rank}", hello)
        pulse = Pulse(connect(setup), rank, setup.logs)
        answer_all(store, link.Link(store, rank, setup.size, device, pulse.wait, setup.own))


def answer_all(store: PrefixStore, connections: link.Link) -> None:
    """Do what each message of process 0 says, and answer those that want an answer."""
    operations = Models(connections).operations | Decodes(connections).operations
    for number in itertools.count():
        ask = await_message(store, f"ask/{number}")
        answer = operations[ask["op"]](ask)
        if answer is not None:
            wire.put(store, f"answer/{number}/{connections.rank}", answer)


def await_message(store: PrefixStore, key: str) -> dict:
    """Return the message `key`, whenever it comes."""
    while not store.check([key]):
        try:
            store.wait([key], LOOKED)
        except DistStoreError:
            logging.debug("Nothing to do.")
    return wire.take(store, key)


class Report:
    """Tells process 0 why this process ends, where an error ends it."""

    def __init__(self, store, rank: int):
        self.store, self.rank = store, rank

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or isinstance(error, wire.Ended):
            return
        memory = isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
        wire.put(self.store, f"fault/{self.rank}", {"kind": "memory" if memory else kind.__name__, "text": str(error)})


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` is for want of memory."""
    return isinstance(error, MemoryError) or compat.is_out_of_memory(error) or "can't allocate memory" in str(error)


class Pulse:
    """Tells process 0 twice a second that this process is alive, and how far it is."""

    def __init__(self, store, rank: int, logs: str):
        self.store, self.rank, self.logs, self.waits, self.is_waiting = store, rank, logs, 0, True
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Beat until process 0 is gone, which may have left its logs; then end the process: it may wait for ever."""
        beats = 0
        try:
            while True:
                self.store.set(f"beat/{self.rank}", f"{beats} {self.waits} {int(self.is_waiting)}")
                beats += 1
                time.sleep(BEAT)
        except wire.Ended:
            shutil.rmtree(self.logs, ignore_errors=True)
            os._exit(1)

    def wait(self, work) -> None:
        """Wait for a collective."""
        self.is_waiting = True
        work.wait()
        self.is_waiting = False
        self.waits += 1
