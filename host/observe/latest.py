"""The newest of what runs show while they go on."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aiohttp import web

Shown = TypeVar("Shown")
PAST = 100  # earlier runs whose keys are still known


@dataclass
class Latest(Generic[Shown]):
    """The newest run and its result so far; one is enough, since the host runs one prompt at a time.

    key: names the run to the editor. past: the keys of earlier runs.
    """

    key: str = ""
    shown: Shown | None = None
    past: deque[str] = field(default_factory=lambda: deque(maxlen=PAST))

    def show(self, key: str, shown: Shown) -> None:
        """Have the run `key` show `shown`."""
        if key != self.key:
            self.past.append(self.key)
        self.key, self.shown = key, shown

    def of(self, key: str) -> Shown | None:
        """Return what the run `key` shows, or None if it is not the newest."""
        return self.shown if key == self.key else None

    def is_past(self, key: str) -> bool:
        """Whether a run `key` was before the newest one."""
        return bool(key) and key in self.past


PREVIEW = web.AppKey("wan_latest_preview", Latest)  # its key in the server's application: a `preview.Sheet`
VIDEO = web.AppKey("wan_latest_video", Latest)  # and that of a `growing.Showing`
