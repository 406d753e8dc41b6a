"""The benchmarks run, with errors that say all compute the same, and write no section but their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_vae_quick(tmp_path):
    pytest.importorskip("diffusers", reason="installed by `dev.py bench`")
    page = tmp_path / "results.md"
    mine, other = "<!-- begin vae quick cpu -->\nSTALE\n<!-- end vae quick cpu -->\n", "## Another\n"
    page.write_text(mine + other, encoding="utf-8")
    subprocess.run([sys.executable, str(BENCHMARKS / "vae.py"), "--quick", "--page", str(page)], check=True)
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


@pytest.mark.slow
def test_dit_quick(tmp_path):
    pytest.importorskip("diffusers", reason="installed by `dev.py bench`")
    page = tmp_path / "results.md"
    subprocess.run([sys.executable, str(BENCHMARKS / "dit.py"), "--quick", "--page", str(page)], check=True)
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:]] == 4 * ["ours", "ComfyUI", "diffusers"]
    case = ""
    for row in rows[2:]:
        case = row[0] or case
        assert float(row[7]) < (0.02 if "bfloat16" in case else 1e-5), row
    for ours, *others in zip(rows[2::3], rows[3::3], rows[4::3], strict=True):
        assert int(ours[6]) < min(int(other[6]) for other in others)  # bytes moved by a block


@pytest.mark.slow
def test_end_to_end_quick(tmp_path):
    page = tmp_path / "results.md"
    command = [sys.executable, str(BENCHMARKS / "end_to_end.py"), "--quick", "--page", str(page)]
    subprocess.run(command, check=True)
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:]] == ["ours", "ComfyUI"]
    for _, _, loading, first, step, decode, whole, memory in rows[2:]:
        assert 0 < float(loading) < float(first) and float(memory) > 0.1
        assert float(first) + float(step) + float(decode) <= 1.01 * float(whole)


@pytest.mark.slow
def test_parallel_quick(tmp_path):
    page = tmp_path / "results.md"
    subprocess.run([sys.executable, str(BENCHMARKS / "parallel.py"), "--quick", "--page", str(page)], check=True)
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:]] == ["1", "2", "1", "2"]
    for (case, *_), (_, _, seconds, _, _, memory, difference) in zip(rows[2::2], rows[3::2], strict=True):
        assert float(seconds) > 0 and float(memory) < 1
        assert float(difference) < (0.02 if "bfloat16" in case else 1e-5)


@pytest.mark.slow
def test_stream_quick(tmp_path):
    page = tmp_path / "results.md"
    command = [sys.executable, str(BENCHMARKS / "stream.py"), "--quick", "--page", str(page)]
    subprocess.run(command, check=True)
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:4]] == ["33", "45"]
    for _, _, _, memory, _, first, near, end, whole in rows[2:4]:
        assert float(memory) > 100 and 0 < float(first) < float(whole)
        assert 0 < float(near) < float(whole) and 0 < float(end) < float(whole)


@pytest.mark.slow
def test_farm_counts_what_its_formulas_say(tmp_path):
    page = tmp_path / "parallel.md"
    subprocess.run([sys.executable, str(BENCHMARKS / "farm.py"), "--quick", "--page", str(page)], check=True)
    tables = dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)<!-- end", page.read_text(), re.DOTALL))
    assert set(tables) == {"counted", "tiles_counted", "steps", "schemes", "limits", "guidance", "weights", "tiles"}
    (forward,), (decode,) = (
        [re.split(r" *\| *", line)[1:-1] for line in tables[name].splitlines()[2:]]
        for name in ("counted", "tiles_counted")
    )
    assert forward[4] == forward[5] != "0" and float(forward[7]) < 1e-5
    assert decode[1] == decode[2] == "16,384" and decode[3] == decode[4] != "0" and float(decode[5]) < 1e-5
