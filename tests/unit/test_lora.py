"""Every trainer's names of a LoRA's tensors lead to the parameter that they change."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from wan_model.weights import layouts, lora, lora_forms

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = json.loads(gzip.decompress((GOLDEN / "checkpoints.json.gz").read_bytes()))
DITS = [name for name in CHECKPOINTS if name.startswith("official/") and "head.head.weight" in CHECKPOINTS[name]]


def places(name):
    return [key.removesuffix(".weight") for key, shape in CHECKPOINTS[name].items() if key.endswith(".weight")]


def foreign(paths):
    names = layouts.rename(paths, layouts.inverse(layouts.DIT_DIFFUSERS))
    return [names[path] for path in paths]


STYLES = {
    "diffusion_model.{}.lora_A.weight": places,
    "model.diffusion_model.{}.lora_up.weight": places,
    "{}.lora_B.default.weight": places,
    "pipe.dit.{}.lora_A.weight": places,
    "base_model.model.{}.lora_A.weight": places,
    "transformer.{}.lora_A.weight": lambda name: foreign(places(name)),
    "base_model.model.transformer.{}.lora.down.weight": lambda name: foreign(places(name)),
    "diffusion_model.{}.diff": places,
    "lora_unet_{}.lora_down.weight": lambda name: [path.replace(".", "_") for path in places(name)],
    "lora_unet__{}.alpha": lambda name: [path.replace(".", "_") for path in places(name)],
    "lycoris_{}.lokr_w1": lambda name: [path.replace(".", "_") for path in foreign(places(name))],
    "lora_transformer_{}.hada_w1_a": lambda name: [path.replace(".", "_") for path in foreign(places(name))],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("model", DITS)
def test_every_name_of_every_model_leads_home(model, style):
    tensors = {style.format(path): torch.empty(1, device="meta") for path in STYLES[style](model)}
    groups, unmatched = lora.group(tensors, CHECKPOINTS[model])
    assert not unmatched
    assert list(groups) == places(model)


def test_what_leads_nowhere_is_named():
    tensors = dict.fromkeys(["blocks.0.self_attn.q.weight", "diffusion_model.blocks.99.self_attn.q.lora_A.weight", "x"])
    groups, unmatched = lora.group(tensors, CHECKPOINTS[DITS[0]])
    assert not groups and unmatched == list(tensors)


def test_lone_parameters_have_differences_too():
    tensors = {"diffusion_model.blocks.3.diff_m": torch.ones(1, 6, 8), "diffusion_model.head.modulation.diff": 1}
    groups, unmatched = lora.group(tensors, CHECKPOINTS[DITS[0]])
    assert not unmatched and groups.keys() == {"blocks.3.modulation", "head.modulation"}
    assert list(groups["blocks.3.modulation"]) == [".diff"]


@pytest.mark.parametrize(
    "shapes, expected",
    [
        ({".lora_A.weight": (4, 30), ".lora_B.weight": (20, 4)}, (20, 30)),
        ({".lora_down.weight": (4, 3, 1, 2, 2), ".lora_up.weight": (20, 4, 1, 1, 1)}, (20, 12)),
        ({".diff": (20, 30)}, (20, 30)),
        ({".hada_w1_a": (20, 4), ".hada_w1_b": (4, 30), ".hada_w2_a": (20, 4), ".hada_w2_b": (4, 30)}, (20, 30)),
        ({".lokr_w1": (2, 3), ".lokr_w2": (10, 10)}, (20, 30)),
        ({".lokr_w1": (2, 3), ".lokr_w2_a": (10, 4), ".lokr_w2_b": (4, 10)}, (20, 30)),
        ({".alpha": ()}, None),
    ],
)
def test_the_shape_of_a_change(shapes, expected):
    tensors = {suffix: torch.empty(shape, device="meta") for suffix, shape in shapes.items()}
    assert lora_forms.change_shape(tensors) == expected
