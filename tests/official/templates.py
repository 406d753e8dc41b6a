"""The official templates that run an open Wan model, as prompts that end at the latents and run in seconds.

They come from the package `comfyui-workflow-templates-json`, which `dev.py test` puts beside those of the environment;
none is copied into this repository. The clip's length and every other setting stay; pictures become small and the steps
few.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devtools import environment, subgraphs, workflow

import nodes
from . import cuts

FOLDER = Path(sys.prefix) / environment.TEMPLATES_FOLDER / "comfyui_workflow_templates_json" / "templates"
FAMILY = ("wan", "humo", "causal_forcing", "chrono_edit_14b")  # what the names of its model files hold
LOADERS = {"UNETLoader"}
WIDTH, HEIGHT, STEPS = 64, 96, 4
SMALL = {"width": WIDTH, "height": HEIGHT, "steps": STEPS, "megapixels": 0.01}


@cache
def names() -> dict[str, int]:
    """Template -> usage, most used first, of those that load an open Wan model."""
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    listed = {template["name"]: template.get("usage") or 0 for group in index for template in group["templates"]}
    ours = {name: usage for name, usage in listed.items() if _loads_wan(name)}
    return dict(sorted(ours.items(), key=lambda item: -item[1]))


def read(name: str) -> dict:
    """The workflow of the template `name`, as the editor saves it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _loads_wan(name: str) -> bool:
    graph = read(name)
    graphs = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
    loaders = [node for graph in graphs for node in graph["nodes"] if node["type"] in LOADERS]
    files = [str(value).lower() for node in loaders for value in (node.get("widgets_values") or [])[:1]]
    return any(part in file for file in files for part in FAMILY)


def object_info() -> dict:
    """Return the inputs of every node of this host, as the server's /object_info gives them."""
    info = {}
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        described = node.GET_NODE_INFO_V1() if hasattr(node, "GET_NODE_INFO_V1") else None
        info[name] = {"input": described["input"] if described else node.INPUT_TYPES()}
    return info


@dataclass(frozen=True)
class Prompt:
    """nodes: the API prompt. ends: ids of the nodes that keep a latent. cut: classes that tensors stand in for.
    lacking: those of them that this host does not have.
    """

    nodes: dict
    ends: list[str]
    cut: set[str]
    lacking: set[str]


def prompt(name: str, info: dict) -> Prompt:
    """The template `name` up to the latents that it decodes."""
    flat = subgraphs.unfold(read(name))
    lacking = {node["type"] for node in flat.nodes if _is_lacking(node, info)}
    known = info | {name: {"input": {}} for name in lacking}
    made = workflow.to_prompt({"nodes": [_trim(node, known) for node in flat.nodes], "links": flat.links}, known)
    flat.give(made)
    kinds = {node["id"]: [output["type"] for output in node.get("outputs", [])] for node in flat.nodes}
    ends = cuts.keep_latents(made)
    cuts.prune(made, ends)
    cut = cuts.cut(made, kinds, lacking)
    cuts.unplug_switches(made, info)
    cuts.prune(made, ends)
    shrink(made)
    return Prompt(made, ends, cut, cut & lacking)


def shrink(made: dict) -> None:
    """Set every picture size to `WIDTH` x `HEIGHT` and every number of steps to `STEPS`, halved between two experts."""
    for node in made.values():
        inputs = node["inputs"]
        for key in inputs:
            inputs[key] = SMALL.get(key.rpartition(".")[2], inputs[key])
        if node["class_type"] == "KSamplerAdvanced":
            first = inputs["add_noise"] == "enable"
            inputs |= {"start_at_step": 0, "end_at_step": STEPS // 2} if first else {"start_at_step": STEPS // 2}


def _is_lacking(node: dict, info: dict) -> bool:
    special = workflow.NOTES | {"Reroute"}
    idle = node.get("mode") in (workflow.MUTED, workflow.BYPASSED)
    return not idle and node["type"] not in special and node["type"] not in info


def _trim(node: dict, info: dict) -> dict:
    """`node` without the values of widgets that only the editor has or that a newer host adds at the end."""
    values = list(node.get("widgets_values") or [])
    if node["type"] in info and values:
        surplus = workflow.read_widgets(node, info[node["type"]]["input"])[1]
        values = values[: len(values) - len(surplus)]
    return node | {"widgets_values": values}
