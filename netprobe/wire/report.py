"""Messages between agents, operators and the collector. Octets <-> messages.

A frame's kind says which message its header holds, as a msgpack map of the message's fields; decoding checks every
type and bound. What an order says (`Ask.args`), what comes back and what describes a block stays packed until somebody
who knows its type unpacks it: a decoder without a type would build whatever a hostile peer likes.
Below: wire.framing. Above: wire.link, wire.blocks. docs/protocol.md says when each message is sent.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal, NamedTuple, NoReturn, TypeVar

import msgspec
from msgspec import Meta, Raw

from netprobe import errors
from netprobe.errors import NetprobeError, WireError
from netprobe.wire.framing import Frame, FrameReader, encode_frame

PROTOCOL_VERSION = 1
MAX_TEXT = 4096
MAX_PARTS = 4096  # runs that an agent may still hold something of

Role = Literal["vswitch", "bypass", "guest", "operator"]
"""Who dials the collector."""

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
"""Of an agent, as in its certificate; also part of file names, so nothing that could leave a folder."""

RunId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
Boot = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""16 random octets, drawn when the agent's program starts: block numbers begin at 0 with each."""

Number = Annotated[int, Meta(ge=0, le=(1 << 62))]
Time = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Word = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]

NIL = Raw(b"\xc0")

T = TypeVar("T")


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all messages share: no field that this version does not know."""


class PartKey(NamedTuple):
    """An agent's part in a run, in one life of its program: what blocks are numbered in."""

    run: str
    boot: str


class PartState(_Message, frozen=True, kw_only=True):
    """What an agent still holds of one run, or of one of its own earlier lives in it.

    Attributes:
        state: the program's own word.
        next_block: number that the next block of (run, boot) will get: how many there have been.
    """

    run: RunId
    boot: Boot
    state: Word
    next_block: Number


class Hello(_Message, frozen=True, kw_only=True):
    """Agent or operator -> collector, first of all. `version` stays where it is in every version."""

    version: Number
    name: Name
    role: Role
    boot: Boot
    software: Annotated[str, Meta(max_length=128)]
    parts: Annotated[tuple[PartState, ...], Meta(max_length=MAX_PARTS)] = ()


class Resume(_Message, frozen=True, kw_only=True):
    """All blocks of (run, boot) with a number below `next` are on the collector's disk."""

    run: RunId
    boot: Boot
    next: Number


class Welcome(_Message, frozen=True, kw_only=True):
    """Collector -> agent: the answer to Hello. `version` stays where it is in every version.

    Attributes:
        boot: of the collector's program.
        now_ns: the collector's CLOCK_REALTIME.
        window_bytes: unacknowledged blocks that may be on the way.
        bytes_per_s: how fast blocks may come.
        resume: where each part of Hello goes on.
    """

    version: Number
    boot: Boot
    now_ns: Time
    window_bytes: Annotated[int, Meta(ge=1, le=1 << 40)]
    bytes_per_s: Annotated[int, Meta(ge=1, le=1 << 40)]
    resume: Annotated[tuple[Resume, ...], Meta(max_length=MAX_PARTS)] = ()


class Refused(_Message, frozen=True, kw_only=True):
    """Collector -> agent, instead of Welcome or at any time after it; the link ends. It never changes."""

    version: Number
    why: Text


class Ask(_Message, frozen=True, kw_only=True):
    """An order or a question: collector -> agent, operator -> collector. A body may follow."""

    id: Number
    op: Word
    args: Raw = NIL


class Fault(_Message, frozen=True, kw_only=True):
    """A NetprobeError on its way.

    Attributes:
        kind: name of its class in netprobe.errors.
    """

    kind: Word
    where: Text
    problem: Text
    allowed: Text = ""
    advice: Text = ""


class Answer(_Message, frozen=True, kw_only=True):
    """What came of an Ask. A body may follow."""

    id: Number
    error: Fault | None = None
    result: Raw = NIL


class Block(_Message, frozen=True, kw_only=True):
    """Agent -> collector: block `number` of (run, boot). The frame's body is the block itself (wire.blocks)."""

    run: RunId
    boot: Boot
    number: Number


class Shed(_Message, frozen=True, kw_only=True):
    """Agent -> collector, in place of the blocks from `first` to below `next`: they were lost, for want of room.

    Attributes:
        from_ns, to_ns: CLOCK_REALTIME of the agent's host that the lost blocks stood for.
    """

    run: RunId
    boot: Boot
    first: Number
    next: Number
    from_ns: Time
    to_ns: Time


class Ack(_Message, frozen=True, kw_only=True):
    """Collector -> agent: all blocks of (run, boot) with a number below `next` are on disk."""

    run: RunId
    boot: Boot
    next: Number


class Ping(_Message, frozen=True, kw_only=True):
    """Either way, when nothing has come for a while. `now_ns` is the sender's own monotonic clock."""

    id: Number
    now_ns: Time


class Pong(_Message, frozen=True, kw_only=True):
    """The answer to a Ping, with its id and the answering side's clock."""

    id: Number
    now_ns: Time


class OtherVersion(_Message, frozen=True, kw_only=True):
    """A Hello or Welcome of a version that this program does not speak; made by the decoder, never sent."""

    version: Number


