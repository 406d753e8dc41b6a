"""The processes of a group on one machine, started and supervised by torch's elastic agent (`torchrun`)."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import comfy.cli_args
import folder_paths
import psutil

from . import start, version, wire
from .link import LOOPBACK

TAIL = 3000  # characters of a log that are shown
PATIENCE = 2  # seconds in which the agent ends once its processes have


class Launch:
    """Processes of a group, one on each of `devices`, the variables of `visible`.

    address, port, name: of the group's store, and of the group in it. own: address of this machine for the others.
    first: number of the first process, in a group of `size`. arguments: options of the host that are other ones there.
    """

    def __init__(
        self, devices: list[dict[str, str]], first: int, size: int, address: str, port: int, name: str, own: str,
        **arguments: object,
    ):  # fmt: skip
        temporary = folder_paths.get_temp_directory()  # which the host empties when it starts, if it was killed
        os.makedirs(temporary, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(prefix="wan-parallel-", dir=temporary, ignore_cleanup_errors=True)
        self.pids: list[int] = []  # once they have said hello
        self.store = wire.serve(LOOPBACK)  # the agent's own, as it pickles what it keeps there
        setup = start.Setup(
            address=address, port=port, name=name, own=own, size=size, first=first, pack=str(version.PACK),
            devices=devices, arguments=options() | arguments, folders=folders(), logs=self.folder.name,
        )  # fmt: skip
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={len(devices)}"),
            *("--max-restarts=0", "--rdzv-backend=c10d", f"--rdzv-endpoint={LOOPBACK}:{self.store.port}"),
            *("--rdzv-conf=is_host=false,join_timeout=60", f"--rdzv-id={uuid.uuid4().hex}"),
            *("--local-addr", LOOPBACK, "--redirects=3", f"--log-dir={self.folder.name}", "--monitor-interval=0.2"),
            start.__file__,
        ]
        self.log = open(Path(self.folder.name) / "agent.log", "wb")  # noqa: SIM115, open as long as the agent is
        self.agent = subprocess.Popen(
            command, cwd=start.host_folder(), env=environment(setup),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def is_alive(self) -> bool:
        """Whether none of the processes has ended: the agent ends with the first."""
        return self.agent.poll() is None

    def kill(self) -> None:
        """End all processes at once, also those that are stopped or hang."""
        for pid in {*self.pids, *self.children()}:
            try:
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            except OSError:  # it has ended
                logging.debug("Process %d of Wan Parallel had ended.", pid)
        if self.agent.poll() is None:
            self.agent.terminate()

    def close(self) -> None:
        """Wait until all have ended, and remove their logs."""
        try:
            self.agent.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()
        self.store = None
        self.log.close()
        self.folder.cleanup()

    def children(self) -> list[int]:
        """Return the processes that the agent has started, none once it has ended."""
        try:
            return [child.pid for child in psutil.Process(self.agent.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def logs(self) -> str:
        """Return the end of each log that is not empty."""
        texts = {
            path.relative_to(self.folder.name).as_posix(): path.read_text(encoding="utf-8", errors="replace").strip()
            for path in sorted(Path(self.folder.name).rglob("*.log"))
        }
        return "\n".join(f"--- {name}\n{text[-TAIL:]}" for name, text in texts.items() if text)


def environment(setup: start.Setup) -> dict[str, str]:
    """Return the environment of the agent, from which `start` sets up each process."""
    threads = str(max(1, (os.cpu_count() or 1) // (len(setup.devices) + 1)))
    of_cards = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONUNBUFFERED": "1"}  # the agent serves no store
    return {"OMP_NUM_THREADS": threads} | os.environ | of_cards | {start.VARIABLE: json.dumps(setup.__dict__)}


def visible(type: str, number: int) -> dict[str, str]:
    """Return the variables with which a process sees card `number` of this machine alone, as its first."""
    if type != "cuda":
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    card = seen.split(",")[number].strip() if seen else str(number)
    return {"CUDA_VISIBLE_DEVICES": card, "HIP_VISIBLE_DEVICES": card}


def options() -> dict[str, object]:
    """Return the options of the host's command line that JSON keeps: numbers, text, and lists of them."""
    simple = (bool, int, float, str, type(None))
    found = comfy.cli_args.args.__dict__.items()
    return {
        name: value
        for name, value in found
        if type(value) in simple or (type(value) is list and all(type(item) in simple for item in value))
    }


def folders() -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Return the host's model folders: paths and extensions by name."""
    return {name: (list(paths), sorted(kinds)) for name, (paths, kinds) in folder_paths.folder_names_and_paths.items()}
