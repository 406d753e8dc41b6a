"""The registry's archive: unpacked into a host without this repository, it makes a video."""

import sys
import zipfile
from pathlib import Path

import av
import pytest

from devtools import archive, demo, host, locales
from devtools.client import Client
from devtools.environment import ROOT, SetupError
from devtools.server import Server
from devtools.workflow import to_prompt

NOT_PUBLISHED = (".ci", ".dev", "benchmarks", "dev.py", "devtools", "pictures", "tests", "tiny/train.py")
CLASSIFIERS = {  # that the registry knows; it drops all of a pack's if one of them is another
    *("Operating System :: OS Independent", "Programming Language :: Python :: 3"),
    *(f"Environment :: GPU :: {name}" for name in ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal")),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The archive, made anew."""
    path = tmp_path_factory.mktemp("archive") / "node.zip"
    try:
        archive.pack(path)
    except SetupError as error:
        pytest.skip(str(error))
    return path


@pytest.fixture(scope="module")
def installed(packed, comfyui, tmp_path_factory):
    """A server of a host that has the unpacked archive, and nothing else, among its custom nodes."""
    base = tmp_path_factory.mktemp("clean")
    host.make_folders(base)
    with zipfile.ZipFile(packed) as files:
        files.extractall(base / "custom_nodes" / host.LINK)
    with Server(sys.executable, comfyui, base, cpu=True) as running:
        yield running


def test_the_archive_leaves_out_what_is_for_developers(packed):
    with zipfile.ZipFile(packed) as files:
        names = files.namelist()
    assert "__init__.py" in names and "pyproject.toml" in names
    for room in ("host", "locales", "nodes", "subgraphs", "wan_model", "web", "workflows"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.*") if path.suffix != ".pyc"}
        assert files <= set(names), f"{sorted(files - set(names))} is needed: see .comfyignore"
    assert [name for name in names if name.startswith(NOT_PUBLISHED)] == []
    assert all(name.isascii() for name in names), "comfy-cli leaves out files with other characters in their names"


def test_the_archive_is_small_and_its_report_says_how_small(packed):
    size = packed.stat().st_size / 1e6
    assert 15 < size < 40  # most of it is the demo family
    assert f"{size:.1f} MB, {len(zipfile.ZipFile(packed).namelist())} files" in archive.report(packed)


def test_the_registry_is_told_what_the_pack_needs():
    tomllib = pytest.importorskip("tomllib")
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = config["project"], config["tool"]["comfy"]
    assert project["dependencies"] == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert set(project["classifiers"]) <= CLASSIFIERS
    assert all(project[field] for field in ("name", "version", "description"))
    assert all(comfy[field] for field in ("PublisherId", "DisplayName"))
    assert comfy["requires-comfyui"] == f">={host.FLOOR}"


def test_an_unpacked_archive_makes_a_video(installed):
    client = Client(installed.url)
    object_info = client.get("/object_info")
    own = {name for name, node in object_info.items() if node["python_module"] == f"custom_nodes.{host.LINK}"}
    assert own == set(locales.read("en"))
    prompt = to_prompt(demo.load_workflow(demo.DEMO_WORKFLOW), object_info)
    files = [file for file in client.run(prompt) if file["filename"].endswith(".mp4")]
    video = installed.log.parent / "output" / files[0]["subfolder"] / files[0]["filename"]
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) > 1 and all(frame.std() > 1 for frame in frames)


def test_the_server_lists_and_serves_what_the_archive_brings(installed):
    client = Client(installed.url)
    templates = sorted(path.stem for path in demo.WORKFLOWS.glob("*.json"))
    assert sorted(client.get("/workflow_templates")[host.LINK]) == templates
    assert client.get(f"/api/workflow_templates/{host.LINK}/{templates[0]}.json")["nodes"]
    assert {"en", "zh"} <= client.get("/i18n").keys()
    scripts = {path.name for path in (ROOT / "web").glob("*.js")}
    served = {path.rpartition("/")[2] for path in client.get("/extensions") if f"/{host.LINK}/" in path}
    assert scripts <= served
    log = installed.log.read_text(encoding="utf-8", errors="replace")
    assert "IMPORT FAILED" not in log and "Traceback" not in log
