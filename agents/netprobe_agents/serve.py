"""The guest agent at work: the reflector and the control socket under one nursery, until a signal.

netprobe_agents.guest parses the arguments; responder.py reflects, session.py serves one controller at a time.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.wire.control import encode_message
from netprobe_agents.port import Port, open_port
from netprobe_agents.reflector import Reflector, ReflectorConfig, ReflectorStatistics
from netprobe_agents.responder import Responder
from netprobe_agents.session import Session, device_mac

MIN_KEY_BYTES = 16
SWITCH_INTERVAL_S = 0.0001  # Python's 5 ms would let a busy reflector delay the pacer's thread by as much


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What the agent was told to do.

    Attributes:
        control: path of the control socket, or None.
        control_port: a virtio-serial port that takes its place in a virtual machine, or None.
        device: interface that the controller's orders are about.
        reflect_port: UDP port of the reflector, 0 for none.
        stateless: whether the reflector copies sequence numbers instead of counting.
        key_file: key of the authenticated mode, or None.
        ready_fd: where to say that the agent listens; None is stdout.
    """

    control: Path | None
    control_port: Path | None
    device: str
    reflect_port: int
    stateless: bool
    key_file: Path | None
    ready_fd: int | None


def read_key(path: Path) -> bytes:
    """The secret of a key file: its octets without a final line end.

    Raises:
        UsageError: unreadable, too short, or others may read it.
    """
    try:
        key = path.read_bytes().rstrip(b"\r\n")
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise UsageError(
            str(path), f"others may read this key (mode {mode & 0o777:o})", advice=f"run: chmod 600 {path}"
        )
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(str(path), f"a key of {len(key)} octets", allowed=f"at least {MIN_KEY_BYTES}")
    return key


def statistics_header(statistics: ReflectorStatistics) -> dict[str, object]:
    """The reflector's counters as the control channel carries them."""
    return {
        "received": statistics.received,
        "reflected": statistics.reflected,
        "refused": {reason.value: count for reason, count in statistics.refused.items()},
        "malformed_tlvs": statistics.malformed_tlvs,
        "integrity_failed": statistics.integrity_failed,
        "sessions": statistics.sessions,
        "peers": statistics.peers,
        "evicted_sessions": statistics.evicted_sessions,
        "evicted_peers": statistics.evicted_peers,
    }


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def open_control_socket(path: Path) -> trio.SocketListener:
    """Listen on a unix socket that only its owner may open. A socket file that nobody serves is replaced.

    Raises:
        HostNotReadyError: somebody serves it, or the directory can't be written.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            if _is_served(path):
                raise FileExistsError(errno.EADDRINUSE, "an agent serves it already; stop that one first")
            path.unlink()
        old_mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old_mask)
        sock.listen(8)
    except OSError as error:
        sock.close()
        raise HostNotReadyError(str(path), f"cannot be served: {error.strerror or error}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


class Agent:
    """Reflector and control socket, listening from the constructor on; `run` serves, `close` ends.

    Raises:
        HostNotReadyError: a socket can't be opened.
        UsageError: the key file is no good.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._opened = ExitStack()
        self._busy = False
        self._responder: Responder | None = None
        self._listener: trio.SocketListener | None = None
        self._port: Port | None = None
        with ExitStack() as opened:
            if config.reflect_port:
                self._responder = Responder(self._new_reflector(), config.reflect_port)
                opened.callback(self._responder.close)
            if config.control is not None:
                device_mac(config.device)  # a wrong device is better said now than at the first order
                self._listener = open_control_socket(config.control)
                opened.callback(config.control.unlink, missing_ok=True)
                opened.callback(self._listener.socket.close)
            if config.control_port is not None:
                device_mac(config.device)
                fd = open_port(config.control_port)
                opened.callback(os.close, fd)
                self._port = Port(fd)
            self._opened = opened.pop_all()

    def _new_reflector(self) -> Reflector:
        config = self._config
        return Reflector(
            ReflectorConfig(
                stateful=not config.stateless,
                key=None if config.key_file is None else read_key(config.key_file),
                reflector_ports=frozenset({config.reflect_port}),
            )
        )

    def close(self) -> None:
        """Stop listening and remove the control socket."""
        self._opened.close()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._responder is not None:
                nursery.start_soon(self._responder.run)
            if self._listener is not None:
                nursery.start_soon(trio.serve_listeners, self._serve_controller, [self._listener])
            if self._port is not None:
                nursery.start_soon(self._port.serve, self._serve_controller)

    def _reflector_statistics(self) -> Mapping[str, object] | None:
        return None if self._responder is None else statistics_header(self._responder.reflector.statistics())

    async def _serve_controller(self, stream: trio.abc.Stream) -> None:
        if self._busy:
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(1):
                await stream.send_all(encode_message("error", text="another controller is connected to this agent"))
            await trio.aclose_forcefully(stream)
            return
        self._busy = True
        try:
            await Session(stream, self._config.device, self._reflector_statistics).run()
        finally:
            self._busy = False  # before serve_listeners closes the stream: a controller may come back at once


def _say_ready(ready_fd: int | None) -> None:
    if ready_fd is None:
        print("ready", flush=True)
    else:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)


async def serve(config: ServeConfig) -> None:
    """Be the agent until SIGTERM or SIGINT; then leave nothing behind.

    Raises:
        HostNotReadyError: a socket can't be opened.
        UsageError: the key file is no good.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        contextlib.closing(Agent(config)) as agent,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            _say_ready(config.ready_fd)
            await anext(signals)
            nursery.cancel_scope.cancel()
