"""Ends a prompt at its latents, and stands tensors in for what cannot be had: other models' files, paid services."""

import logging
from typing import ClassVar

import recipe
import torch

import nodes

AUXILIARY = {  # nodes of models that are no part of Wan, too large for a test, and of paid services
    *("SAM3_VideoTrack", "SAM3_Detect", "AudioEncoderEncode", "GeminiImageNode", "GeminiNodeV3"),
}
ENCODERS = {"wav2vec2_large": (25, 1024), "wav2vec2-chinese-base": (13, 768), "whisper_large": (33, 1280)}
DECODERS = {"VAEDecode", "VAEDecodeTiled"}
FRAMES, HEIGHT, WIDTH = 81, 96, 64


def _sound(layers: int, channels: int) -> dict:
    """AUDIO_ENCODER_OUTPUT of ten seconds."""
    hidden = [recipe.tensor(f"sound {layer}", (1, 500, channels)) for layer in range(layers)]
    return {"encoded_audio": hidden[-1], "encoded_audio_all_layers": hidden, "audio_samples": 160000}


def _video(name: str) -> torch.Tensor:
    """IMAGE (81, 96, 64, 3)."""
    return recipe.tensor(name, (FRAMES, HEIGHT, WIDTH, 3)).sigmoid()


MAKERS = {  # type of a link -> what stands in, from a name
    "IMAGE": _video,
    "MASK": lambda name: (_video(name)[..., 0] > 0.5).float(),
    "STRING": lambda name: f"What node {name} says.",
    "BOOLEAN": lambda name: True,  # a loop that the host cannot run: its first turn is its last
    "*": _video,
    "AUDIO_ENCODER_OUTPUT": lambda name: _sound(*next(size for part, size in ENCODERS.items() if part in name)),
}


class Given:
    """A node that makes the tensors which stand in for a cut node."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "make", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING",), "name": ("STRING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def make(self, kind, name):
        return (MAKERS[kind](name),)


class Keep:
    """A node that keeps the latent which a decoder gets, in `Keep.latents` by `name`."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tests", True
    latents: ClassVar[dict[str, torch.Tensor]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "name": ("STRING",)}}

    def keep(self, samples, name):
        self.latents[name] = samples["samples"]
        return ()


def register() -> None:
    """Make the two nodes known to the host."""
    nodes.NODE_CLASS_MAPPINGS |= {"OfficialGiven": Given, "OfficialKeep": Keep}


def cut(made: dict, kinds: dict[str, list[str]], lacking: set[str]) -> set[str]:
    """Cut nodes of `AUXILIARY` and `lacking` classes off `made`; return their classes.

    kinds: node id -> types of its outputs. A node that takes what nothing can stand in for is cut as well.
    """
    gone = {id for id, node in made.items() if node["class_type"] in AUXILIARY | lacking}
    while more := {id for id, node in made.items() if id not in gone and _starves(node, gone, kinds)}:
        gone |= more
    for id, node in list(made.items()):
        for name, link in node["inputs"].items():
            if id not in gone and _is_link(link) and link[0] in gone:
                node["inputs"][name] = [_give(made, link, kinds), 0]
    return {made.pop(id)["class_type"] for id in gone}


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _starves(node: dict, gone: set[str], kinds: dict[str, list[str]]) -> bool:
    links = [value for value in node["inputs"].values() if _is_link(value) and value[0] in gone]
    return any(kinds[id][slot] not in MAKERS for id, slot in links)


def _give(made: dict, link: list, kinds: dict[str, list[str]]) -> str:
    """Id of the node that stands in for the origin of `link`, added to `made`."""
    id, name = f"given:{link[0]}:{link[1]}", f"{link[0]} {link[1]}"
    encoder = made[link[0]]["inputs"].get("audio_encoder")
    if encoder is not None:
        name = made[encoder[0]]["inputs"]["audio_encoder_name"]
    kind = kinds[link[0]][link[1]]
    made[id] = {"class_type": "OfficialGiven", "inputs": {"kind": kind, "name": name}}
    logging.info("%s of node %s is given.", kind, link[0])
    return id


def unplug_switches(made: dict, info: dict) -> None:
    """Remove switches with one side left open, as a newer host allows; what they feed gets its default or nothing."""
    open_ones = {
        id
        for id, node in made.items()
        if node["class_type"] == "ComfySwitchNode" and not node["inputs"].keys() >= {"on_true", "on_false"}
    }
    for node in (node for id, node in made.items() if id not in open_ones):
        declared = info.get(node["class_type"], {}).get("input", {})
        options = {
            name: kind[-1] for group in ("required", "optional") for name, kind in declared.get(group, {}).items()
        }
        for name in [name for name, value in node["inputs"].items() if _is_link(value) and value[0] in open_ones]:
            del node["inputs"][name]
            if "default" in (options.get(name) or {}):
                node["inputs"][name] = options[name]["default"]
    for id in open_ones:
        del made[id]


def keep_latents(made: dict) -> list[str]:
    """Add a node that keeps the latent in front of each decoder; return the ids of these nodes."""
    decoders = {id: node for id, node in made.items() if node["class_type"] in DECODERS}
    for id, node in decoders.items():
        inputs = {"samples": node["inputs"]["samples"], "name": id}
        made[f"keep:{id}"] = {"class_type": "OfficialKeep", "inputs": inputs}
    return [f"keep:{id}" for id in decoders]


def prune(made: dict, ends: list[str]) -> None:
    """Remove what the nodes `ends` do not need."""
    needed, waiting = set(), list(ends)
    while waiting:
        id = waiting.pop()
        if id in made and id not in needed:
            needed.add(id)
            waiting += [value[0] for value in made[id]["inputs"].values() if _is_link(value)]
    for id in made.keys() - needed:
        del made[id]
