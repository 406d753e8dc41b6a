"""`dev.py bench gpu`: its dry run, its processes, and that each check and row fails when what it checks is broken."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wan_model.dit import layers as plain_layers

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
sys.path.append(str(BENCHMARKS.parent / "tests" / "golden"))

gpu = importlib.import_module("gpu")
from card import child, hosts, items, models, objects, report, rows  # noqa: E402, `gpu` puts on the path what they import

ONLY_ON_A_CARD = {"kernel activate beyond 2**31 numbers", "convolution without cuDNN's memory"}


@pytest.fixture
def here(room, run_node, models, tmp_path):
    made = items.Here(torch.device("cpu"), True, tmp_path, room, run_node)
    vars(made)["models"] = models  # written once for all tests
    return made


def fails(name: str, here: items.Here) -> str:
    """Runs an item and returns what it says; it must not pass."""
    found = child.run(items.ITEMS[name], here)
    assert found["state"] == "FAIL", f"{name} is {found['state']} with a fault in it: {found['found']}"
    return found["found"]


def scaled(owner, name, factor=1.5):
    """A fault: the results of a function are too large by a factor."""
    original = getattr(owner, name)
    return owner, name, lambda *arguments, **options: original(*arguments, **options) * factor


def second(owner, name):
    """A fault: the results of a function are too large from the second call on."""
    original, calls = getattr(owner, name), []

    def function(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options) * (1.5 if len(calls) > 1 else 1.0)

    return owner, name, function


def model(name):
    """A module of `wan_model`, as the group "models" imports it."""
    return importlib.import_module(f"wan_model.{name}")


def no_halo(rect):
    """A fault: tiles read nothing beyond their own pixels."""
    return rect.Rect, "with_halo", lambda self: self


def broken_kernel(room):
    """A fault: the VAE's kernel returns wrong values."""
    vae = model("vae.runtime")

    def activate(x, cache, gamma, whole, history, top, left):
        whole.fill_(0.5)

    runtime = vae.Runtime(kernels=vae.Kernels(activate, lambda x: True))
    return model("kernels.fused"), "vae_runtime", lambda device: runtime


def lost_position(room):
    """A fault: queries and keys are not rotated."""
    kernels = room("host.model.kernels")
    runtime = dataclasses.replace(kernels.TORCH, rotate=lambda x, table: x)
    return kernels, "choose", lambda x: runtime


def wrong_norm(room):
    """A fault: the modulation's scale is lost."""
    kernels = room("host.model.kernels")
    norm = kernels.TORCH.norm_modulate
    runtime = dataclasses.replace(
        kernels.TORCH, norm_modulate=lambda x, shift, scale, eps: norm(x, shift, 0 * scale, eps)
    )
    return kernels, "choose", lambda x: runtime


def kept_chunks(room):
    """A fault: a stream holds all that it has made."""
    stream, kept = model("vae.stream").Stream, []
    following = stream.__next__
    return stream, "__next__", lambda self: kept.append(following(self)) or kept[-1]


def emptied_tiles(room):
    """A fault: a tile that is cut forgets what it was working on."""
    run = model("vae.tile_run").TileRun
    cut = run._cut_to

    def cut_to(self, out):
        part = cut(self, out)
        part._x = part._x * 0
        return part

    return run, "_cut_to", cut_to


def triton(name, result):
    """A fault: a kernel of ours leaves its argument as it is."""
    return lambda room: (model("kernels.triton_kernels"), name, result)


def dropped_block(room):
    """A fault: the last decoded block is lost."""
    vae = room("host.vae.vae").HostVAE
    chunks = vae.decode_chunks
    return vae, "decode_chunks", lambda self, *arguments: iter(list(chunks(self, *arguments))[:-1])


def a_second_wait(room):
    """A fault: the check of a result reads two values."""
    return room("host.model.dit"), "is_finite", lambda v: bool(v.isfinite().all()) and float(v.sum()) < 1e9


def brought_wrong(room):
    """A fault: weights that come from RAM are not the model's."""
    ops = importlib.import_module("comfy.ops")
    cast = ops.cast_bias_weight

    def function(*arguments, **options):
        weight, *rest = cast(*arguments, **options)
        return 1.5 * weight, *rest

    return ops, "cast_bias_weight", function


