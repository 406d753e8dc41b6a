"""Unfolds the subgraphs and primitives of a workflow saved by the editor, as it does when its Run button is pressed."""

from dataclasses import dataclass, field

from .workflow import BYPASSED, MUTED, as_link

INPUT, OUTPUT = -10, -20  # ids of a subgraph's own two ends
PRIMITIVE = "PrimitiveNode"


@dataclass(frozen=True)
class Value:
    """The value of a widget, in place of a link."""

    value: object

    def is_known(self, prompt: dict) -> bool:
        """Whether the API prompt `prompt` can tell the value."""
        return True

    def read(self, prompt: dict) -> object:
        """The value."""
        return self.value


@dataclass(frozen=True)
class Same:
    """The value of another node's widget: a subgraph's input that shows it feeds other nodes too."""

    node: str
    name: str

    def is_known(self, prompt: dict) -> bool:
        """Whether the API prompt `prompt` has the node and its widget."""
        return self.name in prompt.get(self.node, {"inputs": {}})["inputs"]

    def read(self, prompt: dict) -> object:
        """The value that the API prompt `prompt` has for the widget."""
        return prompt[self.node]["inputs"][self.name]


@dataclass
class Flat:
    """nodes and links: as in a workflow. given: node id -> input -> the value that it gets from outside its node."""

    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    given: dict[str, dict[str, Value | Same]] = field(default_factory=dict)

    def give(self, prompt: dict) -> None:
        """Put the given values into the API prompt of these nodes, but none of a widget that the prompt lacks."""
        for kind in (Value, Same):  # a widget's own value may be given as well
            for node, inputs in self.given.items():
                for name, value in inputs.items():
                    if isinstance(value, kind) and node in prompt and value.is_known(prompt):
                        prompt[node]["inputs"][name] = value.read(prompt)


class Scope:
    """The workflow itself, or what one node that stands for a subgraph unfolds to.

    definitions: the subgraphs by id. outer and instance: the scope that holds the node, and that node.
    """

    def __init__(self, graph: dict, definitions: dict, outer: "Scope | None" = None, instance: dict | None = None):
        self.graph, self.definitions, self.outer, self.instance = graph, definitions, outer, instance
        self.prefix = "" if outer is None else f"{outer.prefix}{instance['id']}:"
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.links = {link["id"]: link for link in map(as_link, graph["links"])}
        active = [node for node in graph["nodes"] if node.get("mode") not in (MUTED, BYPASSED)]
        self.inner = {
            node["id"]: Scope(definitions[node["type"]], definitions, self, node)
            for node in active
            if node["type"] in definitions
        }

    def origin(self, link: dict) -> tuple[str, int] | Value | Same | None:
        """(node id, output index) that feeds `link`, or the widget that does; None where nothing does."""
        if link["origin_id"] == INPUT:
            return self._from_outside(link["origin_slot"])
        if link["origin_id"] in self.inner:
            return self.inner[link["origin_id"]]._to_outside(link["origin_slot"])
        node = self.nodes[link["origin_id"]]
        if node["type"] == PRIMITIVE:
            return Value(node["widgets_values"][0])
        return f"{self.prefix}{node['id']}", link["origin_slot"]

    def _from_outside(self, slot: int) -> tuple[str, int] | Value | Same | None:
        name = self.graph["inputs"][slot]["name"]
        fed = next((one for one in self.instance["inputs"] if one["name"] == name), {})
        if fed.get("link") is not None:
            return self.outer.origin(self.outer.links[fed["link"]])
        return self._widget(self.graph["inputs"][slot])

    def _to_outside(self, slot: int) -> tuple[str, int] | Value | Same | None:
        ends = [link for link in self.links.values() if link["target_id"] == OUTPUT]
        link = next((link for link in ends if link["target_slot"] == slot), None)
        return None if link is None else self.origin(link)

    def _widget(self, end: dict) -> Value | Same | None:
        """The value of the input `end` of this subgraph where it is a widget: the instance's own, or the one inside."""
        widgets = [one["name"] for one in self.graph["inputs"] if self._targets(one)]
        if not (targets := self._targets(end)):
            return None
        if values := self.instance.get("widgets_values"):
            return Value(values[widgets.index(end["name"])])
        target, name = targets[0]
        if target not in self.inner:
            return Same(f"{self.prefix}{target}", name)
        inner = self.inner[target]
        return inner._widget(next(one for one in inner.graph["inputs"] if one["name"] == name))

    def _targets(self, end: dict) -> list[tuple[int, str]]:
        """(node id, input) of the widgets in this subgraph that its input `end` stands for."""
        links = [self.links[index] for index in end["linkIds"]]
        slots = [(link["target_id"], self.nodes[link["target_id"]]["inputs"][link["target_slot"]]) for link in links]
        return [(id, slot["name"]) for id, slot in slots if "widget" in slot]

    def unfold(self, flat: Flat) -> None:
        """Add the nodes of this scope and of those in it to `flat`."""
        for node in self.graph["nodes"]:
            if node["id"] in self.inner:
                self.inner[node["id"]].unfold(flat)
            elif node["type"] != PRIMITIVE:
                flat.nodes.append(node | {"id": f"{self.prefix}{node['id']}", "inputs": self._inputs(node, flat)})

    def _inputs(self, node: dict, flat: Flat) -> list[dict]:
        """The inputs of `node` with links of `flat`, which gets these."""
        inputs = []
        for slot in node.get("inputs", []):
            origin = None if slot.get("link") is None else self.origin(self.links[slot["link"]])
            link = None
            if isinstance(origin, Value | Same):
                flat.given.setdefault(f"{self.prefix}{node['id']}", {})[slot["name"]] = origin
            elif origin is not None:
                link = len(flat.links) + 1
                flat.links.append([link, *origin, f"{self.prefix}{node['id']}", len(inputs), slot["type"]])
            inputs.append(slot | {"link": link})
        return inputs


def unfold(workflow: dict) -> Flat:
    """`workflow` without subgraphs and primitives. A subgraph's nodes get ids like "129:98", as in the editor."""
    definitions = {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}
    flat = Flat()
    Scope(workflow, definitions).unfold(flat)
    return flat
