"""A short turn of the coverage-guided fuzzer, so that it stays able to run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "fuzz_headers.py"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed on this system")
def test_the_fuzzer_finds_nothing_in_ten_seconds(tmp_path):
    command = [sys.executable, str(SCRIPT), "10", str(tmp_path / "corpus")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", result.stderr + result.stdout)
    assert runs and int(runs[1]) > 100
