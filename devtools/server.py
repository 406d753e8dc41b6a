"""A ComfyUI server as a process of its own. Standard library only."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from .environment import SetupError, step

ADDRESS = "127.0.0.1"


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

    def __init__(self, python: str | Path, comfyui: Path, base: Path, *options: str, cpu: bool, timeout: float = 300):
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

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the server printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def peak_memory(self) -> int:
        """The most bytes that the server's process has had resident; 0 where the system does not say so (not Linux)."""
        status = Path(f"/proc/{self._process.pid}/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

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