FAULTS = {
    "golden dit t2v float32": lambda room: scaled(plain_layers, "gated_add"),
    "golden vae vae21 float32": lambda room: scaled(model("vae.resampling"), "phase_weights"),
    "golden loop": lambda room: scaled(model("solvers.loops"), "_advance", 1.01),
    "vae as on the cpu 2.1 float32": broken_kernel,
    "vae in tiles 2.1 float32": lambda room: no_halo(model("vae.rect")),
    "vae as a stream 2.1": kept_chunks,
    "vae out of memory 2.1": emptied_tiles,
    "gguf formats": lambda room: second(model("weights.ggml"), "unpack"),
    "local attention": lambda room: (models, "local", lambda window: model("dit.attention").local((3, 3))),
    "kernel activate 2": triton("activate", lambda x, cache, gamma, whole, *rest: whole.fill_(0.5)),
    "kernel rotate 1536": triton("rotate_", lambda x, table: x),
    "kernel norm and modulate 1536": triton("norm_modulate", lambda x, shift, scale, eps: x + shift[:, 0] * 0),
    "demo family float32": lambda room: scaled(room("host.vae.vae").HostVAE, "images", 0.1),
    "golden in the host float32": lost_position,
    "scaled fp8 old": lambda room: second(room("host.model.dit").HostDiT, "run"),
    "gguf Q8_0": lambda room: scaled(room("host.model.packed").ggml, "unpack"),
    "partial loading plain": brought_wrong,
    "weights go home": lambda room: (room("host.model.offload").MappedPatcher, "keep_home", lambda *_: None),
    "attention sdpa": lambda room: (room("host.model.attention"), "torch_sdpa", lambda function, q, *_, **__: q),
    "attention again in float32": lambda room: (
        *(room("host.model.attention"), "exact"),
        lambda function, q, *_, **__: torch.zeros_like(q),
    ),
    "step cache and guidance": lambda room: (room("host.sampling.step_cache").Run, "_is_fresh", lambda *_: True),
    "kernels of the host": wrong_norm,
    "vae object in tiles 2.1": lambda room: no_halo(room("wan_model.vae.rect")),
    "vae object out of memory 2.1": lambda room: (room("host.vae.recovery"), "ran_out", lambda error: False),
    "video frame by frame": dropped_block,
    "cancel": lambda room: (hosts.management(), "throw_exception_if_processing_interrupted", lambda: None),
    "waits for the device": a_second_wait,
    "compiled blocks float32": lambda room: (objects, "_compile", lambda *_, model, **__: lambda x, inputs: x),
    "vae 2.1 decode 480x832x81": lambda room: scaled(room("host.vae.vae").HostVAE, "images", 0.5),
    "vae 2.1 decode 720x1280x81": lambda room: scaled(room("host.vae.vae").HostVAE, "images", 0.5),
    "vae 2.1 decode 720x1280x81 in tiles": lambda room: no_halo(room("wan_model.vae.rect")),
    "vae 2.2 decode 704x1280x121": lambda room: scaled(room("host.vae.vae").HostVAE, "images", 0.5),
    "vae 2.1 encode 480x832x81": lambda room: scaled(room("host.vae.vae"), "with_channels", 0.5),
    "block 1.3B 32760 tokens": lambda room: scaled(plain_layers, "gated_add"),
    "block 5B 27280 tokens": lambda room: scaled(plain_layers, "gated_add"),
    "block 14B 32760 tokens": lambda room: scaled(plain_layers, "gated_add"),
    "block 14B 75600 tokens": lambda room: scaled(plain_layers, "gated_add"),
    "attention 14B 75600 tokens": lambda room: scaled(torch.nn.functional, "scaled_dot_product_attention"),
    "end to end 1.3B 832x480x81": lambda room: (importlib.import_module("end_to_end"), "DIT", "../missing.safetensors"),
}


def test_every_function_has_a_fault():
    functions = {item.run.args[0]: name for name, item in items.ITEMS.items() if name not in ONLY_ON_A_CARD}
    faulty = {items.ITEMS[name].run.args[0] for name in FAULTS}
    assert [name for function, name in functions.items() if function not in faulty] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, here, room, monkeypatch):
    monkeypatch.setattr(*FAULTS[name](room))
    fails(name, here)


def test_what_takes_no_time_is_no_measurement(here, monkeypatch):
    monkeypatch.setattr(rows.time, "perf_counter", lambda: 1.0)
    with pytest.raises(items.Wrong, match="a run took no time"):
        rows.timed(here, {"ours": lambda: torch.ones(2)}, 1)


def test_another_contender_may_fail(here):
    def out_of_memory():
        raise torch.OutOfMemoryError("no memory\nat all")

    found = rows.timed(here, {"ours": lambda: torch.ones(2).exp(), "ComfyUI": out_of_memory}, 1)
    ours, theirs = rows.rows_of(here, found, 1.0, 0.0, None)
    assert ours["seconds"] > 0 and "speed" not in ours
    assert theirs == {"who": "ComfyUI", "note": "no memory"}
    with pytest.raises(torch.OutOfMemoryError):
        rows.timed(here, {"ours": out_of_memory}, 1)


def test_a_device_that_multiplies_wrongly_has_no_peak(monkeypatch):
    rows.ceiling.cache_clear()
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.full((1,), 100.0 * a.dtype.itemsize))
    with pytest.raises(items.Wrong, match="product of two matrices is wrong"):
        rows.ceiling(torch.device("cpu"), 64)


