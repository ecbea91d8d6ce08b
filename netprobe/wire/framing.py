"""Frames between agents, operators and the collector: octets <-> (kind, header, body). No I/O, no meaning.

    u32 length of all that follows | u8 kind | u32 length of the header | header | body

Integers are big-endian. What stands in header and body is wire.report's, above; docs/protocol.md has the page for
people. A length is judged before its octets are there, so a peer cannot make a reader hold more than one frame.
"""

import struct
from dataclasses import dataclass

from netprobe.errors import UsageError, WireError

MAX_FRAME_BYTES = 8 << 20  # of all that follows the length; more is several frames
MAX_HEADER_BYTES = 1 << 20

_LENGTH = struct.Struct("!I")
_HEAD = struct.Struct("!IBI")
_FIXED_BYTES = _HEAD.size - _LENGTH.size  # what follows the length in every frame
MAX_BODY_BYTES = MAX_FRAME_BYTES - _FIXED_BYTES - (64 << 10)
"""What a body may have, so that any header up to 64 KiB fits beside it."""

_WHAT = "frame"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        kind: which message it is, 0 to 255.
        header: octets of the header.
        body: binary, often empty.
    """

    kind: int
    header: bytes
    body: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Octets on the wire, with the length's own."""
        return _HEAD.size + len(self.header) + len(self.body)


def encode_frame(frame: Frame) -> bytes:
    """The octets of a frame.

    Raises:
        UsageError: it is too long to be one.
    """
    total_bytes = _FIXED_BYTES + len(frame.header) + len(frame.body)
    if len(frame.header) > MAX_HEADER_BYTES:
        raise UsageError(_WHAT, f"its header has {len(frame.header)} octets", allowed=f"up to {MAX_HEADER_BYTES}")
    if total_bytes > MAX_FRAME_BYTES:
        raise UsageError(_WHAT, f"it has {total_bytes} octets", allowed=f"up to {MAX_FRAME_BYTES}")
    return b"".join((_HEAD.pack(total_bytes, frame.kind, len(frame.header)), frame.header, frame.body))


def check_length_untrusted(total_bytes: int) -> None:
    """Judge the length that a frame begins with, before the frame is there.

    Raises:
        WireError: no frame has it.
    """
    if not _FIXED_BYTES <= total_bytes <= MAX_FRAME_BYTES:
        raise WireError(_WHAT, f"its length is {total_bytes}, not {_FIXED_BYTES} to {MAX_FRAME_BYTES}")


class FrameReader:
    """Frames out of a stream of octets, however they are cut. After a WireError it is terminal."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._failure: WireError | None = None

    @property
    def buffered_bytes(self) -> int:
        """Octets of a frame that is not complete yet."""
        return len(self._buffer)

    def feed_untrusted(self, data: bytes) -> None:
        """Take octets of the stream; `next_untrusted` gives the frames that they complete.

        Raises:
            WireError: an earlier call found that the stream holds no frames.
        """
        self._check()
        self._buffer += data

    def next_untrusted(self) -> Frame | None:
        """The next frame, or None until more octets come.

        Raises:
            WireError: the stream holds no frames, now or before.
        """
        self._check()
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (total_bytes,) = _LENGTH.unpack_from(buffer)
        try:
            check_length_untrusted(total_bytes)
        except WireError as error:
            self.fail(error)
            raise
        if len(buffer) < _HEAD.size:
            return None
        _, kind, header_bytes = _HEAD.unpack_from(buffer)
        allowed = min(MAX_HEADER_BYTES, total_bytes - _FIXED_BYTES)
        if header_bytes > allowed:
            raise self._fail(f"its header's length is {header_bytes}, of a frame of {total_bytes}, not 0 to {allowed}")
        end = _LENGTH.size + total_bytes
        if len(buffer) < end:
            return None
        body_at = _HEAD.size + header_bytes
        with memoryview(buffer) as view:
            frame = Frame(kind, bytes(view[_HEAD.size : body_at]), bytes(view[body_at:end]))
        del buffer[:end]
        return frame

    def fail(self, error: WireError) -> WireError:
        """Whoever reads the frames found one that is none: from now on every call raises this. Returns `error`."""
        self._failure = error
        self._buffer.clear()
        return error

    def _fail(self, problem: str) -> WireError:
        return self.fail(WireError(_WHAT, problem))

    def _check(self) -> None:
        if self._failure is not None:
            raise WireError(self._failure.where, self._failure.problem)
