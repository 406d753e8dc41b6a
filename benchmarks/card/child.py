"""The process that runs items of one group: `gpu.py child GROUP SECONDS OUT HOW KEY NAME...`, started by `gpu.py`.

It adds a line to OUT/GROUP.begun before each item and one to OUT/results.jsonl after it, at once, so that what is there
survives whatever comes next. Exit status: 3 if the device is lost.
"""

import gc
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .items import CHECKS, ITEMS, Here, Item, Skip

LOST = 3  # exit status
FRAMES = -14  # of a traceback that are kept


@dataclass(frozen=True)
class Notes:
    """The files of one group in a run. key: what its results must share to count as done."""

    folder: Path
    group: str
    key: str

    def begin(self, name: str) -> None:
        """Note that an item begins."""
        self.add(f"{self.group}.begun", name)

    def keep(self, row: dict) -> None:
        """Note the result of an item."""
        self.add("results.jsonl", json.dumps({"key": self.key, **row}, default=str))

    def add(self, name: str, line: str) -> None:
        """Add a line to a file in one write."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(item: Item, here: Here) -> dict:
    """Run an item; return its name, state ("pass", "FAIL" or "skip"), what was found, seconds, and a traceback."""
    start, row = time.perf_counter(), {"item": item.name, "group": item.group}
    try:
        with torch.inference_mode():
            row |= {"state": "pass", "found": item.run(here)}
    except Skip as reason:
        row |= {"state": "skip", "found": str(reason)}
    except Exception as error:  # noqa: BLE001, each item stands alone
        text = (str(error) or repr(error)).splitlines()[0][:400]
        row |= {"state": "FAIL", "found": f"{type(error).__name__}: {text}"}
        row["traceback"] = traceback.format_exc(limit=FRAMES)
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def clear(device: torch.device) -> bool:
    """Free what the last item left on the device; return whether the device still works."""
    gc.collect()
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.zeros(1, device=device).item() == 0
    except RuntimeError:
        return False


def run_all(names: list[str], here: Here, notes: Notes, seconds: float) -> int:
    """Run items until the time is over; return the exit status."""
    end = time.monotonic() + seconds
    for name in names:
        item = ITEMS[name]
        if time.monotonic() + (0 if here.dry else item.seconds) > end:
            continue
        notes.begin(name)
        row = run(item, here)
        notes.keep(row)
        logging.getLogger("bench").info("%s %s (%s s): %s", row["state"], name, row["seconds"], row["found"])
        if not clear(here.device):
            return LOST
    return 0


def start_host(group: str, folder: Path, dry: bool) -> tuple[Callable, Callable]:
    """Import the host as its main.py does and load the pack into it; return its `room` and `node`."""
    import bench

    options = ["--base-directory", str(folder)]
    options += ["--use-pytorch-cross-attention"] if group not in CHECKS else []
    turn_on = None
    if group == "dynamic":
        from .dynamic import begin

        turn_on = begin(dry)
    bench.start_comfyui(*options)
    __import__("utils.extra_config")
    room = bench.load_pack()
    if turn_on is not None:
        turn_on()
    return room, bench.run_node


def main() -> int:
    """Run what the command line says."""
    group, seconds, out, how, key, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="wan-gpu-") as folder:
        return run_group(Notes(Path(out), group, key), float(seconds), how == "dry", names, Path(folder))


def run_group(notes: Notes, seconds: float, dry: bool, names: list[str], folder: Path) -> int:
    """Set the process up for a group and run items of it."""
    import bench

    end = time.monotonic() + seconds
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    room = node = None
    if notes.group != "models":
        try:
            room, node = start_host(notes.group, folder, dry)
        except Skip as reason:
            for name in names:
                row = {"item": name, "group": notes.group, "state": "skip", "found": str(reason), "seconds": 0}
                notes.keep(row)
            return 0
    if notes.group in CHECKS:
        torch.backends.cudnn.allow_tf32 = False  # it is cuDNN's choice and not ours, and errs by 1e-3
    if dry:
        torch.set_num_threads(1)
    here = Here(torch.device("cpu") if dry else bench.DEVICE, dry, folder, room, node)
    return run_all(names, here, notes, end - time.monotonic())
