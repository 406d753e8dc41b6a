"""Words for the person at the graph."""

import logging

from ..wan_model.variants import FAMILIES
from . import server


def say(node_id: str, text: str) -> None:
    """Shows `text` on the node `node_id` in the editor and writes it to the log."""
    logging.info("%s", text)
    instance = server.running()
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)


def latents(channels: int) -> str:
    """What latents of so many channels are called in a sentence."""
    family = FAMILIES.get(channels)
    return f"{channels}-channel latents" + (f" ({family.title})" if family else "")
