"""Files that are whole or not there, and a full disk in words."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DiskFull(OSError):
    """There is no room left for a file."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which is renamed to `path` on success and removed on failure.

    Raise DiskFull if the disk is full.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with guarded(path, partial):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def guarded(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Raise DiskFull, in words, where writing `path` finds the disk full; `partial`, the part written, is removed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise DiskFull(
            f"The disk is full: {path.name} needs more than the {shutil.disk_usage(path.parent).free:,} bytes that are "
            f"free in {path.parent}. Free some space there or save to another disk."
        ) from error
