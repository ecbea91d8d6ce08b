"""One controller's session on the guest agent's control socket: its orders, and everything that they opened.

When the connection ends, for whatever reason, all of it stops and closes. Messages are netprobe.wire.control's; frames
are seen by observer.py and sent by transmitter.py. One bounded queue carries all that goes to the controller: frames
that find it full are shed and counted, answers wait for room.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict

import trio

from netprobe.errors import HostNotReadyError, NetprobeError, WireError
from netprobe.wire.control import CONTROL_VERSION, ControlReader, Message, encode_message, pack_i64
from netprobe_agents import sockopts
from netprobe_agents.observer import Observer
from netprobe_agents.transmitter import SendOrder, transmit

QUEUE_MESSAGES = 256
MAX_SENDS = 8
MAX_PORTS = 4_096
MAX_PROGRAM_BYTES = 4096 * sockopts.SOCK_FILTER_BYTES  # BPF_MAXINSNS
MAX_SNAP_BYTES = 65_535
READ_BYTES = 65_536
DROP_CHECK_S = 0.5
Outgoing = bytes | Callable[[], bytes]
"""A message, or what makes it when its turn has come."""

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def device_mac(device: str) -> bytes:
    """The hardware address of a device; empty where it has none.

    Raises:
        HostNotReadyError: no such device, or no CAP_NET_RAW.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((device, 0))
            address = sock.getsockname()[4]
    except OSError as error:
        raise HostNotReadyError(
            device, f"cannot be opened: {error.strerror}", advice="does --device name an interface of this guest?"
        ) from error
    return address if isinstance(address, bytes) else b""


