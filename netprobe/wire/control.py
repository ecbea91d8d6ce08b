"""The guest agent's control channel: messages between a controller and the agent. Bytes <-> messages, no I/O.

A message is a u32 total length (of all that follows it), a u32 length of the JSON header, the header (an object with
"type"), then a binary body. Integers of the framing are big-endian, columns in bodies little-endian. The agent is
netprobe_agents.session, the controller netprobe/host/guest_agent.py; docs/guest-agent.md lists the messages.
Standard library only.
"""

import json
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from netprobe.errors import WireError

CONTROL_VERSION = 1
MAX_MESSAGE_BYTES = 64 << 20  # a send of 40,000 full-sized frames; more is several sends
MAX_HEADER_BYTES = 64 << 10

DIRECTION_IN = 0
DIRECTION_OUT = 1

_LENGTHS = struct.Struct("!II")
_LENGTH_BYTES = 4
_WHAT = "control message"

HeaderValue = str | int | float | bool | None | Sequence[int] | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Header fields are read through the methods, which check type and range.

    Attributes:
        type: which message it is.
        header: the JSON object, with "type".
        body: binary, often empty.
    """

    type: str
    header: Mapping[str, object] = field(default_factory=dict)
    body: bytes = b""

    def integer(self, name: str, *, minimum: int = 0, maximum: int = (1 << 63) - 1) -> int:
        """An integer field.

        Raises:
            WireError: it is not there, not an integer, or out of range.
        """
        value = self.header.get(name)
        if type(value) is not int or not minimum <= value <= maximum:
            raise WireError(_WHAT, f"{self.type}: {name} is {value!r:.60}, not an integer from {minimum} to {maximum}")
        return value

    def optional_integer(self, name: str, *, minimum: int = 0, maximum: int = (1 << 63) - 1) -> int | None:
        """An integer field, or None where it is null or not there.

        Raises:
            WireError: it is something else, or out of range.
        """
        return None if self.header.get(name) is None else self.integer(name, minimum=minimum, maximum=maximum)

    def flag(self, name: str) -> bool:
        """A boolean field; False where it is not there.

        Raises:
            WireError: it is not a boolean.
        """
        value = self.header.get(name, False)
        if not isinstance(value, bool):
            raise WireError(_WHAT, f"{self.type}: {name} is {value!r:.60}, not true or false")
        return value

    def text(self, name: str) -> str:
        """A string field.

        Raises:
            WireError: it is not there, or not a string.
        """
        value = self.header.get(name)
        if not isinstance(value, str):
            raise WireError(_WHAT, f"{self.type}: {name} is {value!r:.60}, not a string")
        return value

    def integers(self, name: str, *, minimum: int, maximum: int, at_most: int) -> tuple[int, ...]:
        """A list of integers.

        Raises:
            WireError: it is not there, not a list, too long, or holds something else or out of range.
        """
        values = self.header.get(name)
        if not isinstance(values, list) or len(values) > at_most:
            raise WireError(_WHAT, f"{self.type}: {name} is not a list of at most {at_most} integers")
        if not all(type(value) is int and minimum <= value <= maximum for value in values):
            raise WireError(_WHAT, f"{self.type}: {name} holds something that is not from {minimum} to {maximum}")
        return tuple(values)


def encode_message(message_type: str, body: bytes | memoryview = b"", **header: HeaderValue) -> bytes:
    """The octets of a message.

    Args:
        message_type: the header's "type".
        body: binary body.
        header: the other fields of the header.
    """
    text = json.dumps({"type": message_type, **header}, separators=(",", ":")).encode()
    assert len(text) <= MAX_HEADER_BYTES
    total_bytes = _LENGTH_BYTES + len(text) + len(body)
    assert total_bytes <= MAX_MESSAGE_BYTES, f"{total_bytes} octets; callers split what they send"
    return b"".join((_LENGTHS.pack(total_bytes, len(text)), text, body))


class ControlReader:
    """Messages out of a stream of octets, however they are cut. After a WireError it is terminal.

    Args:
        max_bytes: of a message; a longer one is refused before it is gathered.
    """

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes
        self._failure = ""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes.

        Raises:
            WireError: the stream is no control channel, now or before.
        """
        if self._failure:
            raise WireError(_WHAT, self._failure)
        self._buffer += data
        messages = []
        try:
            while (message := self._next_untrusted()) is not None:
                messages.append(message)
        except WireError as error:
            self._failure = error.problem
            self._buffer.clear()
            raise
        return messages

    def _next_untrusted(self) -> Message | None:
        buffer = self._buffer
        if len(buffer) < _LENGTHS.size:
            return None
        total_bytes, header_bytes = _LENGTHS.unpack_from(buffer)
        if not _LENGTH_BYTES <= total_bytes <= self._max_bytes:
            raise WireError(_WHAT, f"its length is {total_bytes}, not {_LENGTH_BYTES} to {self._max_bytes}")
        if header_bytes > min(MAX_HEADER_BYTES, total_bytes - _LENGTH_BYTES):
            raise WireError(
                _WHAT, f"its header's length is {header_bytes}, of {total_bytes} (at most {MAX_HEADER_BYTES})"
            )
        end = _LENGTH_BYTES + total_bytes
        if len(buffer) < end:
            return None
        body_at = _LENGTHS.size + header_bytes
        with memoryview(buffer) as view:
            header = _decode_header_untrusted(bytes(view[_LENGTHS.size : body_at]))
            body = bytes(view[body_at:end])
        del buffer[:end]
        return Message(str(header["type"]), header, body)


