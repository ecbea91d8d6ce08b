"""The two ends of a connection between an agent or an operator and the collector, as state machines without I/O.

A link lives as long as its connection: after `Closed` it is terminal, and a new connection begins with a new link.
Below: wire.link_core, wire.flow_control. Above: host.spool and host.block_log keep what must outlive a link.
"""

from collections.abc import Mapping

from netprobe.errors import WireError
from netprobe.wire.flow_control import FRAME_COST_BYTES, Bucket, Flight, Limits, cost_of
from netprobe.wire.framing import MAX_FRAME_BYTES
from netprobe.wire.link_core import Link, Seat, State
from netprobe.wire.link_events import Acked, BlockArrived, Ending, Event, Greeted, ShedArrived, Welcomed
from netprobe.wire.report import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Block,
    Hello,
    OtherVersion,
    PartKey,
    Received,
    Refused,
    Resume,
    Shed,
    Welcome,
)


class _Dialler(Link):
    """The end that dialled: it greets first, and is let in or not."""

    def __init__(self, seat: Seat, hello: Hello, now_ns: int) -> None:
        super().__init__(seat, now_ns)
        self.welcome: Welcome | None = None
        self._handlers[Welcome] = self._on_welcome
        self._send(hello)

    def _on_welcome(self, message: Welcome, _body: bytes, _now_ns: int) -> None:
        self.welcome = message
        self._events.append(Welcomed(message))


class OperatorLink(_Dialler):
    """An operator's end: it asks the collector.

    Args:
        hello: with role "operator".
    """

    def __init__(self, hello: Hello, now_ns: int) -> None:
        assert hello.role == "operator"
        super().__init__(Seat.OPERATOR, hello, now_ns)

    def ask(self, op: str, args: object = None, body: bytes = b"") -> int:
        """Ask the collector; `Answered` comes with the same number, or `Closed` names it as unanswered.

        Raises:
            HostNotReadyError: the link is not open.
            RefusedError: too many questions wait for their answers.
            UsageError: the question is too long.
        """
        return self._ask(op, args, body)


