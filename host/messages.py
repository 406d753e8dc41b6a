"""Messages on nodes, and wording that several messages share."""

import logging

from ..wan_model.messages import Message
from ..wan_model.variants import FAMILIES
from . import server


def say(node_id: str, text: str) -> None:
    """Show `text` on the node `node_id` in the editor and write it to the log."""
    logging.info("%s", text)
    instance = server.running()
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)


def latents(channels: int) -> Message:
    """Return the name of latents with `channels` channels, for use in another message."""
    family = FAMILIES.get(channels)
    if family is None:
        return Message("latents", "{channels}-channel latents", channels=channels)
    return Message("wan_latents", "{channels}-channel latents ({family})", channels=channels, family=family.title)
