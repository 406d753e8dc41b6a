"""Names that other packs or ComfyUI might have too: of nodes, sockets and the folder of the scripts."""

import pytest

from devtools import locales
from devtools.host import LINK

OF_OTHERS = {  # nodes of KJNodes and WanVideoWrapper that begin as ours do; `devtools.neighbours` runs the packs
    *(
        "Wan21BlockLoraSelect",
        "WanChunkFeedForward",
        "WanImageToVideoSVIPro",
        "WanVideoMemoryEfficientSageAttentionPatch",
    ),
    *("WanVideoBlockSwap", "WanVideoContextOptions", "WanVideoDecode", "WanVideoEmptyEmbeds", "WanVideoEncode"),
    *("WanVideoEnhanceAVideo", "WanVideoEnhanceAVideoKJ", "WanVideoImageClipEncode", "WanVideoLatentPreview"),
    *("WanVideoLoraBlockEdit", "WanVideoLoraSelect", "WanVideoModelLoader", "WanVideoNAG", "WanVideoSampler"),
    *("WanVideoTeaCache", "WanVideoTeaCacheKJ", "WanVideoTextEmbedBridge", "WanVideoTextEncode"),
    *("WanVideoTextImageEncode", "WanVideoTorchCompileSettings", "WanVideoVAELoader", "WanVideoVRAMManagement"),
}


@pytest.fixture
def nodes(object_info):
    """Node classes of this pack, and of ComfyUI."""
    ours = {name: node for name, node in object_info.items() if node["python_module"] == f"custom_nodes.{LINK}"}
    return ours, {name: node for name, node in object_info.items() if name not in ours}


def types(nodes: dict) -> set[str]:
    """The types of all sockets of `nodes`; a list of choices is COMBO, and a socket may take several types."""
    groups = [node["input"].get(group, {}) for node in nodes.values() for group in ("required", "optional")]
    found = [kind for group in groups for kind, *_ in group.values()]
    found += [kind for node in nodes.values() for kind in node["output"]]
    return {one for kind in found for one in (["COMBO"] if isinstance(kind, list) else kind.split(","))}


def test_no_node_has_a_name_of_another_pack(nodes):
    ours, _ = nodes
    assert set(ours) == set(locales.read("en"))  # none was taken by another
    assert all(name.startswith("Wan") for name in ours) and not OF_OTHERS & set(ours)


def test_every_socket_is_of_a_type_of_comfyui_or_of_a_name_of_our_own(nodes):
    ours, hosts = nodes
    assert len(types(ours) & types(hosts)) > 5
    assert all(kind.startswith("WAN_") for kind in types(ours) - types(hosts))  # WanVideoWrapper's have no underscore
