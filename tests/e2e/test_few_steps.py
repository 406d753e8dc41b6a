"""Few-step sampling in the server's own executor, which decides the nodes that run."""

import copy

import pytest

from devtools import demo
from devtools.workflow import to_prompt


@pytest.fixture
def prompt(object_info) -> dict:
    """A demo prompt whose positive and negative are encoded by a node each, of these ids."""
    prompt = demo.adapt(to_prompt(demo.load_workflow("wan21_text_to_video"), object_info), "a red ball")
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "WanSampler")
    (encoder,) = (node for node in prompt.values() if node["class_type"] == "WanTextEncode")
    for socket, words in (("positive", "a red ball"), ("negative", "blurry")):
        inputs = {"text": words, "clip": encoder["inputs"]["clip"]}
        prompt[socket] = {"class_type": "CLIPTextEncode", "inputs": inputs}
        sampler["inputs"][socket] = [socket, 0]
    return prompt


def run(client, prompt: dict, **changed) -> set[str]:
    """The nodes that the server ran of `prompt` with other inputs of WanSampler."""
    prompt, ran = copy.deepcopy(prompt), set()
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "WanSampler")
    sampler["inputs"].update(changed)
    assert client.run(prompt, lambda event, data: ran.add((event, data.get("node"))))
    return {node for event, node in ran if event == "executing"}


def test_the_negative_prompt_is_encoded_only_where_it_is_read(client, prompt):
    assert {"positive"} == run(client, prompt, guidance=1.0, steps=2) & {"positive", "negative"}
    assert "negative" not in run(client, prompt, guidance=5.0, steps=2, preset="lightx2v")
    assert "negative" in run(client, prompt, guidance=2.0, steps=2)
    del prompt["negative"]
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "WanSampler")
    del sampler["inputs"]["negative"]
    assert run(client, prompt, guidance=1.0, steps=3)
