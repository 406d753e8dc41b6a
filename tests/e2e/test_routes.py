"""The pack's routes on a running server: what they answer, and what they refuse without touching anything."""

import io
import json
import struct
import urllib.error
import urllib.request

import pytest
from PIL import Image

from devtools import demo
from devtools.host import LINK
from devtools.workflow import to_prompt

HUGE = b"x" * 30_000_000


def ask(server, path, method="GET", body=None):
    """(status, content type, body) of a request to `server`."""
    request = urllib.request.Request(server.url + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.headers.get_content_type(), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read()


@pytest.mark.parametrize(
    "path, status",
    [
        ("/wan/info", 400),
        ("/wan/info?folder=vae&name=absent.safetensors", 400),
        ("/wan/info?folder=vae&name=../diffusion_models/tiny_random_wan2.1_t2v.safetensors", 400),
        ("/wan/info?folder=vae&name=..%2Fdiffusion_models%2Ftiny_random_wan2.1_t2v.safetensors", 400),
        ("/wan/info?folder=vae&name=/etc/passwd", 400),
        ("/wan/info?folder=vae&name=%00", 400),
        ("/wan/info?folder=../input&name=example.png", 400),
        ("/wan/video", 404),
        ("/wan/video?key=../x", 404),
        ("/wan/check", 400),
        ("/wan/check?node=KSampler", 400),
        ("/wan/check?node=WanSampler&seed=1", 400),
        ("/wan/check?node=WanVACE", 400),
        ("/wan/check?node=WanSampler&model=../vae/tiny_random_wan2.1_vae.safetensors", 400),
        ("/wan/check?node=WanLoraLoader&model=tiny_random_wan2.1_t2v.safetensors&lora_name=/etc/passwd", 400),
        ("/wan/estimate?width=64&height=64&length=5", 400),
        ("/wan/estimate?model=/etc/passwd&width=64&height=64&length=5", 400),
        ("/wan/estimate?model=tiny_random_wan2.1_t2v.safetensors&width=1e9&height=64&length=5", 400),
        ("/wan/estimate?model=tiny_random_wan2.1_t2v.safetensors&width=nan&height=64&length=5", 400),
        ("/wan/preview?key=../../etc/passwd", 404),
        ("/wan/preview", 404),
        ("/wan/", 404),
        ("/wan/../wan/absent", 404),
        ("/wan/%2e%2e/%2e%2e/etc/passwd", 404),
    ],
)
def test_a_bad_request_gets_one_sentence(server, path, status):
    answered, kind, body = ask(server, path)
    assert (answered, kind) == (status, "application/json")
    assert json.loads(body)["error"].endswith(".")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("question", ["info", "estimate", "noise", "check", "nodes", "preset", "preview"])
def test_other_methods_are_refused(server, method, question):
    answered, kind, body = ask(server, f"/wan/{question}?folder=vae&name=x", method, b"{}")
    assert (answered, kind) == (405, "application/json")
    assert "ask with GET" in json.loads(body)["error"]


def test_a_header_is_read_where_its_file_is_not(server, base):
    file = (base / "models" / "vae" / "tiny_random_wan2.1_vae.safetensors").read_bytes()
    header = file[8 : 8 + struct.unpack("<Q", file[:8])[0]]
    question = f"/wan/header?name=my.safetensors&size={len(file)}"
    status, _, body = ask(server, question, "POST", header)
    assert status == 200
    assert json.loads(body)["text"] == (
        "my.safetensors holds a Wan VAE (vae21): put it into models/vae, press R and choose it in Wan VAE Loader."
    )
    for sent in (b"[]", header[:-9]):
        assert "is not valid JSON" in json.loads(ask(server, question, "POST", sent)[2])["text"]
    assert ask(server, "/wan/header?name=x&size=-1", "POST", header)[0] == 400
    assert ask(server, question)[0] == 405


def test_a_huge_body_is_not_read(server):
    request = urllib.request.Request(f"{server.url}/wan/info", data=HUGE, method="POST")
    try:
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request, timeout=60)
    except (ConnectionError, urllib.error.URLError):
        pass  # refused while it was still being sent
    assert ask(server, "/wan/info?folder=vae&name=tiny_random_wan2.1_vae.safetensors")[0] == 200


def test_a_problem_is_told_before_the_run(client):
    question = (
        "/wan/check?node=WanSampler&model=tiny_random_wan2.1_t2v.safetensors&vae=tiny_random_wan{}_vae.safetensors"
    )
    assert client.get(question.format("2.1")) == {"problem": None}
    told = client.get(question.format("2.2"))
    assert "given 48-channel latents" in told["problem"]
    assert told["code"] == "sampled_latent"
    given = told["values"]["given"]
    assert (given["code"], given["values"]) == ("wan_latents", {"channels": 48, "family": "Wan 2.2 5B"})


def test_the_table_of_nodes_names_nodes_and_widgets_that_there_are(client, object_info):
    for name, known in client.get("/wan/nodes").items():
        named = {known["file"], *known["loras"], *known["loras"].values()} - {None}
        assert named <= inputs(object_info[name]), name
        own = object_info[name]["python_module"] == f"custom_nodes.{LINK}"
        assert own == (known["note"] is not None), name


def test_every_loader_and_every_node_with_a_size_has_its_note(client, object_info):
    table = client.get("/wan/nodes")
    own = {name for name, node in object_info.items() if node["python_module"] == f"custom_nodes.{LINK}"}
    sized = {name for name in own if {"width", "height", "length"} <= inputs(object_info[name])}
    assert {name for name in own if name.endswith("Loader")} <= table.keys()
    assert sized == {name for name, known in table.items() if known["note"] == "clip"}


def inputs(node: dict) -> set[str]:
    """The names of the inputs of a node of /object_info."""
    return node["input"]["required"].keys() | node["input"].get("optional", {}).keys()


def test_the_client_that_queued_a_run_sees_every_latent_frame(server, client, object_info):
    prompt = demo.adapt(to_prompt(demo.load_workflow("wan21_text_to_video"), object_info), "a red ball")
    sampler = next(number for number, node in prompt.items() if node["class_type"] == "WanSampler")
    prompt[sampler]["inputs"]["seed"] = 77
    pictures = []

    def note(event, data):
        if event == "wan.preview":
            status, kind, body = ask(server, data["picture"])
            assert (data["node"], status, kind) == (sampler, 200, "image/jpeg")
            pictures.append((data, Image.open(io.BytesIO(body)).convert("RGB")))

    client.run(prompt, note)
    assert [data["step"] for data, _ in pictures] == list(range(1, demo.DEMO_VALUES["steps"] + 1))
    for data, picture in pictures:
        width, height = picture.size
        assert (width, height / data["frames"], data["frames"]) == (8, 8, 5)
    first, last = pictures[0][1], pictures[-1][1]
    assert first.tobytes() != last.tobytes()
    frames = {last.crop((0, 8 * index, 8, 8 * index + 8)).tobytes() for index in range(5)}
    assert len(frames) == 5

    prompt[sampler]["inputs"]["seed"] = 78
    client.run(prompt)
    status, _, body = ask(server, pictures[-1][0]["picture"])
    assert (status, body) == (204, b""), "to ask late is no fault"
