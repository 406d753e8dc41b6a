"""Packs the archive that ComfyUI's registry hands out, as `comfy node publish` packs it.

    python -m devtools.archive [FILE]

with the Python of an environment of `dev.py test`. The archive holds the files that git tracks, as they are in the
working tree, without those that `.comfyignore` leaves out; FILE is `.dev/node.zip` if not given.
"""

import argparse
import logging
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

from pathspec import PathSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from .environment import DEV, ROOT, SetupError

IGNORE = ROOT / ".comfyignore"
LARGEST = 5  # folders that the report names


def ignored() -> PathSpec:
    """Return the patterns of `.comfyignore`, in the grammar of comfy-cli 1.23, which calls it "gitwildmatch"."""
    lines = (line.strip() for line in IGNORE.read_text(encoding="utf-8").splitlines())
    return PathSpec.from_lines(GitIgnoreSpecPattern, [line for line in lines if line and not line.startswith("#")])


def names() -> list[str]:
    """Return the files of the archive, relative to the repository. Raise SetupError outside a git repository."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, encoding="utf-8")
    tracked = [name for name in listed.stdout.split("\0") if name]
    if not tracked:
        raise SetupError(f"{ROOT} is not a git repository ({listed.stderr.strip()}): clone the repository with git.")
    spec = ignored()
    return [name for name in tracked if not spec.match_file(name) and (ROOT / name).exists()]


def pack(path: Path) -> list[str]:
    """Write the archive to `path`; return the files in it."""
    found = names()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in found:
            archive.write(ROOT / name, name)
    return found


def report(path: Path) -> str:
    """Return the size of the archive at `path`, its number of files, and its largest folders."""
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
    folders = Counter()
    for file in files:
        folders[file.filename.partition("/")[0]] += file.compress_size
    largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in folders.most_common(LARGEST))
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(files)} files (MB: {largest})"


def main() -> int:
    """Pack the archive and report its size; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path, default=DEV / "node.zip", metavar="FILE")
    path = parser.parse_args().file
    try:
        pack(path)
    except SetupError as error:
        logging.error("%s", error)
        return 1
    logging.info("%s", report(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