class AgentLink(_Dialler):
    """An agent's end: it delivers blocks in order, and answers the collector's questions.

    Args:
        hello: with the agent's own role.
    """

    def __init__(self, hello: Hello, now_ns: int) -> None:
        assert hello.role != "operator"
        super().__init__(Seat.AGENT, hello, now_ns)
        self._flight = Flight()
        self._bucket: Bucket | None = None
        self._paced_until_ns: int | None = None
        self._next: dict[PartKey, int] = {}
        self._handlers[Ack] = self._on_ack

    def next_to_send(self, part: PartKey) -> int:
        """Number of the block that this link has to send next: after what was sent, or where the collector resumes."""
        return self._next.get(part, 0)

    def has_room(self, octets_bytes: int, now_ns: int) -> bool:
        """Whether a block of this size (0 for shed blocks) may be sent now.

        When only the rate says no, `next_deadline_ns` tells when to try again; when the window does, an `Acked` comes.
        """
        if self.state is not State.OPEN or self.welcome is None or self._bucket is None:
            return False
        cost = octets_bytes + FRAME_COST_BYTES
        if not self._flight.has_room(cost, self.welcome.window_bytes):
            return False
        ready_ns = self._bucket.ready_ns(cost, now_ns)
        self._paced_until_ns = ready_ns if ready_ns > now_ns else None
        return ready_ns <= now_ns

    def send_block(self, part: PartKey, number: int, octets: bytes, now_ns: int) -> None:
        """Send block `next_to_send(part)`, for which there must be room."""
        self._sent(part, number, number + 1, cost_of(octets), now_ns)
        self.counters.blocks += 1
        self._send(Block(run=part.run, boot=part.boot, number=number), octets)

    def send_shed(self, part: PartKey, first: int, end: int, span_ns: tuple[int, int], now_ns: int) -> None:
        """Say that the blocks from `next_to_send(part)` to below `end` are lost, for which there must be room.

        Args:
            part: whose blocks.
            first: the first lost one.
            end: the one after the last lost one.
            span_ns: CLOCK_REALTIME that they stood for, from and to.
            now_ns: monotonic.
        """
        self._sent(part, first, end, FRAME_COST_BYTES, now_ns)
        from_ns, to_ns = span_ns
        self._send(Shed(run=part.run, boot=part.boot, first=first, next=end, from_ns=from_ns, to_ns=to_ns))

    def tick(self, now_ns: int) -> list[Event]:
        """Time passed; to be called at `next_deadline_ns`. There may be room for blocks again after it."""
        if self._paced_until_ns is not None and now_ns >= self._paced_until_ns:
            self._paced_until_ns = None
        return super().tick(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do or the rate has room again, None when never."""
        deadline_ns = super().next_deadline_ns()
        if deadline_ns is None or self._paced_until_ns is None or self.state is not State.OPEN:
            return deadline_ns
        return min(deadline_ns, self._paced_until_ns)

    def _sent(self, part: PartKey, first: int, end: int, cost: int, now_ns: int) -> None:
        assert first == self.next_to_send(part), f"{first} is not next of {part}"
        assert self._bucket is not None, "the link is not open"
        is_paid = self._bucket.take(cost, now_ns)
        assert is_paid, "there was no room"
        self._flight.add(part, end - 1, cost)
        self._next[part] = end

    def _on_welcome(self, message: Welcome, _body: bytes, now_ns: int) -> None:
        super()._on_welcome(message, _body, now_ns)
        self._bucket = Bucket(message.bytes_per_s, message.window_bytes, now_ns)
        for resume in message.resume:  # as good as an Ack: what an earlier link brought is done with
            part = PartKey(resume.run, resume.boot)
            self._next[part] = resume.next
            self._events.append(Acked(part, resume.next))

    def _on_ack(self, message: Ack, _body: bytes, _now_ns: int) -> None:
        part = PartKey(message.run, message.boot)
        self._flight.acknowledge(part, message.next)
        self._next[part] = max(self.next_to_send(part), message.next)
        self._events.append(Acked(part, message.next))


class CollectorLink(Link):
    """The collector's end: it lets somebody in, takes blocks from agents and questions from operators.

    Args:
        limits: what this link may do; they are told in Welcome, and whoever exceeds them is closed as a flood.
    """

    def __init__(self, limits: Limits, now_ns: int) -> None:
        super().__init__(Seat.COLLECTOR, now_ns)
        self.hello: Hello | None = None
        self._limits = limits
        self._flight = Flight()
        # Both clocks run alike within a quarter; two windows and some frames are what a stalled reader finds at once.
        burst = 2 * (limits.window_bytes + MAX_FRAME_BYTES)
        self._bucket = Bucket(limits.bytes_per_s * 5 // 4, burst, now_ns)
        self._handlers[Hello] = self._on_hello
        self._handlers[Block] = self._on_block
        self._handlers[Shed] = self._on_shed

    def let_in(self, boot: str, wall_ns: int, resume: Mapping[PartKey, int]) -> None:
        """Answer `Greeted` with a Welcome.

        Args:
            boot: of the collector's program.
            wall_ns: CLOCK_REALTIME.
            resume: for each part of the Hello, the number below which all is on disk.
        """
        assert self.state is State.JUDGING
        assert self.hello is not None
        self._seat = Seat.COLLECTOR_OF_OPERATOR if self.hello.role == "operator" else Seat.COLLECTOR_OF_AGENT
        self.state = State.OPEN
        self._send(
            Welcome(
                version=PROTOCOL_VERSION,
                boot=boot,
                now_ns=wall_ns,
                window_bytes=self._limits.window_bytes,
                bytes_per_s=self._limits.bytes_per_s,
                resume=tuple(Resume(run=p.run, boot=p.boot, next=number) for p, number in resume.items()),
            )
        )

    def refuse(self, why: str) -> None:
        """Say why, and end the link; send what `data_to_send` still has before closing the connection."""
        if not self.is_closed:
            self._send(Refused(version=PROTOCOL_VERSION, why=why))
            self._close(Ending.CLOSED_HERE, why)

    def ask(self, op: str, args: object = None, body: bytes = b"") -> int:
        """Ask an agent; `Answered` comes with the same number, or `Closed` names it as unanswered.

        Raises:
            HostNotReadyError: the link is not open.
            RefusedError: too many questions wait for their answers.
            UsageError: the question is too long.
        """
        assert self._seat is not Seat.COLLECTOR_OF_OPERATOR, "operators are not asked"
        return self._ask(op, args, body)

    def acknowledge(self, part: PartKey, next_number: int) -> None:
        """All blocks of a part below `next_number` are on disk. Where the link has ended meanwhile, nothing happens."""
        if self.is_open:
            self._flight.acknowledge(part, next_number)
            self._send(Ack(run=part.run, boot=part.boot, next=next_number))

    def _receive(self, received: Received, now_ns: int) -> None:
        # Answers are paid for by the question: how many and which the collector asked is its own affair.
        is_paid = isinstance(received.message, Answer)
        if not is_paid and not self._bucket.take(received.frame_bytes + FRAME_COST_BYTES, now_ns):
            self._close(Ending.FLOOD, f"more than {self._limits.bytes_per_s} octets/s for too long")
            return
        super()._receive(received, now_ns)

    def _on_hello(self, message: Hello, _body: bytes, _now_ns: int) -> None:
        self.hello = message
        self._events.append(Greeted(message))

    def _on_other_version(self, message: OtherVersion, _body: bytes, now_ns: int) -> None:
        why = f"the peer speaks protocol version {message.version}, the collector {PROTOCOL_VERSION}: install the same"
        self._send(Refused(version=PROTOCOL_VERSION, why=why))
        super()._on_other_version(message, _body, now_ns)

    def _on_block(self, message: Block, body: bytes, _now_ns: int) -> None:
        if self._is_within(cost_of(body)):
            part = PartKey(message.run, message.boot)
            self._flight.add(part, message.number, cost_of(body))
            self.counters.blocks += 1
            self._events.append(BlockArrived(part, message.number, body))

    def _on_shed(self, message: Shed, _body: bytes, _now_ns: int) -> None:
        if message.first >= message.next:
            raise WireError("Shed", f"from {message.first} to {message.next} is no range")
        if self._is_within(FRAME_COST_BYTES):
            part = PartKey(message.run, message.boot)
            self._flight.add(part, message.next - 1, FRAME_COST_BYTES)
            self._events.append(ShedArrived(part, message.first, message.next, message.from_ns, message.to_ns))

    def _is_within(self, cost: int) -> bool:
        if self._flight.has_room(cost, self._limits.window_bytes):
            return True
        self._close(Ending.FLOOD, f"more than {self._limits.window_bytes} octets of blocks without acknowledgement")
        return False
