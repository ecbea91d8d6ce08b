"""The page /metrics by itself: one small ASGI application, served over HTTP in the nursery of the program that has it.

Read-only, and there is nothing else behind it. Who may look is decided as for the live page (show.web.guard), which is
another server, at another address, and has no such page.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from netprobe.host.clock import realtime_ns
from netprobe.service.listening import listen_at
from netprobe.show.exposition import CONTENT_TYPE, Exposition
from netprobe.show.web.guard import Guard, guard_of

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PATH = "/metrics"
OPTIONS = ("--metrics", "--metrics-token-file FILE")
"""Where the page is, and what gives its token: for errors."""


async def metrics_app(page: Exposition, guard: Guard, scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI application.

    Args:
        page: what is shown.
        guard: who may look.
        scope: of the request.
        receive: nothing of a request's body is read.
        send: takes the answer.
    """
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    if scope["type"] != "http":  # the server offers web sockets; one that is not accepted is closed
        return
    status, body, more = _answer(page, guard, scope)
    headers = [
        (b"content-type", (CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8").encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"cross-origin-resource-policy", b"same-origin"),
        *((name.encode(), value.encode()) for name, value in more),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _answer(page: Exposition, guard: Guard, scope: Message) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
    """Status, body, and headers of a refusal."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    refusal = guard.refusal(scope["method"], headers)
    if refusal is not None:
        return refusal.status, f"{refusal.text}\n".encode(), refusal.headers
    if scope["path"] != PATH:
        return 404, b"only /metrics is here\n", ()
    return 200, page.page(realtime_ns()), ()


async def serve_metrics(
    page: Exposition,
    listen: tuple[str, int],
    token: str = "",
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the page until cancelled.

    Args:
        page: what is shown.
        listen: address and port.
        token: that is asked for, "" for none.
        task_status: is told where it listens, as URLs.

    Raises:
        UsageError: the address is none, or others can reach it and there is no token, or one that can be guessed.
        HostNotReadyError: the address cannot be listened at.
    """
    from hypercorn.config import Config  # noqa: PLC0415  only those pay who serve a page
    from hypercorn.trio import serve  # noqa: PLC0415  likewise

    address, port = listen
    guard = guard_of(address, token, OPTIONS)
    listeners = await listen_at(OPTIONS[0], address, port)
    config = Config()
    config.bind = [f"fd://{one.socket.detach()}" for one in listeners]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    await serve(partial(metrics_app, page, guard), config, mode="asgi", task_status=task_status)
