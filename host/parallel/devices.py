"""The devices of a group, from the words in the node."""

import re
import sys
from dataclasses import dataclass

import comfy.model_management
import torch

AUTO = "auto"
CPU = re.compile(r"cpu\s*x\s*(\d+)")
CARDS = re.compile(r"\d+(\s*,\s*\d+)*")
MACHINE = re.compile(r"([\w.-]+)\s*:\s*(.+)")
MOST_ON_CPU = MOST_THERE = 16


@dataclass(frozen=True)
class Machine:
    """Devices of another machine. host: its name or address. numbers: of the cards, as torch counts there."""

    host: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Devices:
    """Devices of this machine, ComfyUI's own first, then those of `machines`.

    type: "cuda" or "cpu". numbers: of the cards here, as torch counts.
    """

    type: str
    numbers: tuple[int, ...]
    machines: tuple[Machine, ...] = ()

    @property
    def size(self) -> int:
        """How many."""
        return len(self.numbers) + sum(len(machine.numbers) for machine in self.machines)

    def name(self, rank: int) -> str:
        """Return the name of the device of process `rank`, for messages."""
        places = [(number, "") for number in self.numbers]
        places += [(number, f" of {machine.host}") for machine in self.machines for number in machine.numbers]
        number, place = places[rank]
        return (f"cuda:{number}" if self.type == "cuda" else "cpu") + place


def parse(text: str) -> Devices:
    """Return the devices that `text` names: "auto", card numbers such as "0,1", or "cpu x2", and other machines.

    Each of these follows as "+ 192.168.1.5: 0,1". Raise ValueError for what this machine does not have, and what is not
    possible on it.
    """
    here, *others = text.strip().lower().split("+")
    devices = _here(here.strip())
    machines = tuple(_there(other.strip(), devices.type) for other in others)
    hosts = [machine.host for machine in machines]
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"devices names {', '.join(hosts)}: name each machine once, with all of its cards.")
    if machines and sys.platform == "win32":
        raise ValueError("Other machines need Linux on each of them: run ComfyUI in WSL 2, or name cards of this one.")
    return Devices(devices.type, devices.numbers, machines)


def _here(text: str) -> Devices:
    """Return the devices of this machine."""
    own = comfy.model_management.get_torch_device()
    count = torch.cuda.device_count() if own.type == "cuda" else 0
    if text == AUTO:
        return Devices(own.type, _like(own.index or 0, count))
    if match := CPU.fullmatch(text):
        return _on_cpu(int(match[1]), own)
    if not CARDS.fullmatch(text):
        raise ValueError(
            f"devices is '{text}': write auto, the numbers of cards such as 0,1, or cpu x2, and after them + "
            "192.168.1.5: 0,1 for each other machine."
        )
    return _cards([int(number) for number in text.split(",")], own, count)


def _there(text: str, type: str) -> Machine:
    """Return the devices of another machine, of the same `type` as those here."""
    host, cards = match.groups() if (match := MACHINE.fullmatch(text)) else ("", "")
    on_cpu = CPU.fullmatch(cards)
    if not host or not (on_cpu or CARDS.fullmatch(cards)):
        raise ValueError(
            f"devices has '{text}' for another machine: write its address and its cards, such as 192.168.1.5: 0,1, or "
            "192.168.1.5: cpu x2."
        )
    if bool(on_cpu) != (type == "cpu"):
        raise ValueError(f"devices has {cards} on {host} and {type} here: name cards on all machines, or the CPU.")
    numbers = range(int(on_cpu[1])) if on_cpu else [int(number) for number in cards.split(",")]
    if len(set(numbers)) < len(numbers) or not 1 <= len(numbers) <= MOST_THERE:
        raise ValueError(f"devices has '{cards}' on {host}: name 1 to {MOST_THERE}, each of them once.")
    return Machine(host, tuple(numbers))


def _like(first: int, count: int) -> tuple[int, ...]:
    """Return card `first` and those of `count` that are of its kind: a slower one would set the pace of all."""
    cards = range(count if sys.platform != "win32" else 0)
    names = {number: torch.cuda.get_device_name(number) for number in cards}
    return (first, *(number for number in cards if number != first and names[number] == names[first]))


def _on_cpu(count: int, own: torch.device) -> Devices:
    if own.type != "cpu":
        raise ValueError(
            f"devices is 'cpu x{count}' and ComfyUI runs on {own}: start ComfyUI with --cpu, or name cards."
        )
    if not 1 <= count <= MOST_ON_CPU:
        raise ValueError(f"devices is 'cpu x{count}': choose 1 to {MOST_ON_CPU} processes.")
    return Devices("cpu", tuple(range(count)))


def _cards(numbers: list[int], own: torch.device, count: int) -> Devices:
    if own.type != "cuda":
        raise ValueError(f"devices names cards and ComfyUI runs on {own.type}: write auto or cpu x2.")
    if len(set(numbers)) < len(numbers) or max(numbers) >= count:
        raise ValueError(
            f"devices names the cards {numbers} and ComfyUI sees {count}, numbered from 0: name each of these at most "
            "once. CUDA_VISIBLE_DEVICES and --cuda-device hide cards."
        )
    if numbers[0] != (own.index or 0):
        raise ValueError(
            f"devices begins with card {numbers[0]} and ComfyUI itself uses card {own.index or 0}: name that one first."
        )
    if len(numbers) > 1 and sys.platform == "win32":
        raise ValueError(
            "Several cards need NCCL, which Windows does not have: run ComfyUI in WSL 2, or write auto for one card."
        )
    return Devices("cuda", tuple(numbers))
