"""Prints what a run of pytest found beside the name of each test that says so: with `-v`, at the end."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each test that recorded a `found` property."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    rows = [(report.nodeid, dict(report.user_properties)) for report in reports if report.when == "call"]
    rows = [(node.partition("[")[2].rstrip("]"), found["found"]) for node, found in rows if "found" in found]
    if rows and terminalreporter.config.option.verbose > 0:
        terminalreporter.section("what was found")
        width = max(len(name) for name, _ in rows)
        for name, found in rows:
            terminalreporter.write_line(f"{name:{width}}  {found}")
