"""What both ends of a link share: reading, the table of what may arrive when, timers, questions and answers.

`feed` takes octets and gives events, `data_to_send` gives octets, `tick` lets time pass; `now_ns` is a monotonic clock.
No I/O. Below: wire.report, wire.link_events. Above: wire.link has the two ends; docs/protocol.md the page for people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, WireError
from netprobe.wire.flow_control import SECOND_NS
from netprobe.wire.framing import MAX_FRAME_BYTES
from netprobe.wire.link_events import Answered, Asked, Closed, Ending, Event
from netprobe.wire.report import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Ask,
    Block,
    Hello,
    Message,
    MessageReader,
    OtherVersion,
    Ping,
    Pong,
    Received,
    Refused,
    Shed,
    Welcome,
    encode_message,
    error_of,
    fault_of,
    pack_value,
    printable,
)

HANDSHAKE_NS: Final = 5 * SECOND_NS
PING_AFTER_NS: Final = SECOND_NS
DEAD_AFTER_NS: Final = 4 * SECOND_NS  # so that a half-open connection is noticed in less than 5 s
MAX_ASKS: Final = 128  # questions that wait for their answers, on one link
MAX_UNSENT_BYTES: Final = 4 * MAX_FRAME_BYTES  # a peer that doesn't read must not fill our memory


class Seat(Enum):
    """Which end of which link this is."""

    AGENT = auto()
    OPERATOR = auto()
    COLLECTOR = auto()  # before it knows who dialled
    COLLECTOR_OF_AGENT = auto()
    COLLECTOR_OF_OPERATOR = auto()


class State(Enum):
    """Where a link stands."""

    GREETING = auto()  # Hello is awaited, or its answer
    JUDGING = auto()  # the collector's program decides about a Hello
    OPEN = auto()
    CLOSED = auto()


_GREETED: dict[type[Message], State] = {Welcome: State.OPEN, Refused: State.CLOSED, OtherVersion: State.CLOSED}
_ALIVE: dict[type[Message], State] = {Ping: State.OPEN, Pong: State.OPEN}
_OPEN, _CLOSED = State.OPEN, State.CLOSED

TRANSITIONS: Final[dict[tuple[Seat, State], dict[type[Message], State]]] = {
    (Seat.AGENT, State.GREETING): _GREETED,
    (Seat.OPERATOR, State.GREETING): _GREETED,
    (Seat.COLLECTOR, State.GREETING): {Hello: State.JUDGING, OtherVersion: _CLOSED},
    (Seat.COLLECTOR, State.JUDGING): {},
    (Seat.AGENT, _OPEN): {**_ALIVE, Ask: _OPEN, Ack: _OPEN, Refused: _CLOSED},
    (Seat.OPERATOR, _OPEN): {**_ALIVE, Answer: _OPEN, Refused: _CLOSED},
    (Seat.COLLECTOR_OF_AGENT, _OPEN): {**_ALIVE, Answer: _OPEN, Block: _OPEN, Shed: _OPEN},
    (Seat.COLLECTOR_OF_OPERATOR, _OPEN): {**_ALIVE, Ask: _OPEN},
}
"""What may arrive, and where it leads. Whatever stands not here ends the link."""


@dataclass(slots=True)
class LinkCounters:
    """What crossed a link.

    Attributes:
        round_trip_ns: of the last Ping that was answered; None before.
        peer_now_ns: the peer's monotonic clock in its last Ping or Pong.
    """

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    blocks: int = 0
    round_trip_ns: int | None = None
    peer_now_ns: int | None = None


class Link:
    """What both ends share: reading, the table, timers, questions and answers."""

    def __init__(self, seat: Seat, now_ns: int) -> None:
        self.state = State.GREETING
        self.counters = LinkCounters()
        self._seat = seat
        self._reader = MessageReader()
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._events: list[Event] = []
        self._asked: set[int] = set()  # by us, not answered yet
        self._to_answer: set[int] = set()
        self._next_id = 0
        self._handshake_until_ns = now_ns + HANDSHAKE_NS
        self._received_ns = now_ns
        self._pings = 0  # sent since something came
        self._ping_sent: tuple[int, int] | None = None  # id, when
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Refused: self._on_refused,
            OtherVersion: self._on_other_version,
            Ask: self._on_ask,
            Answer: self._on_answer,
            Ping: self._on_ping,
            Pong: self._on_pong,
        }

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be read or sent; `Closed` has come, or comes with the next call."""
        return self.state is State.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and the link has not ended."""
        return self.state is State.OPEN

    def feed(self, data: bytes, now_ns: int) -> list[Event]:
        """Octets arrived.

        Returns:
            What they say, in order; `Closed` is the last one ever.
        """
        if self.state is State.CLOSED:
            return self._drain()
        if data:  # nothing is no sign of life
            self._received_ns, self._pings = now_ns, 0
        self.counters.bytes_in += len(data)
        try:
            for received in self._reader.feed_untrusted(data):
                self._receive(received, now_ns)
                if self.is_closed:
                    break
        except WireError as error:
            self._close(Ending.GARBAGE, str(error))
        return self._drain()

    def receive_eof(self) -> list[Event]:
        """The peer closed the connection, or it broke."""
        self._close(Ending.PEER_CLOSED, "the peer closed the connection")
        return self._drain()

    def close(self, why: str) -> list[Event]:
        """End the link from this side."""
        self._close(Ending.CLOSED_HERE, why)
        return self._drain()

    def tick(self, now_ns: int) -> list[Event]:
        """Time passed; to be called at `next_deadline_ns`, and as often as one likes."""
        if self.state in (State.GREETING, State.JUDGING):
            if now_ns >= self._handshake_until_ns:
                self._close(Ending.SLOW_HANDSHAKE, f"no handshake within {HANDSHAKE_NS / SECOND_NS:g} s")
        elif self.state is State.OPEN:
            silent_ns = now_ns - self._received_ns
            if silent_ns >= DEAD_AFTER_NS:
                self._close(Ending.SILENT, f"nothing came for {silent_ns / SECOND_NS:.1f} s")
            elif silent_ns >= (self._pings + 1) * PING_AFTER_NS:
                self._pings = silent_ns // PING_AFTER_NS
                self._ping_sent = (self._new_id(), now_ns)
                self._send(Ping(id=self._ping_sent[0], now_ns=now_ns))
        return self._drain()

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do, None when never."""
        if self.state is State.CLOSED:
            return self._received_ns if self._events else None  # it ended in a call that gives no events
        if self.state is not State.OPEN:
            return self._handshake_until_ns
        return self._received_ns + min((self._pings + 1) * PING_AFTER_NS, DEAD_AFTER_NS)

    def data_to_send(self) -> bytes:
        """Octets for the peer, once. Also a closed link may have some left (why it refuses)."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        return data

    def answer(self, question: int, result: object = None, body: bytes = b"") -> None:
        """Answer an `Asked`. Where the link has ended meanwhile, nothing happens.

        Raises:
            UsageError: the answer is too long; the question is still open.
        """
        if self.state is State.OPEN:
            assert question in self._to_answer, f"question {question} is not open"
            self._send(Answer(id=question, result=pack_value(result)), body)
            self._to_answer.discard(question)

    def fail(self, question: int, error: NetprobeError) -> None:
        """Answer an `Asked` with an error. Where the link has ended meanwhile, nothing happens."""
        if self.state is State.OPEN:
            assert question in self._to_answer, f"question {question} is not open"
            self._to_answer.discard(question)
            self._send(Answer(id=question, error=fault_of(error)))

    def _ask(self, op: str, args: object, body: bytes) -> int:
        if self.state is not State.OPEN:
            raise HostNotReadyError("link", f"is {self.state.name.lower()}, so {op!r} cannot be asked")
        if len(self._asked) >= MAX_ASKS:
            raise RefusedError(
                "link", f"{len(self._asked)} questions wait for answers", allowed=f"up to {MAX_ASKS}", advice="wait"
            )
        question = self._new_id()
        self._send(Ask(id=question, op=op, args=pack_value(args)), body)
        self._asked.add(question)
        return question

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _send(self, message: Message, body: bytes = b"") -> None:
        data = encode_message(message, body)
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        self.counters.frames_out += 1
        self.counters.bytes_out += len(data)
        if self._outgoing_bytes > MAX_UNSENT_BYTES:
            self._outgoing.clear()
            self._close(Ending.UNREAD, f"{self._outgoing_bytes} octets wait to be sent, more than {MAX_UNSENT_BYTES}")

    def _receive(self, received: Received, now_ns: int) -> None:
        message, body, _ = received
        self.counters.frames_in += 1
        following = TRANSITIONS[self._seat, self.state].get(type(message))
        if following is None:
            text = f"got {type(message).__name__} as {self._seat.name.lower()} in state {self.state.name.lower()}"
            raise WireError("link", text)
        self._handlers[type(message)](message, body, now_ns)
        if not self.is_closed:
            self.state = following

    def _close(self, ending: Ending, why: str) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._events.append(Closed(ending, why, tuple(sorted(self._asked))))

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _on_refused(self, message: Refused, _body: bytes, _now_ns: int) -> None:
        self._close(Ending.REFUSED, printable(message.why))

    def _on_other_version(self, message: OtherVersion, _body: bytes, _now_ns: int) -> None:
        self._close(
            Ending.OTHER_VERSION,
            f"the peer speaks protocol version {message.version}, this program {PROTOCOL_VERSION}: install the same",
        )

    def _on_ask(self, message: Ask, body: bytes, _now_ns: int) -> None:
        if message.id in self._to_answer:
            raise WireError("link", f"question {message.id} came twice")
        if len(self._to_answer) >= MAX_ASKS:
            self._close(Ending.FLOOD, f"more than {MAX_ASKS} questions at once")
            return
        self._to_answer.add(message.id)
        self._events.append(Asked(message.id, message.op, message.args, body))

    def _on_answer(self, message: Answer, body: bytes, _now_ns: int) -> None:
        if message.id not in self._asked:
            raise WireError("link", f"an answer to question {message.id}, which is not open")
        self._asked.discard(message.id)
        error = None if message.error is None else error_of(message.error)
        self._events.append(Answered(message.id, error, message.result, body))

    def _on_ping(self, message: Ping, _body: bytes, now_ns: int) -> None:
        self.counters.peer_now_ns = message.now_ns
        self._send(Pong(id=message.id, now_ns=now_ns))

    def _on_pong(self, message: Pong, _body: bytes, now_ns: int) -> None:
        self.counters.peer_now_ns = message.now_ns
        if self._ping_sent is not None and self._ping_sent[0] == message.id:
            self.counters.round_trip_ns = now_ns - self._ping_sent[1]
            self._ping_sent = None
