"""The control channel over a virtio-serial port: one stream that is always there, cut into sessions.

A session begins with a controller's preamble (netprobe.wire.serial_sync), ends with the next one, with the port's being
left by the host, or as on a socket, and is served by netprobe_agents.session. Garbage before a preamble is passed over.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from netprobe.errors import HostNotReadyError
from netprobe.wire.serial_sync import AGENT_MAGIC, CONTROLLER_MAGIC, PreambleFinder, preamble

READ_BYTES = 65_536
AGAIN_S = 0.1
"""How often it is looked whether the host has opened the port: the kernel tells no more than that it has not."""
FULL_S = 0.005


def open_port(path: Path) -> int:
    """A virtio-serial port's file descriptor, not blocking.

    Raises:
        HostNotReadyError: no such device, it is in use already, or it may not be opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise HostNotReadyError(
            str(path),
            f"cannot be opened: {error.strerror}",
            advice="does the virtual machine have a virtio-serial port of that name, and is nobody else serving it?",
        ) from error


class Port:
    """A virtio-serial port; use `serve`.

    Args:
        fd: of the device (or, in tests, of one end of a socket pair), not blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._finder = PreambleFinder(CONTROLLER_MAGIC)
        self._next: tuple[bytes, bytes] | None = None
        self.read_ns = 0

    async def serve(self, session: Callable[[trio.abc.Stream], Awaitable[None]]) -> None:
        """Serve one controller after the other, until cancelled.

        Args:
            session: serves one; its stream ends where the controller leaves, or another one begins.
        """
        while True:
            nonce, rest = await self._wait_controller()
            stream = PortStream(self, rest)
            try:
                await stream.send_all(preamble(AGENT_MAGIC, nonce))
                await session(stream)
            except trio.BrokenResourceError:
                pass  # the controller is gone

    async def _wait_controller(self) -> tuple[bytes, bytes]:
        """The nonce of a controller that begins, and what it has sent behind its preamble."""
        while self._next is None:
            if not await self.read():
                await trio.sleep(AGAIN_S)
        begun, self._next = self._next, None
        return begun

    async def read(self) -> bytes:
        """What comes next; nothing where the host has left the port, or where another controller begins."""
        if self._next is not None:
            return b""
        while True:
            with _broken_where_gone():
                try:
                    data = os.read(self._fd, READ_BYTES)
                    self.read_ns = time.time_ns()
                    break
                except BlockingIOError:
                    pass
            await trio.lowlevel.wait_readable(self._fd)
        if data and (found := self._finder.find(data)) is not None:
            nonce, end = found
            self._next = nonce, data[end:]
            return b""
        return data

    async def write(self, octets: memoryview) -> int:
        """Write as much as there is room for."""
        while True:
            with _broken_where_gone():
                try:
                    return os.write(self._fd, octets)
                except BlockingIOError:
                    pass
            await trio.lowlevel.wait_writable(self._fd)
            await trio.sleep(FULL_S)  # a port that the host has left is "writable" all the time, and takes nothing


@contextmanager
def _broken_where_gone() -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise trio.BrokenResourceError from error


class PortStream(trio.abc.Stream):
    """One session's share of a port.

    Args:
        port: it.
        rest: octets that have been read already.
    """

    def __init__(self, port: Port, rest: bytes) -> None:
        self._port = port
        self._rest = rest

    @property
    def read_ns(self) -> int:
        """When what was received last had been read from the port, CLOCK_REALTIME."""
        return self._port.read_ns

    async def receive_some(self, _max_bytes: int | None = None) -> bytes:
        """What comes next, nothing at the session's end."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return await self._port.read()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it all."""
        with memoryview(data) as left:
            sent = 0
            while sent < len(left):
                sent += await self._port.write(left[sent:])

    async def wait_send_all_might_not_block(self) -> None:
        """There is no telling."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing: the port stays."""
        await trio.lowlevel.checkpoint()
