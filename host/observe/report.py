"""Findings of a node from its run, for the picture under it in the editor.

It is sent as the event `EVENT` to the client that queued the run, and not kept.
"""

from .. import server

EVENT = "wan.report"


def send(place: dict[str, str] | None, **found: object) -> None:
    """Send `found`, plain values for JSON, about the node of `place` (`preview.where`); nothing for None."""
    instance = server.running()
    if place is not None:
        instance.send_sync(EVENT, {**place, **found}, instance.client_id)
