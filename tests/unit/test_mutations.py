"""2,000 damaged files: each loads or is refused in one sentence, within 5 seconds and 500 MB, and runs no code."""

import resource
import time
from random import Random

import mutations
import pytest
import torch

from wan_model import checkpoint
from wan_model.checkpoint import CheckpointError

COUNT = 2000


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return mutations.write_seeds(tmp_path_factory.mktemp("seeds"))


def test_the_seeds_are_good(seeds):
    quantisations = [checkpoint.load(seed)[2] for seed in seeds]
    assert quantisations == [None, "comfy_quant", None, "gguf_q4_0"]


def test_no_damaged_file_does_harm(seeds, tmp_path):
    random, refused, slowest = Random(11), 0, 0.0
    trap, before = tmp_path / "trap", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        seed = seeds[number % len(seeds)]
        path = tmp_path / f"mutant{seed.suffix}"
        path.unlink(missing_ok=True)
        mutations.write_mutant(seed, path, random, trap)
        start = time.monotonic()
        try:
            state_dict, _, _ = checkpoint.load(path)
            assert all(isinstance(tensor, torch.Tensor) for tensor in state_dict.values())
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(path.name) and "\n" not in str(error), str(error)
        slowest = max(slowest, time.monotonic() - start)
        assert not trap.exists()
    assert refused > COUNT / 2
    assert slowest < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1000  # KB
