"""The checks that comfy-test makes of a pack, up to its nodes on a running server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from devtools.host import LINK

LEVELS = ("SYNTAX", "JAVASCRIPT", "WARNINGS", "HAZARDS", "REGISTRATION")


def test_the_pack_passes_comfy_test(server, base, tmp_path):
    program = shutil.which("comfy-test", path=Path(sys.executable).parent)
    result = subprocess.run(
        [program, "run", "--server-url", server.url],
        cwd=base / "custom_nodes" / LINK,
        env=os.environ | {"COMFY_TEST_LOGS_DIR": str(base), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for level in LEVELS:
        assert f"[{level}] PASSED" in result.stdout
