"""The pictures under nodes in the editor: noise levels before a run, matched LoRA keys and skipped steps after it."""

import json
import urllib.error
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from devtools import demo
from devtools.workflow import to_prompt

HIGH, LOW = (f"tiny_random_wan2.2_t2v_{noise}_noise.safetensors" for noise in ("high", "low"))
RUN = {"steps": 40, "shift": 12, "solver": "euler"}


def noise(client, **given):
    """The answer of /wan/noise."""
    return client.get(f"/wan/noise?{urlencode(RUN | given)}")


def levels(steps: int, shift: float) -> list[float]:
    """Noise levels of a flow schedule that falls evenly before the shift."""
    even = [1 - step / steps for step in range(steps + 1)]
    return [shift * level / (1 + (shift - 1) * level) for level in even]


def test_the_noise_levels_are_those_of_the_schedule(client):
    answer = noise(client)
    assert answer["sigmas"] == pytest.approx(levels(40, 12), abs=1e-6) and answer["switch"] is None
    part = noise(client, start_step=10, end_step=30)["sigmas"]
    assert part == answer["sigmas"][10:31]


@pytest.mark.parametrize("boundary, until", [(0, 0.875), (0.5, 0.5)])
def test_the_experts_change_at_the_boundary(client, boundary, until):
    answer = noise(client, model=HIGH, low_noise_model=LOW, boundary=boundary)
    assert 0 < answer["switch"] < 40
    assert answer["switch"] == sum(level >= until for level in levels(40, 12)[:-1])


def test_a_preset_replaces_the_schedule(client):
    names = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
    answer = noise(client, model=HIGH, low_noise_model=LOW, preset="auto", names=names)
    assert answer["sigmas"] == pytest.approx(levels(4, 5), abs=1e-6) and answer["switch"] == 2


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"solver": "magic"}, {"start_step": 40}, {"boundary": 2}])
def test_what_is_no_schedule_is_refused_in_a_sentence(server, wrong):
    with pytest.raises(urllib.error.HTTPError) as error:
        urlopen(f"{server.url}/wan/noise?{urlencode(RUN | wrong)}")
    assert error.value.code == 400 and json.load(error.value)["error"].endswith(".")


def test_a_run_reports_matched_keys_and_skipped_steps(client, object_info):
    prompt = to_prompt(demo.load_workflow("Try it - in four steps"), object_info)
    number, lora = next((key, node) for key, node in prompt.items() if node["class_type"] == "WanLoraLoader")
    sampler = next(node for node in prompt.values() if node["class_type"] == "WanSampler")
    lora["inputs"]["strength_1"] = 0.9  # no run before has cached it
    budget = {"criterion": "easycache", "budget": 1, "start_percent": 0, "end_percent": 1}
    prompt["99"] = {"class_type": "WanStepCache", "inputs": {"model": sampler["inputs"]["model"], **budget}}
    sampler["inputs"].update(model=["99", 0], steps=6, preset="none")
    found = {}
    client.run(prompt, lambda event, data: found.update({data["node"]: data} if event == "wan.report" else {}))
    (matched,) = found[number]["loras"]
    assert matched["name"] == lora["inputs"]["lora_1"] and matched["matched"] == matched["keys"] > 100
    steps = found["99"]["steps"]
    assert len(steps) == 6 and steps[:2] == ["computed", "computed"] and "skipped" in steps[2:]
