"""A link (wire.link) on a stream: octets in and out, timers, and questions that wait for their answers.

Both ends use it: an agent, an operator, and the collector once for each connection. It owns its two tasks; who uses it
gives a function for events.
"""

import math
import time
from collections.abc import Awaitable, Callable

import trio

from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.host.tls import why_broken
from netprobe.wire.link import AgentLink, CollectorLink, OperatorLink
from netprobe.wire.link_events import Answered, Closed, Ending, Event

READ_BYTES = 1 << 18
CLOSE_S = 1.0
MAX_WAIT_S = 1.0
MIN_WAIT_S = 0.005
Link = AgentLink | CollectorLink | OperatorLink
Handle = Callable[[Event], Awaitable[None]]


def monotonic_ns() -> int:
    """The clock of links."""
    return time.monotonic_ns()


class LinkIo:
    """One link on one stream; `run` lives as long as the connection.

    Args:
        stream: connected, encrypted.
        link: fresh.
        handle: takes each event, in order; what it takes long for it gives to a task.
        pump: called before anything is sent; gives the link blocks.
    """

    def __init__(
        self, stream: trio.abc.Stream, link: Link, handle: Handle, pump: Callable[[], None] = lambda: None
    ) -> None:
        self.link = link
        self.ended = ""
        self._why = ""
        self._stream = stream
        self._handle = handle
        self._pump = pump
        self._wake = trio.Event()
        self._closing = trio.Event()
        self._waiting: dict[int, tuple[trio.Event, list[Answered | HostNotReadyError]]] = {}
        self._overdue: dict[int, str] = {}

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()
        if self.link.is_closed:
            self._closing.set()

    async def run(self) -> None:
        """Read, write and let time pass until the link has ended. Never raises for what peer or network do."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._tick, nursery.cancel_scope)
                await self._read()
                await self._take(self.link.tick(monotonic_ns()))  # how it ended, where that is not told yet
                nursery.cancel_scope.cancel()
        finally:
            self.ended = self.ended or "the connection was closed"
            for asked, answers in self._waiting.values():
                answers.append(HostNotReadyError("link", self.ended))
                asked.set()
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._say_last()
            await trio.aclose_forcefully(self._stream)

    async def _say_last(self) -> None:
        try:
            await self._stream.send_all(self.link.data_to_send())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError):
            return

    async def _read(self) -> None:
        while not self.link.is_closed:
            try:
                data = bytes(await self._stream.receive_some(READ_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                data = b""
                self._why = why_broken(error)
            events = self.link.feed(data, monotonic_ns()) if data else self.link.receive_eof()
            await self._take(events)
            self.wake()

    async def _write(self) -> None:
        while not self.link.is_closed:
            self._wake = trio.Event()
            self._pump()
            data = self.link.data_to_send()
            if not data:
                await self._wake.wait()
                continue
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                await self._take(self.link.receive_eof())

    async def _tick(self, scope: trio.CancelScope) -> None:
        """Timers go on while sending hangs: that is just when the peer may be gone."""
        while not self.link.is_closed:
            await self._take(self.link.tick(monotonic_ns()))
            self.wake()  # a ping is to be sent, or the rate has room again
            deadline_ns = self.link.next_deadline_ns()
            wait_s = MAX_WAIT_S if deadline_ns is None else max((deadline_ns - monotonic_ns()) / 1e9, MIN_WAIT_S)
            with trio.move_on_after(min(wait_s, MAX_WAIT_S)):
                await self._closing.wait()
        await self._take(self.link.tick(monotonic_ns()))
        scope.cancel()  # reader and writer may wait for a peer that is gone

    async def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Answered):
                asked, answers = self._waiting.pop(event.id)
                self._overdue.pop(event.id, None)
                answers.append(event)
                asked.set()
            elif isinstance(event, Closed):
                is_broken = event.ending is Ending.PEER_CLOSED and self._why
                self.ended = f"{event.why}: {self._why}" if is_broken else event.why
                await self._handle(event)
            else:
                await self._handle(event)

    async def ask(self, op: str, args: object = None, body: bytes = b"", *, within_s: float = math.inf) -> Answered:
        """Ask the peer, and wait for its answer.

        Args:
            op: what is asked; a peer that still owes an answer to the same, in vain waited for, is not asked again.
            args: of the question.
            body: octets that go along.
            within_s: how long to wait.

        Raises:
            NetprobeError: the peer's own error.
            HostNotReadyError: the link ended before, or no answer came in time.
        """
        assert not isinstance(self.link, AgentLink), "agents are asked"
        if op in self._overdue.values():
            raise HostNotReadyError("link", f"the peer still owes an answer to {op!r}")
        number = self.link.ask(op, args, body)
        event, answers = self._waiting[number] = (trio.Event(), [])
        self.wake()
        with trio.move_on_after(within_s):
            await event.wait()
        if not answers:
            self._overdue[number] = op
            raise HostNotReadyError("link", f"the peer did not answer {op!r} within {within_s:g} s")
        (answer,) = answers
        if isinstance(answer, NetprobeError):
            raise answer
        if answer.error is not None:
            raise answer.error
        return answer