Message = Hello | Welcome | Refused | Ask | Answer | Block | Shed | Ack | Ping | Pong | OtherVersion

KINDS: Final[dict[int, type[_Message]]] = {
    1: Hello,
    2: Welcome,
    3: Refused,
    4: Ask,
    5: Answer,
    6: Block,
    7: Shed,
    8: Ack,
    9: Ping,
    10: Pong,
}
"""Kind of a frame -> the message in it. 1, 2 and 3 are the same in every version."""


_KIND_OF = {message: kind for kind, message in KINDS.items()}
_WITH_BODY = frozenset({Ask, Answer, Block})
_DECODERS = {kind: msgspec.msgpack.Decoder(message) for kind, message in KINDS.items()}
_PEEK = msgspec.msgpack.Decoder(
    msgspec.defstruct("_Peek", [("version", Number)], frozen=True)  # other fields are passed over
)
_DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)
"""What decoding hostile octets raises."""


def printable(text: str) -> str:
    """Text of a peer as it may go to a terminal or a log: what is no character one can see becomes a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _reason(error: Exception) -> str:
    return printable(str(error)[:200])  # it quotes what the peer wrote


def encode_message(message: Message, body: bytes = b"") -> bytes:
    """The octets of a message.

    Raises:
        UsageError: they are too many for one frame.
    """
    assert not body or type(message) in _WITH_BODY, f"{type(message).__name__} has no body"
    return encode_frame(Frame(_KIND_OF[type(message)], msgspec.msgpack.encode(message), body))


def message_of_untrusted(frame: Frame) -> Message:
    """The message in a frame.

    Returns:
        The message; OtherVersion where it is a Hello or a Welcome of one.

    Raises:
        WireError: it holds none.
    """
    decoder = _DECODERS.get(frame.kind)
    if decoder is None:
        raise WireError("frame", f"its kind is {frame.kind}, not {min(KINDS)} to {max(KINDS)}")
    kind = KINDS[frame.kind]
    if frame.body and kind not in _WITH_BODY:
        raise WireError(kind.__name__, f"has a body of {len(frame.body)} octets, and may have none")
    try:
        if kind in (Hello, Welcome):
            version = _PEEK.decode(frame.header).version  # type: ignore[attr-defined]
            if version != PROTOCOL_VERSION:
                return OtherVersion(version=version)
        message: Message = decoder.decode(frame.header)  # type: ignore[assignment]
    except _DAMAGED as error:
        raise WireError(kind.__name__, f"its header is none: {_reason(error)}") from error
    return message


class Received(NamedTuple):
    """A message out of a stream, with its body and the octets of its whole frame."""

    message: Message
    body: bytes
    frame_bytes: int


class MessageReader:
    """Messages out of a stream of octets, however they are cut. After a WireError it is terminal."""

    def __init__(self) -> None:
        self._frames = FrameReader()

    def feed_untrusted(self, data: bytes) -> Iterator[Received]:
        """The messages that `data` completes; those before a damaged one still come.

        Raises:
            WireError: the stream holds no messages, now or before.
        """
        self._frames.feed_untrusted(data)
        while (frame := self._frames.next_untrusted()) is not None:
            try:
                message = message_of_untrusted(frame)
            except WireError as error:
                self._frames.fail(error)
                raise
            yield Received(message, frame.body, frame.size_bytes)


def pack_value(value: object) -> Raw:
    """A value (structs, dataclasses, dicts, lists, numbers, text, octets) as `Ask.args` and its like hold it."""
    return Raw(msgspec.msgpack.encode(value))


def unpack_value_untrusted(packed: Raw | bytes, expected: type[T]) -> T:
    """A packed value as the type that it must have (a struct, a dataclass, `dict[str, int]`, ...).

    Raises:
        WireError: it is something else.
    """
    try:
        return msgspec.msgpack.decode(packed, type=expected)
    except _DAMAGED as error:
        raise WireError("packed value", f"is no {getattr(expected, '__name__', expected)}: {_reason(error)}") from error


_ERRORS: Final[dict[str, type[NetprobeError]]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, NetprobeError)
}


def fault_of(error: NetprobeError) -> Fault:
    """An error as it travels; texts that are too long are cut."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
    texts = (text[:MAX_TEXT] for text in (error.where, error.problem, error.allowed, error.advice))
    where, problem, allowed, advice = texts
    return Fault(kind=kind, where=where, problem=problem, allowed=allowed, advice=advice)


def error_of(fault: Fault) -> NetprobeError:
    """The error that a fault stands for: of the same class where this program has it, else NetprobeError."""
    where, problem, allowed = (printable(text) for text in (fault.where, fault.problem, fault.allowed))
    advice = "\n".join(printable(line) for line in fault.advice.splitlines())  # some show an example of a file
    kind = _ERRORS.get(fault.kind, NetprobeError)
    if issubclass(kind, WireError):
        return kind(where, problem)
    return kind(where, problem, allowed=allowed, advice=advice)


def raise_fault(fault: Fault) -> NoReturn:
    """Raise the error that a fault stands for.

    Raises:
        NetprobeError: always.
    """
    raise error_of(fault)
