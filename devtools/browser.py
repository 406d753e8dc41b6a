"""The Chromium that the editor is opened in: where it is, and how it comes onto the machine. Standard library only."""

import logging
import os
import shutil
import subprocess
from pathlib import Path

from .environment import SetupError, run_step

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (  # where macOS and Windows keep what is not on the path
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
DRIVERS_OWN = (
    "from playwright.sync_api import sync_playwright\n"
    "with sync_playwright() as driver: print(driver.chromium.executable_path)"
)
ADVICE = "install Chromium, or run `{python} -m playwright install chromium`"

log = logging.getLogger("dev")


def find(python: str | Path) -> str | None:
    """The machine's Chromium, else the one of the `playwright` that `python` has, else None."""
    for found in (*map(shutil.which, NAMES), *PLACES):
        if found and Path(found).exists():
            return found
    answer = subprocess.run([python, "-c", DRIVERS_OWN], capture_output=True, text=True)
    own = answer.stdout.strip()
    return own if own and Path(own).exists() else None


def missing(python: str | Path) -> str:
    """Return advice for setting up a missing Chromium."""
    return f"There is no Chromium here: {ADVICE.format(python=python)}."


def provide(python: str | Path, *, required: bool) -> None:
    """Install Debian's Chromium where none is found and this may be done; without one, say what is left out.

    Raise SetupError if `required` and there is none.
    """
    if find(python) is None and _may_install():
        try:
            _install()
        except SetupError as error:
            log.warning("%s", error)
    if find(python) is None:
        if required:
            raise SetupError(missing(python))
        log.warning("tests/browser is left out. %s", missing(python))


def _may_install() -> bool:
    """Whether this is a Debian's root."""
    return bool(shutil.which("apt-get")) and os.geteuid() == 0


def _install() -> None:
    advice = "Check the network, or install Chromium by hand."
    run_step("Package lists", ["apt-get", "update", "-q"], advice)
    run_step("Chromium", ["apt-get", "install", "-qy", "--no-install-recommends", "chromium"], advice)
