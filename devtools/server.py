"""A ComfyUI server as a process of its own. Standard library only."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from .environment import SetupError, step

ADDRESS = "127.0.0.1"
FRONTEND = "WAN_FRONTEND"  # environment variable: a folder of an editor's pages to serve in place of the host's own


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def command(python: str | Path, comfyui: Path, base: Path, port: int, *, cpu: bool) -> list[str]:
    """Command line of a server that keeps every file of its own under `base`."""
    options = ["--cpu"] if cpu else []
    if (models := comfyui / "models").is_dir():
        options += ["--extra-model-paths-config", str(_extra_models(base, models))]
    if frontend := os.environ.get(FRONTEND):
        options += ["--front-end-root", frontend]
    return [
        *(str(python), str(comfyui / "main.py"), "--listen", ADDRESS, "--port", str(port)),
        *("--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"),
        *("--disable-api-nodes", *options),
    ]


def _extra_models(base: Path, models: Path) -> Path:
    """File that shows the server the models of its own installation beside those under `base`."""
    folders = ("checkpoints", "clip_vision", "diffusion_models", "loras", "text_encoders", "vae", "vae_approx")
    path = base / "extra_model_paths.yaml"
    lines = [f"  {name}: {json.dumps(str(models / name))}\n" for name in folders]
    path.write_text("installation:\n" + "".join(lines), encoding="utf-8")
    return path


class Server:
    """Context manager: a server on a free port, ready for requests inside the block and stopped after it.

    options: further ones of ComfyUI. `url` is its address and `log` the file with its output, `base / "server.log"`.
    """

    def __init__(self, python: str | Path, comfyui: Path, base: Path, *options: str, cpu: bool, timeout: float = 600):
        port = free_port()
        self.url = f"http://{ADDRESS}:{port}"
        self.log = base / "server.log"
        self.timeout = timeout
        self._command = [*command(python, comfyui, base, port, cpu=cpu), *options]

    def __enter__(self) -> "Server":
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            with step("ComfyUI server"):
                self._wait_until_ready()
        except BaseException:  # whatever ends the wait, Ctrl-C included, must not leave the process behind
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask the process to end, as stopping it does."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process at once, as a crash or `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the server printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def peak_memory(self) -> int:
        """The most bytes that the server's process has had resident; 0 where the system does not say so (not Linux)."""
        return self._status("VmHWM:")

    def forget_peak(self) -> None:
        """Let `peak_memory` count from now on, where the system can (Linux)."""
        peak = Path(f"/proc/{self._process.pid}/clear_refs")
        if peak.exists():
            peak.write_text("5", encoding="utf-8")

    def resident_memory(self) -> int:
        """The bytes that the server's process has resident now; 0 as in `peak_memory`."""
        return self._status("VmRSS:")

    def _status(self, field: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SetupError(f"ComfyUI stopped while starting, see {self.log}:\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        raise SetupError(f"ComfyUI was not ready after {self.timeout:.0f} s, see {self.log}:\n{self.log_tail()}")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
