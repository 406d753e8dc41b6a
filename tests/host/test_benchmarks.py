"""The benchmarks run, with errors that say all compute the same, and write no section but their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "vae.py"


@pytest.mark.slow
def test_vae_quick(tmp_path):
    pytest.importorskip("diffusers", reason="installed by `dev.py bench`")
    page = tmp_path / "results.md"
    mine, other = "<!-- begin vae quick cpu -->\nSTALE\n<!-- end vae quick cpu -->\n", "## Another\n"
    page.write_text(mine + other, encoding="utf-8")
    subprocess.run([sys.executable, str(SCRIPT), "--quick", "--page", str(page)], check=True)
    text = page.read_text(encoding="utf-8")
    assert text.endswith(other)
    assert "STALE" not in text
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    exact = [row for row in rows[2:] if row[1].startswith("ours") or row[1] in ("ComfyUI", "diffusers")]
    assert len(exact) == 26
    case = ""
    for row in exact:
        case = row[0] or case
        assert float(row[7]) < (0.1 if "bfloat16" in case else 1e-5), row
