"""Messages between agents and collector: their octets, their bounds, and errors that travel."""

import struct

import msgspec
import pytest

from netprobe import errors
from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, UsageError, WireError
from netprobe.wire import report
from netprobe.wire.framing import MAX_FRAME_BYTES, MAX_HEADER_BYTES, Frame, FrameReader, encode_frame
from netprobe.wire.report import (
    KINDS,
    Ack,
    Answer,
    Ask,
    Block,
    Fault,
    Hello,
    MessageReader,
    OtherVersion,
    PartState,
    Ping,
    Pong,
    Refused,
    Resume,
    Shed,
    Welcome,
    encode_message,
    error_of,
    fault_of,
    message_of_untrusted,
    pack_value,
    raise_fault,
    unpack_value_untrusted,
)

BOOT = "0f" * 16

GOLDEN = [
    (Ping(id=7, now_ns=5), b"", "00000012 09 0000000d 82a26964 07 a66e6f775f6e73 05"),
    (Pong(id=7, now_ns=300), b"", "00000014 0a 0000000f 82a26964 07 a66e6f775f6e73 cd012c"),
    (
        Ack(run="r", boot=BOOT, next=2),
        b"",
        "00000039 08 00000034 83 a372756e a172 a4626f6f74 d920" + BOOT.encode().hex() + "a46e657874 02",
    ),
    (
        Block(run="r", boot=BOOT, number=1),
        b"\xaa\xbb",
        "0000003d 06 00000036 83 a372756e a172 a4626f6f74 d920" + BOOT.encode().hex() + "a66e756d626572 01 aabb",
    ),
    (
        Refused(version=1, why="no"),
        b"",
        "00000016 03 00000011 82 a776657273696f6e 01 a3776879 a26e6f",
    ),
]


