"""What the editor may ask of the pack over HTTP, under /wan."""

import asyncio
import sys

from aiohttp import web

from . import info


async def get_info(request: web.Request) -> web.Response:
    """GET /wan/info?folder=F&name=N: `info.describe` as JSON, or status 400 and {"error": a sentence}."""
    folder, name = request.query.get("folder", ""), request.query.get("name", "")
    try:
        return web.json_response(await asyncio.to_thread(info.describe, folder, name))
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)


def register() -> None:
    """Adds the routes to the running server; without one there is nothing to do."""
    server = sys.modules.get("server")
    instance = getattr(server.PromptServer, "instance", None) if server else None
    if instance is not None:
        instance.routes.get("/wan/info")(get_info)
