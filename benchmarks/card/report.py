"""The results of `bench gpu` in words: a table for the page, profiles, and one file to attach to a report."""

import json
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import page
import torch

from . import profiles
from .items import ITEMS

PACKAGES = ("torch", "triton", "diffusers", "comfy-kitchen", "comfy-aimdo", "sageattention", "flash-attn", "xformers")
COLUMNS = ["row", "who", "seconds", "speed", "TFLOP/s", "of the peak", "peak MiB", "estimate / peak", "error", "note"]
NOTE = """Random weights, the same for all. Speed: times ComfyUI's own. The VAE rows are VAE objects, from and to RAM,
and the networks of others alone; a block's time is half the difference of models of three blocks and one. Of the peak:
of bf16 matrix products, measured here. Peak: the most memory on the card beside weights and input. Estimate: what ours
expects. Error: relative, against ComfyUI's own result, both in bf16. Goal: what this project means to reach; it is no
condition of the run."""
GOALS = {  # row -> (column, bound, whether it must be above)
    "vae 2.1 decode 480x832x81": [("speed", 2.0, True), ("of_peak", 0.5, True)],
    "vae 2.1 decode 720x1280x81": [("speed", 2.0, True), ("of_peak", 0.5, True)],
    "vae 2.2 decode 704x1280x121": [("speed", 2.0, True), ("of_peak", 0.8, True)],
    "vae 2.1 decode 720x1280x81 in tiles": [("peak_mib", 1331, False)],
    **{name: [("speed", 1.1, True)] for name in ("block 1.3B 32760 tokens", "block 14B 75600 tokens")},
    "block 5B 27280 tokens": [("speed", 1.1, True)],
}
ESTIMATE = 0.75, 1.25  # of the measured peak


def goals(name: str, row: dict) -> list[str]:
    """Return the goals of our row that are not met, in words."""
    missed = []
    for column, bound, above in GOALS.get(name, []):
        if column in row and (row[column] > bound) != above:
            missed.append(f"goal {column} {'above' if above else 'below'} {bound:g}")
    if "estimate" in row and not ESTIMATE[0] <= row["estimate"] <= ESTIMATE[1]:
        missed.append("goal estimate within 25%")
    return missed


def table(found: Iterable[dict]) -> str:
    """Return the measured rows as a Markdown table, in the order in which they are listed."""
    order, lines = list(ITEMS), []
    rows = [x for x in found if x["group"] == "rows" and x["state"] == "pass"]
    for result in sorted(rows, key=lambda x: order.index(x["item"])):
        shown = [row for row in result["found"] if "profile" not in row]
        for number, row in enumerate(shown):
            lines.append(["" if number else result["item"], *cells(result["item"], row)])
    return page.table(COLUMNS, lines)


def cells(name: str, row: dict) -> list[str]:
    """Return a contender's cells behind the first."""
    notes = [row["note"]] if "note" in row else []
    if row["who"] == "ours":
        notes += goals(name, row)
    formats = ("seconds", ".3g"), ("speed", ".2f"), ("tflops", ".0f"), ("of_peak", ".0%"), ("peak_mib", ".0f")
    numbers = [format(row[key], form) if key in row else "" for key, form in (*formats, ("estimate", ".2f"))]
    return [row["who"], *numbers, format(row["error"], ".1e") if "error" in row else "", "; ".join(notes)]


def profiles_of(found: Iterable[dict]) -> str:
    """Return the profiles of the measured rows in Markdown."""
    parts = []
    for result in found:
        if result["group"] == "rows" and result["state"] == "pass":
            parts += [profiles.text(result["item"], row["profile"]) for row in result["found"] if "profile" in row]
    return "\n".join(parts)


def checks(found: list[dict]) -> str:
    """Return how many checks passed, and each that failed or was left out."""
    lines = []
    states = [x["state"] for x in found]
    lines.append(f"{states.count('pass')} passed, {states.count('FAIL')} failed, {states.count('skip')} left out.")
    lines += [f"- {x['state']} {x['item']}: {x['found']}" for x in found if x["state"] != "pass"]
    return "\n".join(lines)


def machine() -> str:
    """Return the card, its driver's memory, and the versions of what matters."""
    lines = [page.machine(), f"Python {platform.python_version()}, {platform.platform()}"]
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1] / 2**30
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        cudnn = torch.backends.cudnn.version()
        lines.append(f"{total:.0f} GiB, compute capability {capability}, CUDA {torch.version.cuda}, cuDNN {cudnn}")
    installed = {name: version(name) for name in PACKAGES}
    lines.append(", ".join(f"{name} {found}" for name, found in installed.items() if found))
    return "\n".join(lines)


def version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: Path, command: str, found: list[dict], log: str) -> None:
    """Write the file to attach to a report: machine, checks, table, profiles, tracebacks and the end of the log."""
    broken = [f"### {x['item']}\n\n```\n{x['traceback']}```\n" for x in found if x.get("traceback")]
    parts = {
        f"`{command}`": machine(),
        "Checks": checks(found),
        "Measured": table(found),
        "Details": "\n".join(f"- {x['item']}: {json.dumps(x['found'])}" for x in found if x["group"] != "rows"),
        "Profiles": profiles_of(found),
        "Tracebacks": "\n".join(broken),
        "The end of the log": f"```\n{log}\n```",
    }
    path.write_text("\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n", encoding="utf-8")