@pytest.mark.parametrize(("message", "body", "octets"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden_octets(message, body, octets):
    """The layout of docs/protocol.md, octet by octet: other programs rely on it."""
    assert encode_message(message, body).hex() == octets.replace(" ", "")
    (received,) = MessageReader().feed_untrusted(bytes.fromhex(octets))
    assert (received.message, received.body) == (message, body)


EVERY = [
    Hello(
        version=1,
        name="hv1",
        role="vswitch",
        boot=BOOT,
        software="netprobe 0.1",
        parts=(PartState(run="r1", boot=BOOT, state="running", next_block=9),),
    ),
    Welcome(
        version=1,
        boot=BOOT,
        now_ns=1,
        window_bytes=2,
        bytes_per_s=3,
        resume=(Resume(run="r1", boot=BOOT, next=4),),
    ),
    Refused(version=1, why="not now"),
    Ask(id=1, op="prepare", args=pack_value({"run": "r1"})),
    Answer(id=1, error=Fault(kind="UsageError", where="a", problem="b"), result=pack_value(None)),
    Block(run="r1", boot=BOOT, number=0),
    Shed(run="r1", boot=BOOT, first=0, next=3, from_ns=-1, to_ns=5),
    Ack(run="r1", boot=BOOT, next=2**62),
    Ping(id=0, now_ns=0),
    Pong(id=0, now_ns=-(2**63)),
]


def test_every_message_survives_and_has_a_kind():
    stream = b"".join(encode_message(message) for message in EVERY)
    assert [received.message for received in MessageReader().feed_untrusted(stream)] == EVERY
    assert {type(message) for message in EVERY} == set(KINDS.values())


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (EVERY[0], {"name": "../x"}),
        (EVERY[0], {"name": "hv1\n"}),
        (EVERY[0], {"name": ""}),
        (EVERY[0], {"name": "x" * 64}),
        (EVERY[0], {"role": "collector"}),
        (EVERY[0], {"boot": "0F" * 16}),
        (EVERY[0], {"boot": BOOT + "\n"}),
        (EVERY[0], {"parts": [{"run": "r1"}]}),
        (EVERY[0], {"colour": "red"}),
        (EVERY[1], {"window_bytes": 0}),
        (EVERY[5], {"run": "a/b"}),
        (EVERY[5], {"number": -1}),
        (EVERY[5], {"number": 2**63}),
        (EVERY[5], {"number": True}),
        (EVERY[5], {"number": 1.0}),
        (EVERY[3], {"op": "x" * 65}),
    ],
)
def test_fields_outside_their_bounds_are_no_message(message, change):
    fields = msgspec.to_builtins(message, builtin_types=(bytes, msgspec.Raw)) | change
    if isinstance(message, Ask):
        fields["args"] = None
    kind = next(kind for kind, cls in KINDS.items() if cls is type(message))
    with pytest.raises(WireError) as caught:
        message_of_untrusted(Frame(kind, msgspec.msgpack.encode(fields)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [1, 2])
def test_another_version_is_told_whatever_else_it_holds(kind):
    """So that a program of another version gets a refusal with both numbers, and no riddle."""
    header = msgspec.msgpack.encode({"version": 2, "later": [1, {}], "name": 5})
    assert message_of_untrusted(Frame(kind, header)) == OtherVersion(version=2)


@pytest.mark.parametrize("frame", [Frame(0, b"\x80"), Frame(11, b"\x80"), Frame(9, b""), Frame(9, b"\x80\x80")])
def test_unknown_kinds_and_damaged_headers_are_refused(frame):
    with pytest.raises(WireError):
        message_of_untrusted(frame)


def test_only_messages_that_may_have_a_body_have_one():
    with pytest.raises(WireError, match="may have none"):
        message_of_untrusted(Frame(9, msgspec.msgpack.encode(Ping(id=1, now_ns=1)), b"x"))


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack("!I", MAX_FRAME_BYTES + 1),
        struct.pack("!I", 4),
        struct.pack("!IBI", 100, 1, 96),
        struct.pack("!IBI", MAX_FRAME_BYTES, 1, MAX_HEADER_BYTES + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_stream_without_frames_is_refused_before_its_octets_are_there_and_for_good(octets):
    reader = FrameReader()
    reader.feed_untrusted(octets)
    for _ in range(2):
        with pytest.raises(WireError):
            reader.next_untrusted()
    with pytest.raises(WireError):
        reader.feed_untrusted(encode_frame(Frame(1, b"")))


def test_messages_before_a_damaged_one_still_come_and_nothing_after_it():
    reader = MessageReader()
    ping = encode_message(Ping(id=1, now_ns=1))
    received = reader.feed_untrusted(ping + encode_frame(Frame(99, b"")) + ping)
    assert next(received).message == Ping(id=1, now_ns=1)
    with pytest.raises(WireError):
        next(received)
    with pytest.raises(WireError):
        list(reader.feed_untrusted(ping))


@pytest.mark.parametrize(("header", "body"), [(MAX_HEADER_BYTES + 1, 0), (0, MAX_FRAME_BYTES - 4)])
def test_a_frame_that_no_reader_would_take_is_not_made(header, body):
    with pytest.raises(UsageError, match="allowed: up to"):
        encode_frame(Frame(1, bytes(header), bytes(body)))


def test_the_largest_frame_passes():
    octets = encode_frame(Frame(1, bytes(MAX_HEADER_BYTES), bytes(MAX_FRAME_BYTES - MAX_HEADER_BYTES - 5)))
    reader = FrameReader()
    reader.feed_untrusted(octets)
    frame = reader.next_untrusted()
    assert frame is not None
    assert frame.size_bytes == len(octets) == MAX_FRAME_BYTES + 4


@pytest.mark.parametrize(
    "kind",
    [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, NetprobeError)],
)
def test_every_error_comes_back_as_its_own_class(kind):
    cls = getattr(errors, kind)
    error = cls("hv1", "is late") if cls is WireError else cls("hv1", "is late", allowed="soon", advice="wait")
    back = error_of(fault_of(error))
    assert (type(back), str(back), back.exit_code) == (cls, str(error), error.exit_code)


def test_a_subclass_that_the_other_side_may_not_have_travels_as_its_parent():
    class LocalError(RefusedError):
        pass

    assert type(error_of(fault_of(LocalError("a", "b")))) is RefusedError


def test_a_hostile_fault_is_only_text():
    fault = Fault(kind="KeyboardInterrupt", where="\x1b[2J", problem="a\nb", advice="x\n\x07y")
    error = error_of(fault)
    assert type(error) is NetprobeError
    assert (error.where, error.problem, error.advice) == ("?[2J", "a?b", "x\n?y")
    with pytest.raises(HostNotReadyError):
        raise_fault(Fault(kind="HostNotReadyError", where="a", problem="b"))


def test_long_texts_are_cut():
    fault = fault_of(UsageError("x" * 10_000, "y"))
    assert len(fault.where) == report.MAX_TEXT
    encode_message(Answer(id=1, error=fault))


class Order(msgspec.Struct):
    run: str
    count: int = 1


def test_packed_values_have_the_type_that_is_asked_for():
    assert unpack_value_untrusted(pack_value(Order("r")), Order) == Order("r", 1)
    assert unpack_value_untrusted(pack_value({"a": [1, 2]}), dict[str, list[int]]) == {"a": [1, 2]}
    for wrong in (pack_value({"run": 1}), pack_value([]), b"\xc1", b"", b"\x81" * 3000):
        with pytest.raises(WireError):
            unpack_value_untrusted(wrong, Order)
