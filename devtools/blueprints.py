"""Makes the subgraph blueprints of subgraphs/ from example workflows: one node in the editor for a whole workflow.

    python -m devtools.blueprints

Both hosts list the files of that folder in the search, under their names.
"""

import json
import uuid
from dataclasses import dataclass

from .demo import load_workflow
from .environment import ROOT

FOLDER = ROOT / "subgraphs"
OUTSIDE = ("LoadImage", "SaveVideo")  # what stays in the user's graph; a link to one of them ends at the node's edge
INPUTS, OUTPUTS = -10, -20  # the editor's numbers for the edges of a subgraph
NAMESPACE = uuid.UUID("3f0a1c52-0000-4000-8000-000000000000")
SHOWN = (  # the widgets of its nodes that the one node shows
    ("WanTextEncode", "positive"),
    ("WanTextEncode", "negative"),
    *((node, side) for node in ("WanEmptyLatent", "WanConditioning") for side in ("width", "height", "length")),
    *(("WanSampler", widget) for widget in ("steps", "guidance", "seed")),
    *(("WanStream", widget) for widget in ("prompts", "negative", "width", "height", "seconds", "seed")),
    ("WanModelLoader", "model_name"),
    ("WanTextEncoderLoader", "text_encoder_name"),
    ("WanVAELoader", "vae_name"),
)


@dataclass(frozen=True)
class Blueprint:
    """A file of subgraphs/: its name, what it says of itself, and the workflow it is made of."""

    name: str
    description: str
    workflow: str


BLUEPRINTS = (
    Blueprint(
        "Wan 2.1 Text to Video",
        "Makes a video of a text prompt with Wan 2.1 1.3B, decoded while it is saved.",
        "wan21_text_to_video",
    ),
    Blueprint(
        "Wan 2.2 5B Image to Video",
        "Makes a video that begins with a picture with Wan 2.2 5B, decoded while it is saved.",
        "wan22_image_to_video_5b",
    ),
    Blueprint(
        "Wan 2.1 Endless Video",
        "Makes a video of any length with a causal model of Wan 2.1, on disk while it is made.",
        "wan21_endless_video",
    ),
)


def build(blueprint: Blueprint) -> dict:
    """The editor's JSON of `blueprint`: a workflow of one node whose type is the subgraph."""
    workflow = load_workflow(blueprint.workflow)
    inside = {node["id"]: node for node in workflow["nodes"] if node["type"] not in OUTSIDE}
    links, inputs, outputs = [], [], []
    for number, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        if origin not in inside:
            name = inside[target]["inputs"][target_slot]["name"]
            origin, origin_slot = INPUTS, len(inputs)
            inputs.append(_edge(blueprint, name, kind, number))
        elif target not in inside:
            name = inside[origin]["outputs"][origin_slot]["name"]
            target, target_slot = OUTPUTS, len(outputs)
            outputs.append(_edge(blueprint, name, kind, number))
        values = (number, origin, origin_slot, target, target_slot, kind)
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links.append(dict(zip(keys, values, strict=True)))
    _let_out(blueprint, list(inside.values()), links, outputs)
    subgraph = {
        "id": str(uuid.uuid5(NAMESPACE, blueprint.name)),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(inside), "lastLinkId": max(link["id"] for link in links)}
        | {"lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": INPUTS, "bounding": [-160, 60, 120, 80]},
        "outputNode": {"id": OUTPUTS, "bounding": [2260, 60, 120, 80]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(inside.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": "Wan",
        "description": blueprint.description,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_node(blueprint, subgraph)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": blueprint.description},
        "version": 0.4,
    }


def _let_out(blueprint: Blueprint, nodes: list[dict], links: list[dict], outputs: list[dict]) -> None:
    """Lead a VIDEO that nothing takes, of a node that saves it itself, to an output of the subgraph."""
    for node in nodes:
        for slot, output in enumerate(node["outputs"]):
            if output["type"] == "VIDEO" and not output["links"]:
                number = max(link["id"] for link in links) + 1
                target = {"target_id": OUTPUTS, "target_slot": len(outputs)}
                links.append({"id": number, "origin_id": node["id"], "origin_slot": slot, **target, "type": "VIDEO"})
                output["links"] = [number]
                outputs.append(_edge(blueprint, output["name"], "VIDEO", number))


def _edge(blueprint: Blueprint, name: str, kind: str, link: int) -> dict:
    """An input or output of the subgraph with its one link."""
    return {"id": str(uuid.uuid5(NAMESPACE, f"{blueprint.name} {name}")), "name": name, "type": kind, "linkIds": [link]}


def _node(blueprint: Blueprint, subgraph: dict) -> dict:
    """The one node that stands for `subgraph`, with the widgets of `SHOWN`."""
    numbers = {node["type"]: str(node["id"]) for node in subgraph["nodes"]}
    return {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [420, 560],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": edge["name"], "type": edge["type"], "link": None} for edge in subgraph["inputs"]],
        "outputs": [{"name": edge["name"], "type": edge["type"], "links": []} for edge in subgraph["outputs"]],
        "title": blueprint.name,
        "properties": {"proxyWidgets": [[numbers[node], name] for node, name in SHOWN if node in numbers]},
        "widgets_values": [],
    }


def main() -> None:
    """Write every blueprint."""
    FOLDER.mkdir(exist_ok=True)
    for blueprint in BLUEPRINTS:
        text = json.dumps(build(blueprint), indent=2, ensure_ascii=False) + "\n"
        (FOLDER / f"{blueprint.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
