"""The results page: what was measured, where, and how to do it again."""

import datetime
import platform
import re
from pathlib import Path

import torch

PAGE = Path(__file__).with_name("results.md")
TITLE = "# Benchmarks\n\nEach section names the command that measured it.\n"


def machine() -> str:
    """Processor, threads and torch of this machine, and its GPU where there is one."""
    parts = [processor(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


def processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["-"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(title: str, command: str, versions: str, text: str) -> str:
    """A section of the page."""
    today = datetime.date.today().isoformat()
    return f"## {title}\n\n{today}, {machine()}, {versions}. `{command}`\n\n{text}\n"


def replace(path: Path, name: str, text: str) -> None:
    """Put `text` in place of the section `name` of the page, or at its end; other sections stay."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    page = path.read_text(encoding="utf-8") if path.exists() else TITLE
    marked = begin + text + end
    if begin in page:
        before, rest = page.split(begin)
        page = before + marked + rest.split(end)[1]
    else:
        page = f"{page}\n{marked}"
    path.write_text(page, encoding="utf-8")
