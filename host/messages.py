"""Messages on nodes, and what several messages name."""

import logging

from ..wan_model.messages import Message
from ..wan_model.variants import FAMILIES
from . import server


def say(node_id: str, text: str) -> None:
    """Shows `text` on the node `node_id` in the editor and writes it to the log."""
    logging.info("%s", text)
    instance = server.running()
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)


def latents(channels: int) -> Message:
    """Name latents of so many channels, within another message."""
    family = FAMILIES.get(channels)
    if family is None:
        return Message("latents", "{channels}-channel latents", channels=channels)
    return Message("wan_latents", "{channels}-channel latents ({family})", channels=channels, family=family.title)
