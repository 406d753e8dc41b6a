"""A workflow with subgraphs and primitives becomes the prompt that the editor makes of it."""

import pytest

from devtools import subgraphs, workflow

INFO = {
    "Source": {"input": {"required": {"size": ["INT", {"default": 1}]}}},
    "Sum": {"input": {"required": {"a": ["INT", {"default": 0}], "b": ["INT", {"forceInput": True}]}}},
    "End": {"input": {"required": {"value": ["ANY"], "size": ["INT", {"default": 2}]}}},
}


def slot(name: str, link: int | None = None, widget: bool = False) -> dict:
    return {"name": name, "type": "INT", "link": link} | ({"widget": {"name": name}} if widget else {})


def inside(id: int, origin: int, target: int, target_slot: int) -> dict:
    fields = {"id": id, "origin_id": origin, "origin_slot": 0, "target_id": target, "target_slot": target_slot}
    return fields | {"type": "INT"}


def graph(instance_values: list, mode: int = 0) -> dict:
    """A subgraph whose one input is a widget of Sum and feeds its other input too; a primitive sets End's size."""
    inner = {
        "id": "inner",
        "inputs": [{"name": "shown", "linkIds": [1, 2]}],
        "outputs": [{"name": "out", "linkIds": [3]}],
        "nodes": [{"id": 5, "type": "Sum", "inputs": [slot("a", 1, True), slot("b", 2)], "widgets_values": [7]}],
        "links": [inside(1, -10, 5, 0), inside(2, -10, 5, 1), inside(3, 5, -20, 0)],
    }
    instance = {"id": 2, "type": "inner", "inputs": [slot("shown", None, True)], "widgets_values": instance_values}
    return {
        "nodes": [
            instance | {"mode": mode},
            {"id": 3, "type": "PrimitiveNode", "widgets_values": [64, "fixed"]},
            {"id": 4, "type": "End", "inputs": [slot("value", 9), slot("size", 8, True)], "widgets_values": [2]},
        ],
        "links": [[9, 2, 0, 4, 0, "INT"], [8, 3, 0, 4, 1, "INT"]],
        "definitions": {"subgraphs": [inner]},
    }


def to_prompt(saved: dict) -> dict:
    flat = subgraphs.unfold(saved)
    prompt = workflow.to_prompt({"nodes": flat.nodes, "links": flat.links}, INFO)
    flat.give(prompt)
    return {id: node["inputs"] for id, node in prompt.items()}


@pytest.mark.parametrize(("values", "shown"), [([], 7), ([9], 9)])
def test_a_subgraph_unfolds_with_the_value_that_it_shows(values, shown):
    prompt = to_prompt(graph(values))
    assert prompt == {"2:5": {"a": shown, "b": shown}, "4": {"value": ["2:5", 0], "size": 64}}


def test_nothing_comes_from_a_muted_subgraph():
    assert to_prompt(graph([], workflow.MUTED)) == {"4": {"size": 64}}
