"""The connections of one process with the others of its group."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import psutil
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store

from ...wan_model.parallel import Group, Mesh

LOOPBACK = "127.0.0.1"
CONNECT = timedelta(seconds=60)
SILENCE = timedelta(days=1)  # a wait ends when a process ends, and `watch` ends one that hangs
INTERFACE = "NCCL_SOCKET_IFNAME"  # variable: where NCCL listens, which it reads once in a process
KEPT_ALIVE = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # 0: it must not end the process if another one fails; `watch` does more
CANCEL, ERROR = 1, 1000  # flags of `agree`, which are summed


class Link:
    """Groups of process `rank` of `size`.

    control: on the CPU. data: for tensors on `device`, of NCCL where that is a card. wait: as in `Group`. address: of
    this machine, for the others.
    """

    def __init__(
        self, store: Store, rank: int, size: int, device: torch.device, wait: Callable, address: str = LOOPBACK
    ):
        self.address, self.connections = address, set()  # the connections of gloo, as `sockets` has them
        self.store, self.rank, self.size, self.device, self.wait = store, rank, size, device, wait
        self.control = Group(self._gloo("control", rank, size), wait)
        self.data = self.control if device.type == "cpu" else self._group("data", rank, size)
        self.meshes: dict[int, Mesh] = {}
        self.own: dict[str, Group] = {}  # the other groups of all processes

    def mesh(self, rows: int) -> Mesh:
        """Return the mesh of so many rows, of the same length each. All processes ask for it in the same order."""
        if rows not in self.meshes:
            length = self.size // rows
            row, place = divmod(self.rank, length)
            of_row = self.data if rows == 1 else self._group(f"row/{rows}/{row}", place, length)
            self.meshes[rows] = Mesh(self.data, of_row)
        return self.meshes[rows]

    @property
    def weights(self) -> Group:
        """The group in which weights are lent. All processes ask for it first at the same point."""
        if "weights" not in self.own:
            self.own["weights"] = self._group("weights", self.rank, self.size)
        return self.own["weights"]

    def agree(self, flag: int) -> int:
        """Return the sum of the flags of all processes."""
        return int(self.control.sum(torch.tensor([flag])))

    def close(self) -> None:
        """End what still waits: gloo cannot, so its connections are cut."""
        for number, *_ in self.connections & sockets().keys():
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:  # it may be closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        rows = (mesh.row for mesh in self.meshes.values())
        for group in {id(g): g for g in (self.data, *self.own.values(), *rows)}.values():
            if self.device.type != "cpu":
                group.backend.abort()

    def _group(self, name: str, rank: int, size: int) -> Group:
        backend = self._gloo if self.device.type == "cpu" else self._nccl
        return Group(backend(name, rank, size), self.wait)

    def _gloo(self, name: str, rank: int, size: int) -> ProcessGroupGloo:
        before = sockets()
        served = {own.port for (_, own, _), state in before.items() if state == psutil.CONN_LISTEN}  # as the host's is
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname=self.address)]
        options._timeout = CONNECT
        group = ProcessGroupGloo(PrefixStore(name, self.store), rank, size, options)
        made = sockets().keys() - before.keys()
        self.connections |= {one for one in made if one[2] and one[1].port not in served}
        group.set_timeout(SILENCE)
        return group

    def _nccl(self, name: str, rank: int, size: int):
        from torch.distributed import ProcessGroupNCCL  # not in every build of torch

        os.environ.setdefault(KEPT_ALIVE, "0")
        use_interface(self.address)
        options = ProcessGroupNCCL.Options()
        options._timeout = SILENCE
        return ProcessGroupNCCL(PrefixStore(name, self.store), rank, size, options)


def sockets() -> dict[tuple, str]:
    """Return the TCP sockets of this process, as (number, own address, other's address), and their states."""
    found = psutil.Process().net_connections("tcp")
    return {(one.fd, one.laddr, one.raddr): one.status for one in found if one.laddr}


def use_interface(address: str) -> None:
    """Have NCCL listen where this machine has `address`; raise ValueError where it listens on loopback already."""
    names = [name for name, held in psutil.net_if_addrs().items() if address in [one.address for one in held]]
    if os.environ.setdefault(INTERFACE, names[0]) == "lo" != names[0]:
        raise ValueError(
            f"NCCL has begun on loopback here, and other machines are reached by {names[0]}: restart ComfyUI."
        )
