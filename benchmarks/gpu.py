"""Checks of this pack on a graphics card, then measurements beside ComfyUI and diffusers: `python3 dev.py bench gpu`.

For anyone with a card. It takes some minutes, and each result is written as soon as it is there: a run that was stopped
goes on where it ended, for the same card and source. Failed items run again. At the end the table is put into
benchmarks/results.md, the profiles beside it, and `report.md` in the folder of the run is one file to attach to a
report. --dry runs all of it in small sizes on a CPU.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench
import page
import torch
from bench import DEVICE, ROOT, log
from card import child, hosts, kernels, models, objects, report, rows  # noqa: F401, each registers its items
from card.items import CHECKS, ROWS, Item, chosen

FOLDER = ROOT / ".dev" / "gpu"
PROFILES = Path(__file__).with_name("profiles")
BUDGET = 480  # seconds
CHECKS_SHARE = 0.4  # of the budget, at most, for the checks
GRACE = 20  # seconds after which a child that should have ended is stopped
DRY_AT_ONCE = 2  # processes of a dry run
LOG_KEPT = 20000  # characters of the log in the report
SOURCE = ("wan_model", "host", "nodes", "benchmarks")


def parse() -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget", type=float, default=BUDGET, help="seconds for all; what does not fit is left out")
    made.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="items with one of these in their names")
    made.add_argument("--dry", action="store_true", help="small sizes on a CPU: does everything run?")
    made.add_argument("--again", action="store_true", help="also what was measured before")
    made.add_argument("--list", action="store_true", help="print the names of all checks and rows")
    made.add_argument("--out", type=Path, default=FOLDER, help="folder of the run; default: .dev/gpu")
    made.add_argument("--page", type=Path, help="file to write into; default: benchmarks/results.md, --dry: none")
    return bench.begin(made)


def source() -> str:
    """The commit where there is one, and a digest of the code, which also sees what is not committed."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCE for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    git = shutil.which("git")
    command = [git, "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True) if git else None
    commit = done.stdout.strip() if done and done.returncode == 0 else "no commit"
    return f"{commit} ({digest.hexdigest()[:8]})"


class Run:
    """One run of the command. key: card, ComfyUI and source, which results must share to count as done."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.card = "cpu" if options.dry else torch.cuda.get_device_name()
        self.key = f"{self.card}, {Path(bench.COMFYUI).name}, {source()}, {'dry' if options.dry else 'real'}"
        self.script = __file__  # which runs the items as well
        self.folder, self.start = options.out, time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.options.budget - (time.monotonic() - self.start)

    @property
    def path(self) -> Path:
        """The file of all results, a JSON object in each line."""
        return self.folder / "results.jsonl"

    def results(self) -> dict[str, dict]:
        """The newest result of each item for this key."""
        found = [json.loads(line) for line in lines_of(self.path)]
        return {x["item"]: x for x in found if x["key"] == self.key}

    def wanted(self) -> list[Item]:
        """The items that are to be run."""
        done = {} if self.options.again else self.results()
        return [x for x in chosen(self.options.only) if done.get(x.name, {}).get("state", "FAIL") == "FAIL"]

    def run_group(self, group: str, names: Sequence[str], seconds: float) -> None:
        """Run the items of a group in a process, and the rest in another if it dies or loses the device."""
        left, end = list(names), time.monotonic() + seconds
        begun, notes = self.folder / f"{group}.begun", child.Notes(self.folder, group, self.key)
        while left and time.monotonic() < end:
            begun.unlink(missing_ok=True)
            before = len(lines_of(self.path))
            code = self.child(group, left, end - time.monotonic())
            found = [json.loads(line) for line in lines_of(self.path)[before:]]
            found = [x for x in found if x["group"] == group]
            ended = {x["item"] for x in found}
            died = [name for name in lines_of(begun) if name not in ended]
            if code and not died and not ended:
                died = left
            for name in died:
                text = f"the process ended in it ({code}): see {group}.log"
                found.append({"item": name, "group": group, "state": "FAIL", "found": text, "seconds": 0})
                notes.keep(found[-1])
            for result in found:
                log.info("%s %s (%s s) %s", result["state"], result["item"], result["seconds"], shown(result))
            left = [name for name in left if name not in {x["item"] for x in found}]
            if code == 0 or not found:
                break
        for name in left:
            log.info("left out %s: no time", name)

    def child(self, group: str, names: Sequence[str], seconds: float) -> int | str:
        """Run items in a process group of their own; return its exit status, or why it was stopped."""
        how = "dry" if self.options.dry else "real"
        command = [
            sys.executable,
            self.script,
            "child",
            group,
            f"{seconds:.0f}",
            str(self.folder),
            how,
            self.key,
            *names,
        ]
        environment = os.environ | ({"TRITON_INTERPRET": "1"} if self.options.dry else {})
        with open(self.folder / f"{group}.log", "a", encoding="utf-8") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
            try:
                return process.wait(seconds + GRACE)
            except subprocess.TimeoutExpired:
                stop(process)
                process.wait()
                return f"no time left after {seconds:.0f} s"
            except BaseException:
                stop(process)
                raise

    def run(self) -> None:
        """Run the checks beside each other, then the rows one by one."""
        names: dict[str, list[str]] = {}
        for item in self.wanted():
            names.setdefault(item.group, []).append(item.name)
        groups = [group for group in CHECKS if group in names]
        share = self.options.budget * CHECKS_SHARE if ROWS in names else self.left()
        with ThreadPoolExecutor(DRY_AT_ONCE if self.options.dry else len(CHECKS)) as pool:
            list(pool.map(lambda group: self.run_group(group, names[group], share), groups))
        if ROWS in names:
            self.run_group(ROWS, names[ROWS], self.left())

    def finish(self) -> int:
        """Write the page, the profiles and the report; return the exit status."""
        found, command = list(self.results().values()), self.command()
        logs = "\n".join(path.read_text(errors="replace")[-LOG_KEPT:] for path in sorted(self.folder.glob("*.log")))
        report.write(self.folder / "report.md", command, found, logs)
        measured = [x for x in found if x["group"] == ROWS and x["state"] == "pass"]
        if measured and self.options.page:
            note = f"{report.NOTE}\n\nChecks: {report.checks([x for x in found if x['group'] != ROWS])}"
            text = f"{note}\n\n{report.table(found)}"
            page.replace(self.options.page, f"gpu {self.card}", page.section(self.card, command, self.versions(), text))
            if not self.options.dry:
                PROFILES.mkdir(exist_ok=True)
                text = f"# {self.card}, {source()}\n\n{report.profiles_of(found)}"
                (PROFILES / f"{self.card.replace(' ', '-')}.md").write_text(text, encoding="utf-8")
        failed = [x["item"] for x in found if x["state"] == "FAIL"]
        log.info(
            "%d passed, %d failed; %s is the file for a report", len(found) - len(failed), len(failed), self.folder
        )
        return 1 if failed else 0

    def versions(self) -> str:
        """Return the versions that the page names beside the machine."""
        return f"{Path(bench.COMFYUI).name}, {source()}"

    def command(self) -> str:
        """How this run was started."""
        only = "".join(f" {json.dumps(text)}" for text in self.options.only)
        parts = " --only" * bool(only) + only + " --dry" * self.options.dry
        return f"python3 dev.py bench gpu{parts}"


def stop(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def lines_of(path: Path) -> list[str]:
    """Lines of a file, none if it is not there."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def shown(result: dict) -> str:
    """Return the finding as one line."""
    if result["group"] != ROWS or result["state"] != "pass":
        return str(result["found"])[:200]
    return ", ".join(f"{x['who']} {x['seconds']:.3g} s" for x in result["found"] if "seconds" in x)


def main() -> int:
    """Run what the command line says."""
    if sys.argv[1:2] == ["child"]:
        sys.argv[1:2] = []
        return child.main()
    options = parse()
    if options.list:
        log.info("%s", "\n".join(item.name for item in chosen(options.only)))
        return 0
    if DEVICE.type != "cuda" and not options.dry:
        log.error("torch finds no CUDA card here: run this on a machine with one, or add --dry to try it on the CPU.")
        return 1
    run = Run(options)
    run.run()
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