class Session:
    """Serves one connected controller; use `run`.

    Args:
        stream: the connection; its owner closes it after `run`, which is how the controller learns that all is over.
        device: the interface for observe and send.
        reflector_statistics: for `hello` and `status`; None where no reflector runs.
    """

    def __init__(
        self, stream: trio.abc.Stream, device: str, reflector_statistics: Callable[[], Mapping[str, object] | None]
    ) -> None:
        self._stream = stream
        self._device = device
        self._reflector_statistics = reflector_statistics
        self._opened = ExitStack()
        self._observer: Observer | None = None
        self._shed_frames = 0
        self._share = 1.0
        self._stops: dict[int, threading.Event] = {}
        self._greeted = False
        self._read_ns = 0
        self._queue_in, self._queue_out = trio.open_memory_channel[Outgoing](QUEUE_MESSAGES)

    async def run(self) -> None:
        """Carry out orders until the controller says bye, goes away, or sends garbage."""
        with self._opened:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                try:
                    await self._read(nursery)
                finally:
                    # Worker threads can't be cancelled; they ask these.
                    for stop in self._stops.values():
                        stop.set()
                    nursery.cancel_scope.cancel()

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            async for message in self._queue_out:
                await self._stream.send_all(message if isinstance(message, bytes) else message())
        except trio.BrokenResourceError:
            scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        reader = ControlReader()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some(READ_BYTES):
                self._read_ns = getattr(self._stream, "read_ns", 0) or time.time_ns()
                try:
                    messages = reader.feed(bytes(data))
                    for message in messages:
                        if message.type == "bye":
                            return
                        await self._obey(message, nursery)
                except WireError as error:
                    await self._say_goodbye(error)
                    return

    async def _say_goodbye(self, error: WireError) -> None:
        """Tell why the connection ends, as far as the controller still listens."""
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError, trio.BusyResourceError):
            await self._stream.send_all(encode_message("error", text=str(error)))

    async def _obey(self, message: Message, nursery: trio.Nursery) -> None:
        """Do what one message says.

        Raises:
            WireError: no controller of ours would have sent it.
        """
        if not self._greeted and message.type != "hello":
            raise WireError("control channel", f"the first message is {message.type!r:.40}, not hello")
        handlers = {
            "hello": self._hello,
            "observe": self._observe,
            "absorb": self._absorb,
            "send": self._send,
            "send-mixed": self._send,
            "stop": self._stop,
            "status": self._report_status,
            "clock": self._tell_time,
            "thin": self._thin,
        }
        handler = handlers.get(message.type)
        if handler is None:
            raise WireError("control channel", f"unknown message {message.type!r:.40}")
        order_id = message.optional_integer("id") or 0
        try:
            await handler(message, order_id, nursery)
        except HostNotReadyError as error:  # a sound order that this guest can't carry out; the session goes on
            await self._queue_in.send(encode_message("error", id=order_id, text=str(error)))

    async def _hello(self, message: Message, order_id: int, _nursery: trio.Nursery) -> None:
        version = message.integer("version")
        if version != CONTROL_VERSION:
            raise WireError("control channel", f"the controller speaks version {version}, this agent {CONTROL_VERSION}")
        self._greeted = True
        await self._queue_in.send(
            encode_message(
                "hello",
                id=order_id,
                version=CONTROL_VERSION,
                device=self._device,
                mac=device_mac(self._device).hex(":"),
                reflector=self._reflector_statistics(),
                mixed=True,  # takes `send-mixed`
                thins=True,  # takes `thin`
            )
        )

    async def _observe(self, message: Message, order_id: int, nursery: trio.Nursery) -> None:
        if len(message.body) > MAX_PROGRAM_BYTES or len(message.body) % sockopts.SOCK_FILTER_BYTES:
            raise WireError("observe", f"a filter of {len(message.body)} octets is no classic BPF program")
        if self._observer is not None:
            raise HostNotReadyError("observe", "this session observes already", advice="one filter a session")
        snap_bytes = message.integer("snap", minimum=64, maximum=MAX_SNAP_BYTES)
        observer = Observer(self._device, message.body, snap_bytes=snap_bytes, outgoing=message.flag("outgoing"))
        self._opened.callback(observer.close)
        self._observer = observer
        nursery.start_soon(self._forward_frames, observer)
        nursery.start_soon(self._watch_drops, observer)
        await self._queue_in.send(self._observe_status(order_id))

    async def _forward_frames(self, observer: Observer) -> None:
        while True:
            await trio.lowlevel.wait_readable(observer.socket)
            batch = observer.receive_batch()
            if not batch.frames:
                continue
            try:
                self._queue_in.send_nowait(batch.encode())
            except trio.WouldBlock:
                self._shed_frames += len(batch.frames)

    async def _watch_drops(self, observer: Observer) -> None:
        told = (0, 0)
        while True:
            await trio.sleep(DROP_CHECK_S)
            if (now := (observer.dropped(), self._shed_frames)) != told:
                told = now
                await self._queue_in.send(self._observe_status(0))

    def _observe_status(self, order_id: int) -> bytes:
        observer = self._observer
        return encode_message(
            "observe-status",
            id=order_id,
            received=observer.received if observer else 0,
            dropped=observer.dropped() if observer else 0,
            shed=self._shed_frames,
            unstamped=observer.unstamped if observer else 0,
        )

    async def _report_status(self, _message: Message, order_id: int, _nursery: trio.Nursery) -> None:
        """Also a barrier: frames that had arrived before the question are queued before the answer."""
        if self._observer is not None:
            for _ in range(QUEUE_MESSAGES):  # bounded: under a flood the socket is never empty
                batch = self._observer.receive_batch()
                if not batch.frames:
                    break
                await self._queue_in.send(batch.encode())
        await self._queue_in.send(self._observe_status(0))
        await self._queue_in.send(encode_message("status", id=order_id, reflector=self._reflector_statistics()))

    async def _tell_time(self, _message: Message, order_id: int, _nursery: trio.Nursery) -> None:
        """When the question came, and when it was answered, by this guest's clock (RFC 8762's T2 and T3)."""
        came_ns, head = self._read_ns, encode_message("clock", bytes(16), id=order_id)[:-16]
        # In a slow guest what is between a stamp and the channel counts: the last word is the time.
        await self._queue_in.send(lambda: head + pack_i64((came_ns, time.time_ns())))

    async def _absorb(self, message: Message, order_id: int, _nursery: trio.Nursery) -> None:
        family = FAMILIES.get(message.integer("family"))
        if family is None:
            raise WireError("absorb", f"family is {message.integer('family')}, not 4 or 6")
        ports = message.integers("udp_ports", minimum=1, maximum=65_535, at_most=MAX_PORTS)
        with ExitStack() as bound:
            for port in ports:
                try:
                    sock = bound.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                    # The kernel drops every datagram at the filter, but the port is open: no port unreachable, and
                    # nothing to drain.
                    sockopts.attach_filter(sock, sockopts.BPF_DISCARD_ALL)
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.bind(("", port))
                except OSError as error:
                    raise HostNotReadyError(f"UDP port {port}", f"cannot be absorbed: {error.strerror}") from error
            self._opened.enter_context(bound.pop_all())
        await self._queue_in.send(encode_message("absorbing", id=order_id, udp_ports=ports))

    async def _thin(self, message: Message, _order_id: int, _nursery: trio.Nursery) -> None:
        """From now on only a part of what is due is sent, of orders that are under way and of later ones."""
        self._share = message.integer("permille", maximum=1000) / 1000

    async def _stop(self, _message: Message, order_id: int, _nursery: trio.Nursery) -> None:
        if (stop := self._stops.get(order_id)) is not None:
            stop.set()

    async def _send(self, message: Message, _order_id: int, nursery: trio.Nursery) -> None:
        order = SendOrder.from_message_untrusted(message)
        if order.id in self._stops:
            raise WireError("send", f"order {order.id} is under way")
        if len(self._stops) >= MAX_SENDS:
            raise HostNotReadyError("send", "too many orders are under way", allowed=f"{MAX_SENDS} at a time")
        self._stops[order.id] = threading.Event()
        nursery.start_soon(self._transmit, order)

    async def _transmit(self, order: SendOrder) -> None:
        try:
            stop = self._stops[order.id]
            sent = await trio.to_thread.run_sync(transmit, order, self._device, stop, lambda: self._share)
        except NetprobeError as error:
            reply = encode_message("error", id=order.id, text=str(error))
        else:
            reply = encode_message(
                "sent",
                pack_i64(sent.times_ns),
                id=order.id,
                start_ns=sent.start_ns,
                refused=sent.refused,
                error=sent.error,
                **asdict(sent.pacing),
            )
        finally:
            del self._stops[order.id]
        await self._queue_in.send(reply)
