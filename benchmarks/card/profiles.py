"""The work of a device during one call of ours: the largest operations, and how long the device has nothing to do."""

import json

from measure import synchronize
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from .items import Here

KEPT = 15  # operations
WIDE = 90  # characters of a kernel's name


def profile(here: Here, run) -> dict:
    """Return the `summary` of one call."""
    run()
    synchronize()
    cuda = here.device.type == "cuda"
    with record(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        synchronize()
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in profiler.events() if is_leaf(e, cuda))
    return summary(spans)


def is_leaf(event, cuda: bool) -> bool:
    """Return whether an event is a kernel or a copy; on a CPU, an operation of the outermost level."""
    on_device = "CUDA" in str(event.device_type)
    return on_device if cuda else event.cpu_parent is None


def summary(spans: list[tuple[float, float, str]]) -> dict:
    """Return busy and idle milliseconds of (start, end, name) in microseconds, and the largest kinds by name."""
    busy, end, gaps, kinds = 0.0, spans[0][0] if spans else 0.0, [], {}
    for start, stop, name in spans:
        if start > end:
            gaps.append(start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
        taken, count = kinds.get(name[:WIDE], (0.0, 0))
        kinds[name[:WIDE]] = taken + stop - start, count + 1
    largest = sorted(kinds.items(), key=lambda kind: -kind[1][0])[:KEPT]
    return {
        "busy_ms": busy / 1000,
        "idle_ms": sum(gaps) / 1000,
        "longest_gap_ms": max(gaps, default=0.0) / 1000,
        "calls": len(spans),
        "top": [(name, taken / 1000, count) for name, (taken, count) in largest],
    }


def text(name: str, found: dict) -> str:
    """Return a profile as a section of Markdown."""
    lines = [f"### {name}", ""]
    lines.append(
        f"Busy {found['busy_ms']:.2f} ms, idle {found['idle_ms']:.2f} ms between {found['calls']} calls, the longest "
        f"gap {found['longest_gap_ms']:.3f} ms."
    )
    lines += ["", "| operation | ms | calls |", "| - | - | - |"]
    lines += [
        f"| {json.dumps(kind)[1:-1].replace('|', '/')} | {ms:.2f} | {count} |" for kind, ms, count in found["top"]
    ]
    return "\n".join(lines) + "\n"
