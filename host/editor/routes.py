"""Read-only HTTP routes for the editor, under /wan."""

import asyncio

from aiohttp import web

from ...wan_model.messages import Message
from .. import server
from ..observe import growing, latest
from . import estimate, info, noise, preflight, suggestion


async def get_info(request: web.Request) -> web.Response:
    """GET /wan/info?folder=F&name=N: `info.describe`."""
    folder, name = request.query.get("folder", ""), request.query.get("name", "")
    return web.json_response(await asyncio.to_thread(info.describe, folder, name))


async def post_header(request: web.Request) -> web.Response:
    """POST /wan/header?name=N&size=B, a file's header as body: `info.place`, as `Message.plain` or its "text" alone."""
    name, size = request.query.get("name", ""), request.query.get("size", "")
    if not size.isdecimal():
        raise ValueError(f"size is {size[:20]!r}: give the size of the file in bytes.")
    found = await asyncio.to_thread(info.place, name, await request.read(), int(size))
    return web.json_response(found.plain() if isinstance(found, Message) else {"text": found})


async def get_preview(request: web.Request) -> web.Response:
    """GET /wan/preview?key=K: the newest frames of a run as a JPEG, `preview.Sheet.jpeg`."""
    newest, key = request.app[latest.PREVIEW], request.query.get("key", "")
    sheet = newest.of(key)
    if sheet is None:
        return missing(newest, key)
    body = await asyncio.to_thread(sheet.jpeg)
    return web.Response(body=body, content_type="image/jpeg", headers={"Cache-Control": "no-store"})


async def get_video(request: web.Request) -> web.StreamResponse:
    """GET /wan/video?key=K: a file that is being written, as long as it grows, `growing.respond`."""
    newest, key = request.app[latest.VIDEO], request.query.get("key", "")
    showing = newest.of(key)
    if showing is None:
        return missing(newest, key)
    return await growing.respond(showing, request)


def missing(newest: latest.Latest, key: str) -> web.Response:
    """Return the response for a run that is not the newest: status 204 for an earlier one, 404 for one unknown.

    A client that asks late does nothing wrong, and its console stays clean.
    """
    return web.Response(status=204) if newest.is_past(key) else refuse(404, "There is no run with this key.")


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


async def get_noise(request: web.Request) -> web.Response:
    """GET /wan/noise?steps=N&shift=S&solver=V: `noise.from_query`."""
    return web.json_response(await asyncio.to_thread(noise.from_query, request.query))


QUESTIONS = {
    "info": get_info,
    "estimate": get_estimate,
    "noise": get_noise,
    "check": get_check,
    "nodes": get_nodes,
    "preset": get_preset,
    "preview": get_preview,
    "video": get_video,
    "header": post_header,
}
METHODS = {"header": ("POST",)}  # of a question, where not GET and HEAD


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a request under /wan: one of `QUESTIONS`, or status 400, 404 or 405 with {"error": a sentence}."""
    question = QUESTIONS.get(request.match_info["question"])
    if question is None:
        return refuse(404, f"There is no such route: use one of {', '.join(QUESTIONS)}.")
    methods = METHODS.get(request.match_info["question"], ("GET", "HEAD"))
    if request.method not in methods:
        return refuse(405, f"{request.method} is not supported here: ask with {methods[0]}.", Allow=", ".join(methods))
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
        for key in (latest.PREVIEW, latest.VIDEO):
            instance.app[key] = latest.Latest()
        instance.routes.route("*", "/wan/{question:.*}")(answer)
