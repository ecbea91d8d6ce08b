"""The routes of the live page: files that are read once, JSON that a Source answers, and events (docs/live-page.md).

Starlette on trio. What is known comes from a Source (service.web_page); nothing here opens a store or a socket. Every
answer, refusals too, carries the same headers: no script, style or connection but this server's own.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netprobe.errors import NetprobeError
from netprobe.model.results import Json
from netprobe.show.web.guard import Guard

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
MAX_LISTENERS = 64
BEAT_S = 15.0


class Source(Protocol):
    """What is known."""

    async def overview(self) -> bytes:
        """All paths, changes and verifications, as JSON."""

    async def path(self, path: str, run_id: str | None) -> Json | None:
        """One path, in one run or its newest."""

    async def segment(self, path: str, leg: str, segment: str) -> Json:
        """The history of one segment."""

    async def verification(self, run_id: str) -> Json | None:
        """One verification."""

    def agents(self) -> Json:
        """Agents and their health."""

    async def wait_news(self, version: int, within_s: float) -> int:
        """The newest version, when it is another one or the time is over."""


def _read(folder: str) -> dict[str, tuple[bytes, str]]:
    """All files of a folder of this package, with their types."""
    found = {}
    for file in files("netprobe.show.web").joinpath(folder).iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind:
            found[file.name] = (file.read_bytes(), kind)
    return found


def _json(document: object, status: int = 200) -> Response:
    return Response(json.dumps(document), status, media_type="application/json")


def _answering(how: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """An error that netprobe raises on purpose is an answer, not a fault."""

    async def answer(request: Request) -> Response:
        try:
            return await how(request)
        except NetprobeError as error:
            return _json({"error": str(error)}, 503)

    return answer


class Pages:
    """The handlers of all routes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = {**_read("static"), **_read("vendor")}
        self._listeners = 0

    def routes(self) -> list[Route]:
        """All there are."""
        table: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self.index,
            "/static/{name}": self.file,
            "/api/overview": self.overview,
            "/api/path/{path}": self.path,
            "/api/path/{path}/segment": self.segment,
            "/api/verify/{run}": self.verification,
            "/api/agents": self.agents,
            "/api/events": self.events,
        }
        return [Route(place, _answering(how), methods=["GET"]) for place, how in table.items()]

    async def index(self, _request: Request) -> Response:
        """The page; which part of it is shown stands behind the # of its address."""
        return Response(self._files["index.html"][0], media_type="text/html")

    async def file(self, request: Request) -> Response:
        """Style, scripts, charts."""
        found = self._files.get(request.path_params["name"])
        return Response(found[0], media_type=found[1]) if found else PlainTextResponse("there is no such file", 404)

    async def overview(self, _request: Request) -> Response:
        """Everything that the first look shows."""
        return Response(await self._source.overview(), media_type="application/json")

    async def path(self, request: Request) -> Response:
        """One path."""
        found = await self._source.path(request.path_params["path"], request.query_params.get("run"))
        return _json(found) if found else _json({"error": "no such path, or not in that run"}, 404)

    async def segment(self, request: Request) -> Response:
        """The history of one of its segments."""
        query = request.query_params
        path = request.path_params["path"]
        return _json(await self._source.segment(path, query.get("leg", "forward"), query.get("id", "")))

    async def verification(self, request: Request) -> Response:
        """One verification."""
        found = await self._source.verification(request.path_params["run"])
        return _json(found) if found else _json({"error": "no such verification"}, 404)

    async def agents(self, _request: Request) -> Response:
        """Agents and their health."""
        return _json(self._source.agents())

    async def events(self, request: Request) -> Response:
        """Server-sent events: the number of the newest state of things, whenever it changes."""
        if self._listeners >= MAX_LISTENERS:
            return PlainTextResponse("too many pages are open", 503)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(self._news(), media_type="text/event-stream")

    async def _news(self) -> AsyncIterator[str]:
        self._listeners += 1
        try:
            version = await self._source.wait_news(-1, 0)
            while True:
                yield f'data: {{"version": {version}}}\n\n'
                version = await self._source.wait_news(version, BEAT_S)
        finally:
            self._listeners -= 1


class Guarded:
    """Around the routes: refuses who may not look, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope; anything but HTTP (a web socket) is closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._guard.refusal(scope["method"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        answer = PlainTextResponse(refusal.text, refusal.status, headers=dict(refusal.headers))
        await answer(scope, receive, send_with_headers)


def make_app(source: Source, guard: Guard) -> Any:
    """The page as an ASGI application.

    Args:
        source: what is known.
        guard: who may look.
    """
    routes = Starlette(routes=Pages(source).routes())
    return Guarded(GZipMiddleware(routes, minimum_size=2_000, compresslevel=3), guard)
