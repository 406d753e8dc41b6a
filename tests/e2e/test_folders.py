"""Model files where people keep them: on another drive, in subfolders, behind links, under any name."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import av
import pytest

from devtools import demo, host
from devtools.client import Client, PromptError
from devtools.environment import ROOT
from devtools.server import Server
from devtools.workflow import to_prompt

FAMILY = ROOT / "tiny" / "models"
WORKFLOW = "Try it - in four steps"
DIT = "wan_tiny_t2v.safetensors"
PLACES = {  # file of the family -> folder, and the name that the editor shows for it
    DIT: ("diffusion_models", "\u4e07\u76f8 2.1/my model (1) \u6587\u751f\u89c6\u9891.safetensors"),
    "wan_tiny_umt5.safetensors": ("text_encoders", "linked folder/umt5 \u00e9.safetensors"),
    "wan_tiny_vae.safetensors": ("vae", "linked file.safetensors"),
    "wan_tiny_t2v_4step_lora.safetensors": ("loras", "wan/4 steps/v1.0/lora, four steps.safetensors"),
}


def put(source: str, target: Path) -> None:
    """Copy the file `source` of the demo family to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(FAMILY.rglob(source)), target)


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    """Another drive, under a name with spaces and Chinese characters, with the files of the demo family."""
    folder = tmp_path_factory.mktemp("drive") / "My Models \u6a21\u578b"
    for source, (kind, name) in PLACES.items():
        put(source, folder / kind / Path(name).relative_to("linked folder" if name.startswith("linked folder") else ""))
    return folder


@pytest.fixture(scope="module")
def elsewhere(comfyui, drive, tmp_path_factory):
    """A server whose models are on the drive: two folders by extra_model_paths.yaml, two by symbolic links."""
    base = tmp_path_factory.mktemp("elsewhere")
    host.prepare_base(base)
    for kind in ("text_encoders", "vae"):
        (base / "models" / kind).mkdir(parents=True)
    os.symlink(drive / "text_encoders", base / "models" / "text_encoders" / "linked folder")
    os.symlink(drive / "vae" / "linked file.safetensors", base / "models" / "vae" / "linked file.safetensors")
    paths = base / "another drive.yaml"
    known = {"base_path": str(drive), "diffusion_models": "nowhere\ndiffusion_models", "loras": "loras"}
    paths.write_text(f"another drive: {json.dumps(known, ensure_ascii=False)}", encoding="utf-8")
    option = "--extra-model-paths-config"
    with Server(sys.executable, comfyui, base, option, str(paths), cpu=True) as running:
        yield running


@pytest.fixture
def prompt(elsewhere) -> dict:
    """The prompt of the template for four steps, with the names that the files have here."""
    text = json.dumps(to_prompt(demo.load_workflow(WORKFLOW), Client(elsewhere.url).get("/object_info")))
    for source, (_, name) in PLACES.items():
        assert f'"{source}"' in text
        text = text.replace(f'"{source}"', json.dumps(name))
    return json.loads(text)


def test_a_template_runs_with_files_from_anywhere(elsewhere, prompt):
    files = [file for file in Client(elsewhere.url).run(prompt) if file["filename"].endswith(".mp4")]
    with av.open(str(elsewhere.log.parent / "output" / files[0]["subfolder"] / files[0]["filename"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == demo.DEMO_VALUES["length"] and all(frame.std() > 1 for frame in frames)


@pytest.mark.parametrize("source", [source for source in PLACES if "lora" not in source])
def test_the_server_says_what_such_a_file_is(elsewhere, source):
    folder, name = PLACES[source]
    answer = Client(elsewhere.url).get(f"/wan/info?{urlencode({'folder': folder, 'name': name})}")
    assert answer["bytes"] == next(FAMILY.rglob(source)).stat().st_size


def test_a_refresh_finds_a_file_that_came_and_names_one_that_went(elsewhere, drive, prompt):
    client, name = Client(elsewhere.url), "later/\u65b0 \u6a21\u578b.safetensors"
    listed = lambda: json.dumps(client.get("/object_info/WanModelLoader"), ensure_ascii=False)  # noqa: E731
    info = f"/wan/info?folder=diffusion_models&name={quote(name)}"
    assert name not in listed() and "press R" in client.get(info)["error"]

    put(DIT, drive / "diffusion_models" / name)
    assert name in listed() and client.get(info)["variant"]

    (drive / "diffusion_models" / name).unlink()
    assert name not in listed() and "press R" in client.get(info)["error"]
    loader = next(node for node in prompt.values() if node["class_type"] == "WanModelLoader")
    loader["inputs"]["model_name"] = name
    with pytest.raises(PromptError, match=rf"WanModelLoader .*{re.escape(name)}.*models/diffusion_models"):
        client.run(prompt)


def test_a_link_to_a_file_that_is_gone_is_said_to_be_one(elsewhere, drive, prompt):
    client, link = Client(elsewhere.url), elsewhere.log.parent / "models" / "vae" / "broken link.safetensors"
    os.symlink(drive / "gone.safetensors", link)
    said = "'broken link.safetensors' in the models/vae folder is a link to a file that is not there"
    assert client.get(f"/wan/info?folder=vae&name={quote(link.name)}")["error"].startswith(said)
    loader = next(node for node in prompt.values() if node["class_type"] == "WanVAELoader")
    loader["inputs"]["vae_name"] = link.name
    with pytest.raises(PromptError, match=said):
        client.run(prompt)
    link.unlink()
