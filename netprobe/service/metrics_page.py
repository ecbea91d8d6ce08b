"""The page /metrics by itself: one small ASGI application, served over HTTP in the nursery of the program that has it.

Read-only, and there is nothing else behind it. Beyond loopback it asks for a token. The live page (show.web) is another
server, at another address, and has no such page.
"""

import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.show.exposition import CONTENT_TYPE, Exposition

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PATH = "/metrics"


async def metrics_app(page: Exposition, token: str, scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI application.

    Args:
        page: what is shown.
        token: that is asked for, "" for none.
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
    status, body = _answer(page, token, scope)
    headers = [
        (b"content-type", (CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8").encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _answer(page: Exposition, token: str, scope: Message) -> tuple[int, bytes]:
    if scope["path"] != PATH:
        return 404, b"only /metrics is here\n"
    if scope["method"] not in {"GET", "HEAD"}:
        return 405, b"read only\n"
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    if token and not hmac.compare_digest(given, b"Bearer " + token.encode()):
        return 401, b"a token is needed\n"
    return 200, page.page(realtime_ns())


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
        HostNotReadyError: the address cannot be listened at.
    """
    from hypercorn.config import Config  # noqa: PLC0415  only those pay who serve a page
    from hypercorn.trio import serve  # noqa: PLC0415  likewise

    address, port = listen
    try:
        listeners = await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        raise HostNotReadyError(
            f"{address}:{port}",
            f"cannot be listened at: {error.strerror or error}",
            advice="is another one running?",
        ) from error
    config = Config()
    config.bind = [f"fd://{one.socket.detach()}" for one in listeners]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    await serve(partial(metrics_app, page, token), config, mode="asgi", task_status=task_status)
