"""Finds processes of a group that have ended or hang, and ends the group, so that nothing waits for them for ever."""

import threading
import time
from collections.abc import Callable

from torch.distributed import PrefixStore

from . import wire

EVERY = 0.5  # seconds
PATIENCE = 7.0  # seconds without a sign of life, or beyond `SLOWER`
SLOWER = 3.0  # times as long as this process takes for its own part of the work


class Watch:
    """A thread beside process 0, which says when it begins and ends to wait.

    store: a connection of its own. is_alive: tells whether none has ended. names: of all whose beats are looked at, by
    their keys. end: called once with the reason, when a process is found that has ended or hangs.
    """

    def __init__(
        self, store: PrefixStore, is_alive: Callable[[], bool], names: dict[str, str], end: Callable[[str], None]
    ):
        self.store, self.is_alive, self.names, self.end = store, is_alive, names, end
        self.since: float | None = None  # when the wait began
        self.ended = time.monotonic()  # when the last one ended
        self.allowed = PATIENCE
        self.seen: dict[str, tuple[str, float]] = {}  # the last beat of each process, and when it came
        self.moved: dict[str, tuple[str, float]] = {}  # the same for its progress
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def begin(self, patience: float = 0.0) -> None:
        """Note that process 0 waits for others from now on, at least `patience` seconds."""
        now = time.monotonic()
        self.allowed = max(patience, PATIENCE + SLOWER * (now - self.ended))
        self.since = now

    def finish(self) -> None:
        """Note that process 0 waits no more."""
        self.since, self.ended = None, time.monotonic()

    def stop(self) -> None:
        """End the thread."""
        self.is_over.set()

    def run(self) -> None:
        """Look until the group is over."""
        while not self.is_over.wait(EVERY):
            reason = self.look()
            if reason is not None and not self.is_over.is_set():
                self.is_over.set()
                self.end(reason)

    def look(self) -> str | None:
        """Return what is wrong with the group, or None."""
        if not self.is_alive():
            return "ended"
        return next(filter(None, map(self.look_at, self.names)), None)

    def look_at(self, key: str) -> str | None:
        """Return what is wrong with what beats under `key` while process 0 waits, or None."""
        now, since = time.monotonic(), self.since
        beat = self.beat(key)
        progress, _, waits = beat.partition(" ")[2].partition(" ")
        for table, value in ((self.seen, beat), (self.moved, progress)):
            if key not in table or table[key][0] != value:
                table[key] = value, now
        if since is None or not beat:  # it still starts
            return None
        if now - max(self.seen[key][1], since) > PATIENCE:
            return f"{self.names[key]} has shown no sign of life for {PATIENCE:.0f} seconds"
        if waits == "0" and now - max(self.moved[key][1], since) > self.allowed:
            return f"{self.names[key]} hangs: it has not gone on for {self.allowed:.0f} seconds"
        return None

    def beat(self, key: str) -> str:
        """Return the last beat under `key`, "" before the first."""
        try:
            return self.store.get(key).decode() if self.store.check([key]) else ""
        except wire.Ended:
            return ""
