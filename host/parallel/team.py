"""Process 0's side of a group: it starts the others, tells them what to do, and works with them."""

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import comfy.model_management
import torch
from torch.distributed import PrefixStore, TCPStore

from . import link, machines, version, wire
from .devices import Devices
from .launch import Launch, visible
from .watch import Watch

STARTING = 300.0  # seconds until all processes have said hello
LOADING = 1800.0  # seconds in which a model is loaded
PAUSE = 0.01  # seconds between two looks for an answer
AGAIN = " Run the prompt again: the processes are started anew."
GRACE = 1.5  # seconds in which a process that ends may still say why


class TeamError(RuntimeError):
    """The group has failed. The next run makes a new one."""


class Team:
    """A running group on `devices`; raise TeamError if it does not start, ValueError for machines that are not there.

    launch: its other processes on this machine, None if there are none. machines: the other machines.
    """

    def __init__(self, devices: Devices):
        self.devices, self.lock, self.asked, self.fault = devices, threading.RLock(), 0, ""
        self.is_open, self.loaded = True, {}  # patches that the others have, by the model's description
        self.is_lent = False  # to a decode that goes on when its next frames are asked for
        others = machines.addresses([machine.host for machine in devices.machines])
        self.own = machines.own_address(others)
        if devices.type == "cuda":
            link.use_interface(self.own)
        self.server = self._serve()
        self.name = machines.announce(self.server, dict(zip(others, self._orders(), strict=True)))
        self.store = PrefixStore(self.name, self.server)
        self.launch = self._launched()
        self.machines = [machines.Machine(self._connect(), address, self.own) for address in others]
        beats = {f"beat/{address}": f"The machine {address}" for address in others}
        beats |= {f"beat/{rank}": self.process(rank) for rank in range(1, devices.size)}
        self.watch = Watch(self._connect(), lambda: self.is_alive, beats, self._end)
        atexit.register(self.close)
        self._begin(others)

    @property
    def is_alive(self) -> bool:
        """Whether none of the other processes has ended."""
        return all(part.is_alive for part in (self.launch, *self.machines) if part is not None)

    def process(self, rank: int) -> str:
        """Return the name of the process `rank`, for messages."""
        return f"Process {rank} (on {self.devices.name(rank)})"

    def _serve(self) -> TCPStore:
        """Return the server of the store, which listens on this machine alone where no other is named."""
        port = machines.port() if self.devices.machines else 0
        try:
            return wire.serve(self.own, port)
        except OSError as error:
            raise ValueError(
                f"Port {port} of {self.own}, where other machines meet ComfyUI, is taken: end the other ComfyUI, or "
                f"set the environment variable {machines.PORT_VARIABLE} to another port."
            ) from error

    def _orders(self) -> Iterator[machines.Order]:
        """Yield what each other machine is to start."""
        first = len(self.devices.numbers)
        for machine in self.devices.machines:
            yield machines.Order(first, self.devices.size, self.devices.type, list(machine.numbers))
            first += len(machine.numbers)

    def _launched(self) -> Launch | None:
        """Start the other processes of this machine, if there are any."""
        own = [visible(self.devices.type, number) for number in self.devices.numbers[1:]]
        return Launch(own, 1, self.devices.size, self.own, self.server.port, self.name, self.own) if own else None

    def _connect(self, patience: timedelta = timedelta(seconds=10)) -> PrefixStore:
        """Return a connection to the store, which does not keep the server."""
        return wire.connect(self.own, self.server.port, self.name, patience)

    def _begin(self, addresses: list[str]) -> None:
        """Meet the other machines and processes."""
        start, others = time.monotonic(), range(1, self.devices.size)
        for address in addresses:
            self._admit(address)
        hellos = [self._take(f"hello/{rank}", STARTING) for rank in others]
        if self.launch is not None:
            self.launch.pids = [hello["pid"] for hello in hellos[: len(self.devices.numbers) - 1]]
        for rank, hello in zip(others, hellos, strict=True):
            if hello["version"] != version.LOADED:
                self._fail(f"Process {rank} has another version of Wan Stream than ComfyUI: restart ComfyUI", again="")
        device = comfy.model_management.get_torch_device()
        self.link = link.Link(self._connect(link.CONNECT), 0, self.devices.size, device, self.wait, self.own)
        names = ", ".join(self.devices.name(rank) for rank in range(self.devices.size))
        logging.info("Wan Parallel: %d processes (%s), %.1f s.", self.devices.size, names, time.monotonic() - start)

    def _admit(self, address: str) -> None:
        """Wait until the machine at `address` has joined; raise TeamError where it does not or cannot."""
        missing = f"The machine {address} has not joined: run there what the log of ComfyUI shows, and leave it running"
        answer = self._take(f"joined/{address}", machines.JOINING, missing)
        if answer["version"] != version.LOADED:
            self._fail(
                f"The machine {address} has another version of Wan Stream than ComfyUI: copy the folder of the pack, "
                "and start join.py and ComfyUI again",
                again="",
            )
        if answer["error"]:
            self._fail(f"The machine {address} cannot join: {answer['error']}", again="")

    def ask(self, op: str, tensors=(), **content) -> int:
        """Send message `op` to all others; its tensors must follow. Return its number. Raise TeamError if it cannot."""
        self.check()
        if self.is_lent:
            raise TeamError("The processes of Wan Parallel are in the middle of a decode: run the prompt again.")
        number, self.asked = self.asked, self.asked + 1
        wire.put(self.store, f"ask/{number}", {"op": op, "tensors": wire.described(tensors), **content})
        self.store.delete_key(f"ask/{number - 2}")  # all have read it
        return number

    def check(self) -> None:
        """Raise TeamError if the group has ended, with the reason if that was not by `close`."""
        if self.fault and self.is_open:
            self._fail("")
        if not self.is_open:
            raise TeamError("The processes of Wan Parallel have ended: run the prompt again.")

    def answers(self, number: int) -> list[dict]:
        """Return the answers of all others to message `number`."""
        return [self._take(f"answer/{number}/{rank}", LOADING) for rank in range(1, self.devices.size)]

    def wait(self, work) -> None:
        """Wait for a collective; raise TeamError if another process fails."""
        self.watch.begin()
        try:
            work.wait()
        except RuntimeError as error:
            self._fail("", error)
        finally:
            self.watch.finish()

    def finish(self, result: torch.Tensor) -> None:
        """Wait until the `result` of a forward is there: on a card it is only begun."""
        if result.device.type == "cuda":
            self.watch.begin()
            torch.cuda.current_stream(result.device).synchronize()
            self.watch.finish()

    def close(self) -> None:
        """End the group: all processes, ports and files."""
        with self.lock:
            if not self.is_open:
                return
            self.is_open = False
            self.watch.stop()
            if self.launch is not None:
                self.launch.kill()
                self.launch.close()
            self.link = self.store = self.server = None
            atexit.unregister(self.close)

    def _take(self, key: str, patience: float, missing: str = "") -> dict:
        """Return the message `key` of another process once it is there. missing: the sentence if it does not come."""
        self.watch.begin(patience)
        end = time.monotonic() + patience
        while not self.store.check([key]):
            if comfy.model_management.processing_interrupted():
                self.close()
                comfy.model_management.throw_exception_if_processing_interrupted()
            if self.fault or not self.is_alive:
                self._fail("")
            if time.monotonic() > end:
                self._fail(missing or f"Nothing was heard of {key} for {patience:.0f} seconds")
            time.sleep(PAUSE)
        self.watch.finish()
        return wire.take(self.store, key)

    def _end(self, reason: str) -> None:
        """Have what waits for the others fail, because of `reason`: called by `watch`."""
        self.fault = self.fault or reason
        if self.launch is not None:
            self.launch.kill()
        if getattr(self, "link", None) is not None:
            self.link.close()

    def _fail(self, reason: str, error: Exception | None = None, again: str = AGAIN) -> None:
        """Close the group and raise TeamError. again: what to do."""
        reason = reason or self._reason()
        logging.error("Wan Parallel: %s. Its processes said:\n%s", reason, self._logs())
        self.close()
        raise TeamError(f"{reason}.{again}") from error

    def _logs(self) -> str:
        """Return what the other processes said last."""
        return "\n".join(part.logs() for part in (self.launch, *self.machines) if part is not None)

    def _reason(self) -> str:
        """Return why the group has failed, as far as the processes could say it."""
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            for rank in range(1, self.devices.size):
                if self.store.check([f"fault/{rank}"]):
                    return self._said(rank, **wire.take(self.store, f"fault/{rank}"))
            if self.fault not in ("", "ended"):
                return self.fault
            time.sleep(PAUSE)
        return "A process of Wan Parallel has ended, and the log says what it said last"

    def _said(self, rank: int, kind: str, text: str) -> str:
        """Return the last words of the process `rank`."""
        name = self.process(rank)
        if kind == "memory":
            return f"{name} ran out of memory: choose a smaller size or a shorter clip, or take this device out"
        return f"{name} failed with {kind}: {text.rstrip('.')}"


_running: dict[Devices, Team] = {}  # one at most


def running(devices: Devices) -> Team:
    """Return the group on `devices`, started if need be; one on other devices ends."""
    team = _running.get(devices)
    if team is not None and team.is_open and team.is_alive:
        return team
    for other in (*_running.values(),):
        other.close()
    _running.clear()
    _running[devices] = Team(devices)
    return _running[devices]
