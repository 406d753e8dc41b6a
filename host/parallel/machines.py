"""Orders to other machines, on which join.py runs, and their answers, before and beside the work of a group."""

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import socket
import uuid
from pathlib import Path

import folder_paths
from torch.distributed import PrefixStore, Store

from . import version, wire
from .link import LOOPBACK

PORT = 29555  # of the store, where other machines are named
PORT_VARIABLE = "WAN_PARALLEL_PORT"
NONCE = "wan-parallel"  # the one key that is not of a group: what makes its name, with the token
TOKEN = "wan-parallel-token"  # file in the host's user folder
JOINING = 8.0  # seconds until join.py has answered; it looks for a group twice a second


@dataclasses.dataclass(frozen=True)
class Order:
    """A machine's part of a group of `size` processes. first: number of its first one.

    type: "cuda" or "cpu". numbers: of its cards; any, one for each process, on the CPU.
    """

    first: int
    size: int
    type: str
    numbers: list[int]


class Machine:
    """The processes of a group on the machine at `address`, as process 0 sees them by `store`, a connection of its own.

    own: address of process 0. It ends them by itself when it finds that the store is gone.
    """

    def __init__(self, store: PrefixStore, address: str, own: str):
        self.store, self.address, self.own = store, address, own

    @property
    def is_alive(self) -> bool:
        """Whether it has not said that one of its processes has ended, or itself."""
        try:
            return not self.store.check([f"left/{self.address}"])
        except wire.Ended:
            return False

    def logs(self) -> str:
        """Return what its processes said last, if it has sent that, or how it joins."""
        for key in ("left", "joined"):
            if self.store.check([f"{key}/{self.address}"]):
                return f"--- {self.address}\n{wire.take(self.store, f'{key}/{self.address}').get('logs', '')}"
        return f"On {self.address}, run this in the folder of ComfyUI: {command(self.own)}"


def addresses(hosts: list[str]) -> list[str]:
    """Return the addresses of these machines; raise ValueError for an unknown name, and two of one machine."""
    try:
        found = [socket.gethostbyname(host) for host in hosts]
    except OSError as error:
        raise ValueError(f"devices names the machines {', '.join(hosts)}, and one is not known: {error}.") from error
    if len(set(found)) < len(found):
        raise ValueError(f"devices names {', '.join(hosts)}, of which two are one machine: name it once.")
    return found


def own_address(others: list[str]) -> str:
    """Return the address by which other machines reach this one, loopback for none.

    Raise ValueError where they reach it by several, or not at all.
    """
    own = {_towards(other) for other in others} or {LOOPBACK}
    if len(own) > 1:
        raise ValueError(
            f"This machine has the addresses {', '.join(sorted(own))} for the machines {', '.join(others)}: name "
            "machines of one network."
        )
    return own.pop()


def _towards(other: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, PORT))  # sends nothing
        except OSError as error:
            raise ValueError(f"The machine {other} is on no network of this one: {error}.") from error
        return probe.getsockname()[0]


def port() -> int:
    """Return the port for other machines: `PORT`, or what the environment says."""
    return int(os.environ.get(PORT_VARIABLE, PORT))


def token() -> str:
    """Return the secret that the user gives to join.py, made once for an installation."""
    path = Path(folder_paths.get_user_directory()) / TOKEN
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(16))
    return path.read_text(encoding="utf-8").strip()


def command(own: str) -> str:
    """Return what the user runs on another machine."""
    return f"python custom_nodes/{version.PACK.name}/join.py {own}:{port()} --token {token()}"


def announce(server: Store, orders: dict[str, Order]) -> str:
    """Put the orders of machines, by address, into the store for them, and return the name of the group."""
    nonce = uuid.uuid4().hex
    if not orders:
        return nonce
    name = _keyed(token(), nonce)
    for address, order in orders.items():
        text = json.dumps(dataclasses.asdict(order))
        signed = {"order": text, "signature": _keyed(token(), name + address + text)}
        wire.put(PrefixStore(name, server), f"order/{address}", signed)
    wire.put(server, NONCE, {"nonce": nonce})
    return name


def find(server: Store, token: str, address: str) -> tuple[str, Order | None]:
    """Return the name of the group in the store and the order for the machine at `address`, None if there is none.

    Raise ValueError for an order that was not made with this token.
    """
    name = _keyed(token, wire.take(server, NONCE)["nonce"])
    group = PrefixStore(name, server)
    if not group.check([f"order/{address}"]):
        return name, None
    signed = wire.take(group, f"order/{address}")
    if not hmac.compare_digest(_keyed(token, name + address + signed["order"]), signed["signature"]):
        raise ValueError(f"The order for {address} was not made with this token.")
    return name, Order(**json.loads(signed["order"]))


def _keyed(token: str, text: str) -> str:
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()
