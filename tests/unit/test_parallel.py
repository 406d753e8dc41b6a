"""Forwards that several processes share: the tests against the authors' code, run by all of them together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wan_model.dit.sequence import Sequence
from wan_model.parallel import layout

ROOT = Path(__file__).resolve().parents[2]
SHARED = {  # tests of a model per variant, by file; with a batch, timesteps a frame, windows, and blocks of frames
    "test_dit.py": (
        *("velocity_is_the_official_one", "window_of_the_configuration", "batch_equals_singles[ti2v]"),
        *("timestep_per_frame_equals_timestep_per_sample[ti2v]", "bfloat16_is_close_to_float32[i2v]"),
    ),
    "test_dit_animate.py": (
        *("velocity_is_the_authors[v]", "velocity_of_animate_2_is_comfyuis[None-v]"),
        "velocity_of_animate_2_is_comfyuis[7-v_strengths]",
    ),
    "test_dit_fun.py": ("velocity_is_the_authors",),
    "test_dit_scail.py": ("scail[25]", "phantom", "vace_fun"),
    "test_dit_skyreels.py": ("velocity_is_the_authors[7-v_frames]",),
    "test_dit_sound.py": ("s2v_is_the_authors[v]", "humo_is_the_authors", "infinitetalk_is_the_authors"),
    "test_causal.py": ("the_authors_rollout[local6_sink1]", "the_whole_clip_at_once[mask]"),
}

SLOW_WAYS = [(2, "sharded"), *((size, weights) for size in (3, 4) for weights in ("replica", "sharded"))]


def run(size, tests, tmp_path, weights="replica"):
    """Have so many processes run the same tests of tests/unit together."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "tests.ranks"]
    command += [f"tests/unit/{test}" for test in tests]
    shared = os.environ | {"WORLD_SIZE": str(size), "RANKS_STORE": str(tmp_path / "store")}
    shared |= {"RANKS_WEIGHTS": weights}
    logs = [tmp_path / f"{rank}.log" for rank in range(size)]
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, env=shared | {"RANK": str(rank)}, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    codes = [rank.wait() for rank in ranks]
    assert codes == [0] * size, "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.mark.timeout(3600)  # each wait of a process for another takes long where others use the cores
@pytest.mark.parametrize(
    ("size", "weights"),
    [(2, "replica"), *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW_WAYS)],
)
def test_every_variant_is_the_authors_on_several_processes(size, weights, tmp_path):
    """Two heads on three processes and more, and 20 tokens a frame that 3 does not divide."""
    run(size, [f"{file}::test_{name}" for file, names in SHARED.items() for name in names], tmp_path, weights)


def test_sharded_weights_give_the_authors_result(tmp_path):
    """For some variants; for all of them where slow tests run."""
    files = ("test_dit.py", "test_dit_scail.py", "test_causal.py")
    run(2, [f"{file}::test_{name}" for file in files for name in SHARED[file]], tmp_path, "sharded")


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_tiles_of_several_processes_are_those_of_one(size, tmp_path):
    run(size, ["shared_tiles.py"], tmp_path)


@pytest.mark.slow
def test_two_hosts_are_the_authors(hosts, tmp_path):
    """Torch's launcher on each of two hosts, which reach each other by a cable alone."""
    first, runs = next(iter(hosts)), []
    tests = [f"tests/unit/test_dit.py::test_velocity_is_the_official_one[{name}]" for name in ("t2v", "ti2v")]
    for number, (address, name) in enumerate(hosts.items()):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        command += [f"--node-rank={number}", f"--master-addr={first}", "--master-port=29500", "--max-restarts=0"]
        command += ["--module", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "tests.ranks", *tests]
        of_host = {"RANKS_STORE": str(tmp_path / "store"), "RANKS_ADDRESS": address}
        log = (tmp_path / f"{number}.log").open("w+")
        run = subprocess.Popen(command, cwd=ROOT, env=os.environ | of_host, stdout=log, stderr=subprocess.STDOUT)
        runs.append((run, log))
    codes = [run.wait() for run, _ in runs]
    texts = [Path(log.name).read_text() for _, log in runs]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
    assert all("2 passed" in text for text in texts)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_each_token_and_each_row_has_one_place(size):
    groups, counts = (7, 20, 20, 20, 5, 1), (7, 20, 40, 6)
    rope = torch.arange(sum(groups)).view(-1, 1)
    whole = Sequence(rope, torch.zeros(1, 4), counts, slice(7, 67), slice(1, 3), groups)
    seen = []
    for rank in range(size):
        own, places = layout.sequence_of(whole, rank, size), layout.places(groups, rank, size, torch.device("cpu"))
        assert torch.equal(own.rope[:, 0], places) and sum(own.groups) == len(places)
        in_clip = (places >= 7) & (places < 67)
        assert torch.equal(in_clip.nonzero()[:, 0], torch.arange(own.clip.start, own.clip.stop))
        rows = torch.arange(4).repeat_interleave(torch.tensor(counts))[places]
        own_counts = own.counts or (len(places) // 4,) * 4
        assert torch.equal(torch.arange(4).repeat_interleave(torch.tensor(own_counts)), rows)
        seen.append(places)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(sum(groups)))


@pytest.mark.parametrize("heads, size", [(12, 5), (12, 8), (2, 3), (40, 7), (2, 4)])
def test_each_head_counts_once_and_no_device_is_without(heads, size):
    spans = [layout.heads_of(heads, rank, size) for rank in range(size)]
    assert all(start < stop for start, stop, _ in spans)
    assert [head for start, stop, counts in spans if counts for head in range(start, stop)] == list(range(heads))
