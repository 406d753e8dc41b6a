"""Which source this process runs."""

import hashlib
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
ROOMS = ("host", "wan_model")


def digest() -> str:
    """Return a digest of the pack's source files as they are now."""
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((PACK / room).rglob("*.py")):
            found.update(path.relative_to(PACK).as_posix().encode())
            found.update(path.read_bytes())
    return found.hexdigest()


LOADED = digest()  # when this process imported the pack: it may be updated while ComfyUI runs
