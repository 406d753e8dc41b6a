"""Turns a workflow saved by the editor into the prompt that the server's API takes.

The editor's file is the only copy of a workflow; this does what the editor does when its Run button is pressed. It
needs the server's `/object_info`, because the file lists widget values by position and only the node says their names.
"""

from collections.abc import Collection

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # each choice brings widgets of its own, named "<combo>.<widget>"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", DYNAMIC_COMBO}
SEEDS = {"seed", "noise_seed"}  # the editor adds a "control after generate" widget to these by name
UPLOADS = ("image_upload", "video_upload", "audio_upload")  # options that add an upload button
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """API prompt for `workflow` (the editor's JSON): {node id: {"class_type", "inputs", "_meta"}}.

    Raise ValueError naming the node where the file does not fit the server's nodes.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link["id"]: link for link in map(as_link, workflow["links"])}
    prompt = {}
    for node in nodes.values():
        if node["type"] in NOTES or node["type"] == "Reroute" or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"The server has no node {node['type']} (node {node['id']}): install the pack it is from.")
        inputs = _widget_inputs(node, object_info[node["type"]]["input"])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs.pop(slot["name"], None)
                if (origin := _origin(links[slot["link"]], nodes, links)) is not None:
                    inputs[slot["name"]] = origin
        title = node.get("title", node["type"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def lacking(workflow: dict, object_info: Collection[str]) -> set[str]:
    """Return the classes of nodes in `workflow` (the editor's JSON) that a server with `object_info` does not have."""
    return {node["type"] for node in workflow["nodes"] if node["type"] not in NOTES | {"Reroute"}} - set(object_info)


def as_link(link: list | dict) -> dict:
    """A link of either format version as one dictionary."""
    if isinstance(link, dict):
        return link
    return dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))


def _origin(link: dict, nodes: dict, links: dict) -> list | None:
    """[node id, output index] that feeds `link`, seen through reroutes and bypassed nodes; None behind a muted one."""
    node = nodes[link["origin_id"]]
    if node.get("mode") == MUTED:
        return None
    if node["type"] != "Reroute" and node.get("mode") != BYPASSED:
        return [str(node["id"]), link["origin_slot"]]
    slots = [slot for slot in node.get("inputs", []) if node["type"] == "Reroute" or slot["type"] == link["type"]]
    if not slots or slots[0].get("link") is None:
        return None
    return _origin(links[slots[0]["link"]], nodes, links)


def _is_widget(kind: str | list, options: dict) -> bool:
    """Whether the editor shows an input of this declaration as a widget and not only as a slot."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def _widget_inputs(node: dict, declared: dict) -> dict:
    """Values of a node's widgets by input name; raises ValueError where the file has more than the node."""
    inputs, surplus = read_widgets(node, declared)
    if surplus:
        raise ValueError(
            f"Node {node['id']} ({node['type']}) has {len(surplus)} widget values more than its {len(inputs)} widgets: "
            "save the workflow again with this version of the node."
        )
    return inputs


def read_widgets(node: dict, declared: dict) -> tuple[dict, list]:
    """(values of a node's widgets by input name, values without a widget); newer inputs keep the node's default."""
    values, inputs = list(node.get("widgets_values") or []), {}
    _read_widgets(declared, values, inputs, "")
    return inputs, values


def _read_widgets(declared: dict, values: list, inputs: dict, prefix: str) -> None:
    """Move the `values` of the declared widgets into `inputs`, under their names after `prefix`."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in declared.get(group, {}).items():
            options = rest[0] if rest else {}
            if not _is_widget(kind, options) or (group == "optional" and not values):
                continue
            if values:
                value = values.pop(0)
                del values[: _has_second_widget(name, kind, options)]
            else:
                value = _default(kind, options)
            inputs[prefix + name] = value
            if kind == DYNAMIC_COMBO:
                chosen = next((option for option in options["options"] if option["key"] == value), {"inputs": {}})
                _read_widgets(chosen["inputs"], values, inputs, f"{prefix}{name}.")


def _default(kind: str | list, options: dict) -> object:
    """Return the editor's initial value of a widget with this declaration."""
    choices = kind if isinstance(kind, list) else options.get("options") or [None]
    first = choices[0] if choices else None
    return options.get("default", first["key"] if isinstance(first, dict) else first)


def _has_second_widget(name: str, kind: str | list, options: dict) -> bool:
    """Whether the editor saves one more value after this widget's own."""
    controlled = kind == "INT" and (options.get("control_after_generate") or name in SEEDS)
    return bool(controlled or any(options.get(upload) for upload in UPLOADS))