def _decode_header_untrusted(text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(_WHAT, "its header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise WireError(_WHAT, 'its header is not an object with a "type"')
    return header


def pack_i64(values: Iterable[int]) -> bytes:
    """A column of int64, little-endian."""
    return _column_bytes(array("q", values))


def unpack_i64_untrusted(data: bytes) -> "array[int]":
    """The values of an int64 column.

    Raises:
        WireError: its length is no multiple of 8.
    """
    return _column_untrusted("q", data)


def _column_bytes(column: "array[int]") -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _column_untrusted(code: str, data: bytes) -> "array[int]":
    column = array(code)
    if len(data) % column.itemsize:
        raise WireError(_WHAT, f"a column of {len(data)} octets does not consist of {column.itemsize}-octet integers")
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


class MixedFrames(NamedTuple):
    """The body of a `send-mixed` message.

    Attributes:
        lengths: octets of each frame in `data`.
        data: the frames, one after the other.
        due_ns: count * i64.
    """

    lengths: Sequence[int]
    data: bytes
    due_ns: bytes


def mixed_frames_body(frames: Sequence[bytes], due_ns: Sequence[int]) -> bytes:
    """The body of a `send-mixed` message.

    Args:
        frames: of any lengths.
        due_ns: ns from the start, not decreasing, one a frame.
    """
    return b"".join((_column_bytes(array("I", map(len, frames))), *frames, pack_i64(due_ns)))


def mixed_frames_untrusted(message: Message) -> MixedFrames:
    """The columns of a `send-mixed` message.

    Raises:
        WireError: count, lengths and body don't agree.
    """
    count = message.integer("count", maximum=MAX_MESSAGE_BYTES)
    body = message.body
    frames_at, due_at = count * 4, len(body) - count * 8
    if due_at < frames_at:
        raise WireError(_WHAT, f"send-mixed: {count} frames do not fit into {len(body)} octets")
    lengths = _column_untrusted("I", body[:frames_at])
    if sum(lengths) != due_at - frames_at:
        raise WireError(_WHAT, "send-mixed: the frames' lengths don't add up to the body's")
    return MixedFrames(lengths, body[frames_at:due_at], body[due_at:])


class FrameColumns(NamedTuple):
    """The body of a `frames` message, as columns.

    Attributes:
        t_ns: count * i64, CLOCK_REALTIME of the kernel's receive stamp, ns.
        lengths: count * u32, octets of each frame in `data`.
        directions: count * u8, DIRECTION_IN or DIRECTION_OUT.
        data: the frames, one after the other.
    """

    t_ns: bytes
    lengths: bytes
    directions: bytes
    data: bytes


def encode_frames(t_ns: Sequence[int], directions: Sequence[int], frames: Sequence[bytes]) -> bytes:
    """A `frames` message from equally long columns."""
    body = b"".join(
        (pack_i64(t_ns), _column_bytes(array("I", [len(frame) for frame in frames])), bytes(directions), *frames)
    )
    return encode_message("frames", body, count=len(frames))


def frame_columns_untrusted(message: Message) -> FrameColumns:
    """The columns of a `frames` message.

    Raises:
        WireError: count, lengths and body don't agree.
    """
    count = message.integer("count", maximum=MAX_MESSAGE_BYTES)
    body = message.body
    data_at = count * 13
    if len(body) < data_at:
        raise WireError(_WHAT, f"frames: {count} of them do not fit into {len(body)} octets")
    lengths = body[count * 8 : count * 12]
    if sum(_column_untrusted("I", lengths)) != len(body) - data_at:
        raise WireError(_WHAT, "frames: their lengths don't add up to the body's")
    return FrameColumns(body[: count * 8], lengths, body[count * 12 : data_at], body[data_at:])
