"""An operator's side: asks a collector to run a plan, and waits for the result as long as it takes.

A connection that breaks is made again: the run goes on without it. Below: service.link_io.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import trio

from netprobe import __version__
from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.host.tls import ClientTls, Credentials, dial
from netprobe.model.results import Json
from netprobe.service.link_io import LinkIo, monotonic_ns
from netprobe.wire.link import OperatorLink
from netprobe.wire.link_events import Event, Welcomed
from netprobe.wire.report import PROTOCOL_VERSION, Hello, unpack_value_untrusted

DIAL_S = 5.0
AGAIN_S = 1.0
PATIENCE_S = 60.0
"""How long a collector may be away before its operator gives up."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Whom to ask, as whom."""

    name: str
    collector: tuple[str, int]
    credentials: Credentials


async def _ask_once(config: OperatorConfig, op: str, args: object) -> Json:
    """One question on a connection of its own."""
    address, port = config.collector
    try:
        with trio.fail_after(DIAL_S):
            plain = await trio.open_tcp_stream(address, port)
    except (OSError, trio.TooSlowError) as error:
        raise HostNotReadyError(
            f"collector {address}:{port}",
            f"cannot be reached: {error or 'no answer'}",
            advice="is `netprobe serve` up?",
        ) from error
    stream, _ = await dial(plain, ClientTls(config.credentials))
    hello = Hello(
        version=PROTOCOL_VERSION,
        name=config.name,
        role="operator",
        boot=secrets.token_hex(16),
        software=__version__,
    )
    welcomed = trio.Event()

    async def handle(event: Event) -> None:
        if isinstance(event, Welcomed):
            welcomed.set()

    io = LinkIo(stream, OperatorLink(hello, monotonic_ns()), handle)
    answers: list[Json] = []
    failures: list[NetprobeError] = []

    async def converse(scope: trio.CancelScope) -> None:
        await welcomed.wait()
        try:
            answer = await io.ask(op, args)
            answers.append(unpack_value_untrusted(answer.body or answer.result, dict))
        except NetprobeError as error:
            failures.append(error)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, nursery.cancel_scope)
        await io.run()
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not answers:
        raise HostNotReadyError(f"collector {address}:{port}", io.ended or "said nothing")
    return answers[0]


async def run_remotely(
    config: OperatorConfig, plan: str, where: str, progress: Callable[[str], None] = lambda _: None
) -> Json:
    """Let a collector run a plan; returns the run's document.

    Args:
        config: whom to ask.
        plan: text of the plan file.
        where: its name, for errors.
        progress: is told in words what happens.

    Raises:
        NetprobeError: the collector's own error, or HostNotReadyError where it cannot be reached.
    """
    began = await _ask_once(config, "run", {"plan": plan, "where": where})
    run = str(began.get("run"))
    progress(f"run {run} is under way")
    heard = trio.current_time()
    while True:
        began_at = trio.current_time()
        try:
            return await _ask_once(config, "wait", {"run": run})
        except HostNotReadyError as error:
            # A handshake, too: it let us in before, and a collector that has just come back may be busy for long.
            if not error.where.startswith(("collector ", "link", "TLS handshake")):
                raise
            if trio.current_time() - began_at > DIAL_S:
                heard = trio.current_time()  # it was there, and waited with us
            if trio.current_time() - heard > PATIENCE_S:
                raise
            progress(str(error))
        await trio.sleep(AGAIN_S)


async def collector_status(config: OperatorConfig) -> Json:
    """Who is connected to a collector, and what runs. Raises as `run_remotely`."""
    return await _ask_once(config, "status", {})
