"""Read-only HTTP routes for the editor, under /wan."""

import asyncio

from aiohttp import web

from ...wan_model.messages import Message
from .. import server
from ..observe import preview
from . import estimate, info, preflight, suggestion


async def get_info(request: web.Request) -> web.Response:
    """GET /wan/info?folder=F&name=N: `info.describe`."""
    folder, name = request.query.get("folder", ""), request.query.get("name", "")
    return web.json_response(await asyncio.to_thread(info.describe, folder, name))


async def get_preview(request: web.Request) -> web.Response:
    """GET /wan/preview?key=K: the newest frames of a run as a JPEG, `preview.Sheet.jpeg`."""
    sheet = request.app[preview.LATEST].of(request.query.get("key", ""))
    if sheet is None:
        return refuse(404, "The preview of this run is gone: another run has started.")
    body = await asyncio.to_thread(sheet.jpeg)
    return web.Response(body=body, content_type="image/jpeg", headers={"Cache-Control": "no-store"})


async def get_check(request: web.Request) -> web.Response:
    """GET /wan/check?node=N&...: `preflight.problem` for the other values of the query.

    {"problem": None or the sentence in English}, and `Message.plain` of a message that has other wordings.
    """
    given = dict(request.query)
    found = await asyncio.to_thread(preflight.problem, given.pop("node", ""), given)
    answer = {"problem": None if found is None else str(found)}
    return web.json_response(answer | (found.plain() if isinstance(found, Message) else {}))


async def get_preset(request: web.Request) -> web.Response:
    """GET /wan/preset?name=N&name=M: `suggestion.suggest`, as {"settings": None} or `Message.plain` and `settings`."""
    found = suggestion.suggest(request.query.getall("name", []))
    if found is None:
        return web.json_response({"settings": None})
    message, settings = found
    return web.json_response({**message.plain(), "settings": settings})


async def get_nodes(request: web.Request) -> web.Response:
    """GET /wan/nodes: `preflight.table`."""
    return web.json_response(preflight.table())


async def get_estimate(request: web.Request) -> web.Response:
    """GET /wan/estimate?model=N&width=W&height=H&length=F: `estimate.from_query`."""
    return web.json_response(await asyncio.to_thread(estimate.from_query, request.query))


QUESTIONS = {
    "info": get_info,
    "estimate": get_estimate,
    "check": get_check,
    "nodes": get_nodes,
    "preset": get_preset,
    "preview": get_preview,
}


async def answer(request: web.Request) -> web.Response:
    """Answer a request under /wan: one of `QUESTIONS`, or status 400, 404 or 405 with {"error": a sentence}."""
    question = QUESTIONS.get(request.match_info["question"])
    if question is None:
        return refuse(404, f"There is no such route: use one of {', '.join(QUESTIONS)}.")
    if request.method not in ("GET", "HEAD"):
        return refuse(405, f"{request.method} is not supported here: ask with GET.", Allow="GET, HEAD")
    try:
        return await question(request)
    except ValueError as error:
        return refuse(400, str(error))


def refuse(status: int, sentence: str, **headers: str) -> web.Response:
    """Return an error response."""
    return web.json_response({"error": sentence}, status=status, headers=headers)


def register() -> None:
    """Add the routes, and the state that they read, to the running server, if there is one."""
    instance = server.running()
    if instance is not None:
        instance.app[preview.LATEST] = preview.Latest()
        instance.routes.route("*", "/wan/{question:.*}")(answer)
