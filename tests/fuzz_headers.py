"""Coverage-guided fuzzing of the header readers, for longer than a test may take. Needs the package `atheris`.

    python tests/fuzz_headers.py SECONDS [CORPUS]

Each input is a whole small file. It must be inspected, or refused with CheckpointError, within 5 seconds and bounded
memory; the run ends with an error at the first that is not.
"""

import importlib.util
import resource
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("wan_model.header", "wan_model.gguf_file", "wan_model.checkpoint", "wan_model.tokenizer")


def import_pack():
    """The `wan_model` package without the repository's root on the path, its readers instrumented."""
    spec = importlib.util.spec_from_file_location("wan_model", ROOT / "wan_model" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["wan_model"] = module
    with atheris.instrument_imports(include=list(TARGETS)):
        spec.loader.exec_module(module)
    return module


def write_corpus(folder: Path) -> None:
    """Headers of good files, small enough to mutate fast."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    import mutations

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        for seed in mutations.write_seeds(Path(seeds)):
            if seed.suffix != ".pth":
                (folder / seed.name).write_bytes(seed.read_bytes()[:16000])
    (folder / "one.safetensors").write_bytes(
        b'\x3b\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}     ' + bytes(8)
    )


def main() -> None:
    seconds = sys.argv[1]
    corpus = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="wan-fuzz-"))
    checkpoint = import_pack().checkpoint
    write_corpus(corpus)
    path = Path(tempfile.mkdtemp(prefix="wan-fuzz-")) / "input"

    def test_one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            checkpoint.inspect(path)
        except checkpoint.CheckpointError:
            return

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB, a parent's peak included
    limits = ["-timeout=5", f"-rss_limit_mb={used + 1000}", "-max_len=20000"]
    options = [f"-max_total_time={seconds}", *limits, str(corpus)]
    atheris.Setup([sys.argv[0], *options], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
