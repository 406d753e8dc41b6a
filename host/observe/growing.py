"""A video file that is being written, for the player in its node.

Each block sends the event `EVENT` to the client that queued the run. The player gets the file itself as a response that
goes on while the file grows (GET /wan/video).
"""

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
from aiohttp import web

from .. import server
from ..vae.growing import GrowingVideo
from . import latest, preview

EVENT = "wan.video"
RECENT = 40  # fragments behind the end at which a player begins at most
PAUSE = 0.1  # seconds between looks for a new fragment
PIECE = 2**20  # bytes that are read at once


@dataclass
class Showing:
    """A growing file and its newest fragments, by where they begin.

    It is read until it is `over`: then the file may be replaced.
    """

    video: GrowingVideo
    starts: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self) -> None:
        """Let nobody read the file any more."""
        with self.lock:
            self.over = True

    def read(self, start: int, stop: int) -> bytes:
        """Return some bytes from `start` to `stop` at most, none once it is over."""
        with self.lock:
            if self.over:
                return b""
            with self.video.path.open("rb") as file:
                file.seek(start)
                return file.read(min(stop - start, PIECE))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the header and the newest fragments, and each new one when it is whole, until it is over."""
        yield self.read(0, self.video.header)
        at = self.starts[0]
        while not self.over:
            if at < self.video.size:
                data = await asyncio.to_thread(self.read, at, self.video.size)
                at += len(data)
                yield data
            else:
                await asyncio.sleep(PAUSE)


class Player:
    """Tells the editor of one file. total: its seconds in the end, None for a video without end."""

    def __init__(self, video: GrowingVideo, total: float | None):
        self.showing, self.total = Showing(video), total
        self.key = secrets.token_urlsafe(16)

    def tell(self, finished: bool = False) -> None:
        """Send what is written, if there is a client."""
        video, place = self.showing.video, preview.where()
        self.showing.starts.append(video.fragment)
        if place is None:
            return
        instance = server.running()
        instance.app[latest.VIDEO].show(self.key, self.showing)
        data = {
            **place,
            **saved_as(video.path),
            "seconds": video.seconds,
            "total": self.total,
            "finished": finished,
            "live": f"/wan/video?key={self.key}",
        }
        instance.send_sync(EVENT, data, instance.client_id)

    def end(self) -> None:
        """Close the file for players, before it is finished."""
        self.showing.end()


async def respond(showing: Showing, request: web.Request) -> web.StreamResponse:
    """Return the response to a player: the file, as long as it grows."""
    headers = {"Content-Type": "video/mp4", "Cache-Control": "no-store"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":
        async for piece in showing.pieces():
            await response.write(piece)
    return response


def saved_as(path: Path) -> dict[str, str]:
    """Return the name of a file in the host's output folder as its routes know it."""
    folder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": "" if folder == "." else folder, "type": "output"}
