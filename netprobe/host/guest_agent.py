"""The controller's end of the guest agent's control socket: order probes, receive what the guest saw.

The messages are netprobe.wire.control's; the agent is netprobe_agents.session. Frames come as columns and stay so. A
virtual machine's agent is reached through the unix socket of a virtio-serial port, `serial:PATH`; how a session begins
there is netprobe.wire.serial_sync's.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import trio

from netprobe.errors import HostNotReadyError, UsageError, WireError
from netprobe.host.guest_messages import (
    ClockExchange,
    GuestFrames,
    GuestHello,
    ObserveStatus,
    SentReport,
    mac_untrusted,
    reflector_of,
    sent_report_untrusted,
)
from netprobe.wire.control import (
    CONTROL_VERSION,
    MAX_MESSAGE_BYTES,
    ControlReader,
    Message,
    encode_message,
    mixed_frames_body,
)
from netprobe.wire.serial_sync import AGENT_MAGIC, CONTROLLER_MAGIC, NONCE_BYTES, SERIAL, PreambleFinder, preamble

GARBAGE_BYTES = 4 << 20
"""How much of something else a port may say before its agent answers: what an earlier session left, and no more."""

ANSWER_TIMEOUT_S = 5.0
FRAME_BATCHES = 1_024
HELD_BYTES = 64 << 20
ANSWER_BYTES = 24 << 20
"""A guest is a tenant's: it fills no more than this of the host's memory. 256 whole frames, or the times of 1,000,000
probes, are the most that an agent of ours says at once."""
READ_BYTES = 1 << 18
DEFAULT_LEAD_NS = 5_000_000


@dataclass(slots=True)
class _Pending:
    """A question that waits for its answer, and when that was read (CLOCK_REALTIME)."""

    answered: trio.Event = field(default_factory=trio.Event)
    message: Message | None = None
    read_ns: int = 0


class GuestAgent:
    """A connected agent; from `open_guest_agent`. One task at a time may call each method; several may run at once."""

    def __init__(self, path: str, stream: trio.abc.Stream) -> None:
        self.path = path
        self.hello = GuestHello(0, "", b"", None)
        self.shed_batches = 0  # here, for want of a reader; the guest counts its own
        self.observe_status = ObserveStatus()
        self._stream = stream
        self._write_lock = trio.Lock()
        self._pending: dict[int, _Pending] = {}
        self._next_id = 1
        self._gone = ""
        self._read_ns = 0
        self._begun_with = b""
        self._ended = trio.Event()
        self._held_bytes = 0
        self._frames_in, self._frames_out = trio.open_memory_channel[GuestFrames](FRAME_BATCHES)

    async def observe(self, program: bytes, *, snap_bytes: int = 2_048, outgoing: bool = False) -> ObserveStatus:
        """Open the guest's observer; frames come through `receive_frames` from then on.

        Args:
            program: classic BPF, native struct sock_filter; empty passes every frame.
            snap_bytes: octets kept of each frame, 64 to 65535.
            outgoing: whether frames that leave the guest are seen too, its own probes among them.

        Raises:
            HostNotReadyError: the guest can't observe, or the agent is gone.
        """
        await self._ask("observe", program, snap=snap_bytes, outgoing=outgoing)
        return self.observe_status

    async def absorb(self, udp_ports: Sequence[int], *, family: int) -> None:
        """Let the guest swallow datagrams to these ports, without "port unreachable".

        Args:
            udp_ports: 1 to 65535 each.
            family: 4 or 6.

        Raises:
            HostNotReadyError: a port is taken, or the agent is gone.
        """
        await self._ask("absorb", udp_ports=list(udp_ports), family=family)

    async def send(
        self,
        frames: bytes | memoryview | npt.NDArray[np.uint8],
        frame_bytes: int,
        due_ns: Sequence[int] | npt.NDArray[np.int64],
        *,
        t1_offset: int | None = None,
        checksum_offset: int | None = None,
        lead_ns: int = DEFAULT_LEAD_NS,
    ) -> SentReport:
        """Send whole Ethernet frames out of the guest's device. Cancelled, it stops the sends.

        Args:
            frames: count * frame_bytes octets, C-contiguous.
            frame_bytes: length of every frame, without FCS.
            due_ns: shape (count,), not decreasing: ns from the start.
            t1_offset: where in each frame the agent writes T1 as an NTP timestamp; None: nowhere.
            checksum_offset: of the UDP checksum that covers T1; None: there is none.
            lead_ns: from the agent's getting the order to the start.

        Raises:
            UsageError: the shapes don't agree, or it is more than one message can hold.
            HostNotReadyError: the guest can't send, or the agent is gone.
        """
        due = np.ascontiguousarray(due_ns, "<i8")
        octets = (np.ascontiguousarray(frames).data if isinstance(frames, np.ndarray) else memoryview(frames)).cast("B")
        if len(octets) != len(due) * frame_bytes:
            raise UsageError("guest send", f"{len(octets)} octets are not {len(due)} frames of {frame_bytes}")
        if len(octets) + due.nbytes > MAX_MESSAGE_BYTES // 2:
            raise UsageError(
                "guest send", f"{len(octets)} octets of frames", allowed=f"{MAX_MESSAGE_BYTES // 2} a send"
            )
        message = await self._ask(
            "send",
            b"".join((octets, due.tobytes())),
            stop_on_cancel=True,
            timeout_s=(int(due[-1]) + lead_ns) / 1e9 + ANSWER_TIMEOUT_S if len(due) else ANSWER_TIMEOUT_S,
            frame_bytes=frame_bytes,
            count=len(due),
            lead_ns=lead_ns,
            t1_offset=t1_offset,
            checksum_offset=checksum_offset,
        )
        with self._agent_errors():
            return sent_report_untrusted(message, len(due))

    async def send_mixed(
        self, frames: Sequence[bytes], due_ns: Sequence[int], *, lead_ns: int = DEFAULT_LEAD_NS
    ) -> SentReport:
        """Send whole Ethernet frames of any lengths, as they are. Cancelled, it stops the sends.

        Args:
            frames: without FCS.
            due_ns: one a frame, not decreasing: ns from the start.
            lead_ns: from the agent's getting the order to the start.

        Raises:
            UsageError: it is more than one message can hold.
            HostNotReadyError: the guest can't send, the agent is too old for it, or it is gone.
        """
        self.check_mixing()
        body_bytes = sum(map(len, frames)) + 12 * len(frames)
        if body_bytes > MAX_MESSAGE_BYTES // 2:
            raise UsageError("guest send", f"{body_bytes} octets of frames", allowed=f"{MAX_MESSAGE_BYTES // 2} a send")
        message = await self._ask(
            "send-mixed",
            mixed_frames_body(frames, due_ns),
            stop_on_cancel=True,
            timeout_s=(max(due_ns, default=0) + lead_ns) / 1e9 + ANSWER_TIMEOUT_S,
            count=len(frames),
            lead_ns=lead_ns,
        )
        with self._agent_errors():
            return sent_report_untrusted(message, len(frames))

    def check_mixing(self) -> None:
        """Whether `send_mixed` can be called.

        Raises:
            HostNotReadyError: the agent is too old for it.
        """
        if not self.hello.is_mixing:
            raise HostNotReadyError(
                f"guest agent {self.path}",
                "is of an older version, which sends frames of one length only",
                advice="install the agent of this netprobe in the guest",
            )

    async def thin(self, share: float) -> bool:
        """From now on send only this part of what is due, of every send.

        Args:
            share: 0 to 1.

        Returns:
            Whether the agent can: one of an older version goes on as before.

        Raises:
            HostNotReadyError: the agent is gone.
        """
        if self.hello.is_thinning:
            await self._write(encode_message("thin", permille=round(1000 * share)))
        return self.hello.is_thinning

    async def stop_sends(self) -> None:
        """End every send that is under way: each `send` returns and tells what was sent until then.

        Raises:
            HostNotReadyError: the agent is gone.
        """
        for order_id in list(self._pending):  # an id that is no send's means nothing to the agent
            await self._write(encode_message("stop", id=order_id))

    async def status(self) -> tuple[ObserveStatus, Mapping[str, object] | None]:
        """The observer's and the reflector's counters now.

        Frames that had reached the guest's observer before are in `receive_frames`'s channel when this returns.

        Raises:
            HostNotReadyError: the agent is gone.
        """
        message = await self._ask("status")  # the agent sends an observe-status first
        return self.observe_status, reflector_of(message)

    async def compare_clocks(self) -> ClockExchange:
        """Ask the guest for its time. All that delays question or answer widens what they prove, and falsifies nothing.

        Raises:
            HostNotReadyError: the agent is too old to know the question, or it is gone.
        """
        pending = _Pending()
        t1_ns = time.time_ns()
        message = await self._ask("clock", pending=pending)
        with self._agent_errors():
            if len(message.body) != 16:  # two int64
                raise WireError("clock", f"{len(message.body)} octets of times")
            t2_ns, t3_ns = np.frombuffer(message.body, "<i8").tolist()
            return ClockExchange(t1_ns, t2_ns, t3_ns, pending.read_ns)

    async def receive_frames(self) -> GuestFrames:
        """The next batch of frames.

        Raises:
            trio.EndOfChannel: the connection is over.
        """
        return self._handed_out(await self._frames_out.receive())

    def receive_frames_nowait(self) -> GuestFrames:
        """The next batch of frames, if one is there.

        Raises:
            trio.WouldBlock: none is.
            trio.EndOfChannel: the connection is over.
        """
        return self._handed_out(self._frames_out.receive_nowait())

    def _handed_out(self, frames: GuestFrames) -> GuestFrames:
        self._held_bytes -= len(frames.buf)
        return frames

    async def _ask(
        self,
        message_type: str,
        body: bytes = b"",
        *,
        stop_on_cancel: bool = False,
        timeout_s: float = ANSWER_TIMEOUT_S,
        pending: _Pending | None = None,
        **header: str | int | Sequence[int] | None,
    ) -> Message:
        if self._ended.is_set():
            raise self._gone_error()
        order_id = self._next_id
        self._next_id += 1
        pending = self._pending[order_id] = pending or _Pending()
        try:
            await self._write(encode_message(message_type, body, id=order_id, **header))
            with trio.move_on_after(timeout_s) as patience:
                await pending.answered.wait()
            if patience.cancelled_caught:
                self._gone = f"did not answer {message_type!r} in {timeout_s:g} s"
                raise self._gone_error()
        except trio.Cancelled:
            if stop_on_cancel:
                with trio.move_on_after(ANSWER_TIMEOUT_S, shield=True):
                    await self._write(encode_message("stop", id=order_id))
            raise
        finally:
            del self._pending[order_id]
        if pending.message is None:
            raise self._gone_error()
        if pending.message.type == "error":
            with self._agent_errors():
                raise HostNotReadyError(f"guest agent {self.path}", pending.message.text("text").rstrip("."))
        return pending.message

    async def _write(self, octets: bytes) -> None:
        """Whole messages only: half of one would make garbage of the next, so cancellation waits."""
        failure: Exception | None = None
        with trio.move_on_after(ANSWER_TIMEOUT_S, shield=True):
            try:
                async with self._write_lock:
                    await self._stream.send_all(octets)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                failure = error
            else:
                return
            await self._ended.wait()  # an agent that hangs up says why first; that may be unread yet
        self._gone = self._gone or ("" if failure else f"has not read for {ANSWER_TIMEOUT_S:g} s")
        raise self._gone_error() from failure

    def _gone_error(self) -> HostNotReadyError:
        gone = "is gone: has the virtual machine ended?" if self._is_serial else "closed the connection"
        return HostNotReadyError(f"guest agent {self.path}", self._gone or gone)

    @contextmanager
    def _agent_errors(self) -> Iterator[None]:
        """An agent that speaks nonsense is a host that isn't ready."""
        try:
            yield
        except WireError as error:
            raise HostNotReadyError(f"guest agent {self.path}", f"sent nonsense: {error.problem}") from error

    async def read(self) -> None:
        """Take in what the agent sends, until the connection ends; run by `open_guest_agent`."""
        reader = ControlReader(ANSWER_BYTES)
        try:
            for message in reader.feed(self._begun_with):
                self._take(message)
            while data := await self._stream.receive_some(READ_BYTES):
                self._read_ns = time.time_ns()
                for message in reader.feed(bytes(data)):
                    self._take(message)
        except WireError as error:
            self._gone = f"sent nonsense: {error.problem}"
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # said to whoever waits, below
        finally:
            self._ended.set()
            self._frames_in.close()
            for pending in self._pending.values():
                pending.answered.set()

    def _take(self, message: Message) -> None:
        if message.type == "frames":
            self._take_frames(GuestFrames.from_message_untrusted(message))
            return
        if message.type == "observe-status":
            counters = (message.integer(name) for name in ObserveStatus.__slots__)
            self.observe_status = ObserveStatus(*counters)
        order_id = message.header.get("id")
        pending = self._pending.get(order_id) if isinstance(order_id, int) else None
        if pending is None and message.type == "error":
            self._gone = message.text("text").rstrip(".")  # about the connection as a whole
        elif pending is not None:
            pending.message, pending.read_ns = message, self._read_ns
            pending.answered.set()

    def _take_frames(self, frames: GuestFrames) -> None:
        """Keep a batch for its reader, or count it where there is no room."""
        try:
            if self._held_bytes + len(frames.buf) <= HELD_BYTES:
                self._frames_in.send_nowait(frames)
                self._held_bytes += len(frames.buf)
                return
        except trio.WouldBlock:
            pass
        self.shed_batches += 1

    async def synchronize(self) -> None:
        """Begin a session on a virtio-serial port, whatever was said on it before; run by `open_guest_agent`.

        Raises:
            HostNotReadyError: the agent does not answer, or something else is said there.
        """
        nonce, passed_over = os.urandom(NONCE_BYTES), 0
        finder = PreambleFinder(AGENT_MAGIC, nonce)
        await self._write(preamble(CONTROLLER_MAGIC, nonce))
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            while data := await self._receive_serial():
                if (found := finder.find(data)) is not None:
                    self._begun_with = data[found[1] :]
                    return
                passed_over += len(data)
                if passed_over > GARBAGE_BYTES:
                    break
            else:
                raise self._gone_error()
        said = f"has said {passed_over} octets of something else" if passed_over else "does not answer"
        raise HostNotReadyError(
            f"guest agent {self.path}",
            f"{said} in {ANSWER_TIMEOUT_S:g} s" if passed_over <= GARBAGE_BYTES else said,
            advice="does the agent run in the guest, with --control-port, and is no other controller connected?",
        )

    async def _receive_serial(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except trio.BrokenResourceError:
            return b""

    async def greet(self) -> None:
        """Exchange hellos; run by `open_guest_agent`.

        Raises:
            HostNotReadyError: the agent refuses, or doesn't answer in ANSWER_TIMEOUT_S.
        """
        with trio.move_on_after(ANSWER_TIMEOUT_S) as scope:
            message = await self._ask("hello", version=CONTROL_VERSION)
            with self._agent_errors():
                self.hello = GuestHello(
                    message.integer("version"),
                    message.text("device"),
                    mac_untrusted(message.text("mac")),
                    reflector_of(message),
                    message.flag("mixed"),
                    message.flag("thins"),
                )
        if scope.cancelled_caught:
            raise HostNotReadyError(f"guest agent {self.path}", f"did not answer in {ANSWER_TIMEOUT_S:g} s")

    async def say_bye(self) -> None:
        """End the session in good order; run by `open_guest_agent`, which bounds its time."""
        with suppress(HostNotReadyError):  # gone already, which is what was wanted
            await self._write(encode_message("bye"))
            if not self._is_serial:  # there nobody can hang up
                await self._ended.wait()  # the agent hangs up once it is free for the next controller

    @property
    def _is_serial(self) -> bool:
        return self.path.startswith(SERIAL)


@asynccontextmanager
async def open_guest_agent(path: str) -> AsyncIterator[GuestAgent]:
    """Connect to the guest agent that serves a control socket. On leaving, everything ordered stops.

    Args:
        path: of the agent's unix socket, or `serial:` and that of its virtio-serial port.

    Raises:
        HostNotReadyError: nobody serves the socket, the agent is busy with another controller, or it doesn't answer.
    """
    try:
        stream = await trio.open_unix_socket(path.removeprefix(SERIAL))
    except OSError as error:
        raise HostNotReadyError(
            f"guest agent {path}",
            f"cannot be reached: {error.strerror or error}",
            advice="is the guest running?"
            if path.startswith(SERIAL)
            else "is the agent running? Start it in the guest: netprobe agent guest --control PATH --device DEVICE",
        ) from error
    agent = GuestAgent(path, stream)
    failure: Exception | None = None
    async with stream, trio.open_nursery() as nursery:
        try:
            if path.startswith(SERIAL):
                await agent.synchronize()
            nursery.start_soon(agent.read)
            await agent.greet()
            yield agent
        except Exception as error:  # noqa: BLE001  raised again below, where the nursery can't wrap it in a group
            failure = error
        finally:
            with trio.move_on_after(ANSWER_TIMEOUT_S, shield=True):
                await agent.say_bye()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