@pytest.fixture
def run(tmp_path):
    """Function (script that runs in place of the children) -> a `Run` of three items."""

    def make(script: str) -> gpu.Run:
        path = tmp_path / "child.py"
        path.write_text(CHILD + script)
        options = SimpleNamespace(out=tmp_path / "out", budget=30, dry=True, again=False, page=None)
        options.only = ["golden loop", "gguf formats", "local attention"]
        run = gpu.Run(options)
        run.script = str(path)
        return run

    return make


CHILD = """
import json, os, sys
_, _, group, seconds, out, how, key, *names = sys.argv
def note(name, line):
    print(line, file=open(os.path.join(out, name), "a"), flush=True)
def passed(name):
    note(group + ".begun", name)
    found = {"item": name, "group": group, "state": "pass", "found": 1, "seconds": 0}
    note("results.jsonl", json.dumps({"key": key, **found}))
"""


def test_an_item_that_ends_its_process_does_not_end_the_rest(run):
    it = run('for name in names:\n    note(group + ".begun", name) or os._exit(7) if "gguf" in name else passed(name)')
    it.run()
    found = it.results()
    assert {name: x["state"] for name, x in found.items()} == {
        "golden loop": "pass",
        "gguf formats": "FAIL",
        "local attention": "pass",
    }
    assert "ended in it (7)" in found["gguf formats"]["found"]
    assert it.finish() == 1


def test_a_run_goes_on_where_it_ended(run):
    run("passed(names[0])").run()
    it = run("for name in names:\n    passed(name)")
    assert [item.name for item in it.wanted()] == ["gguf formats", "local attention"]
    it.run()
    assert it.wanted() == [] and it.finish() == 0
    assert len(it.path.read_text().splitlines()) == 3


def test_a_process_that_cannot_start_fails_all_its_items(run):
    it = run("sys.exit('no')")
    it.run()
    assert [x["state"] for x in it.results().values()] == 3 * ["FAIL"]


def test_what_hangs_is_stopped(run, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    it = run('note(group + ".begun", names[0])\nimport time\ntime.sleep(60)')
    it.options.budget = 1
    it.run()
    assert "no time left after" in it.results()["golden loop"]["found"]


ROW = {
    "item": "vae 2.1 decode 480x832x81",
    "group": "rows",
    "state": "pass",
    "seconds": 3,
    "found": [
        {
            "who": "ours",
            "seconds": 2.0,
            "speed": 1.5,
            "of_peak": 0.6,
            "peak_mib": 100.0,
            "estimate": 1.5,
            "error": 1e-3,
        },
        {"who": "ComfyUI", "seconds": 3.0, "speed": 1.0, "of_peak": 0.4, "peak_mib": 900.0},
    ],
}


def test_the_table_names_goals_that_are_not_met():
    ours, theirs = report.table([ROW]).splitlines()[2:]
    assert "goal speed above 2; goal estimate within 25%" in ours and "goal of_peak" not in ours
    assert theirs.startswith("|  | ComfyUI | 3 | 1.00 |")


def test_the_report_is_one_file_with_all(tmp_path):
    broken = {
        "item": "golden loop",
        "group": "models",
        "state": "FAIL",
        "found": "Wrong: 3",
        "traceback": "in line 7\n",
    }
    report.write(tmp_path / "report.md", "command", [ROW, broken], "last words")
    text = (tmp_path / "report.md").read_text()
    for part in ("command", "FAIL golden loop: Wrong: 3", "vae 2.1 decode 480x832x81", "in line 7", "last words"):
        assert part in text
    assert torch.__version__ in text


def dry_run(folder: Path, only: list[str]) -> dict[str, str]:
    """Runs it in small on the CPU; returns the state of each item."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", "--out", str(folder), "--budget", "550"]
    page = (BENCHMARKS / "results.md").read_bytes()
    done = subprocess.run([*command, *(["--only", *only] if only else [])], capture_output=True, text=True)
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [x["item"] for x in found if x["state"] == "FAIL"] == [], done.stdout
    assert done.returncode == 0 and (folder / "report.md").stat().st_size > 4000
    assert (BENCHMARKS / "results.md").read_bytes() == page, "a dry run measures nothing"
    return {x["item"]: x["state"] for x in found}


def test_the_dry_run_passes(tmp_path):
    """A case of every check and row, but for the prompt on two servers, which takes longest."""
    firsts = {item.run.args[0]: name for name, item in reversed(items.ITEMS.items()) if item.group != "dynamic"}
    wanted = set(firsts.values()) - {"end to end 1.3B 832x480x81"}
    states = dry_run(tmp_path, sorted(wanted))
    assert wanted <= states.keys()
    assert {name for name in wanted if states[name] == "skip"} == ONLY_ON_A_CARD


@pytest.mark.slow
def test_the_whole_dry_run_passes(tmp_path):
    assert dry_run(tmp_path, []).keys() == items.ITEMS.keys()
