"""The control channel's codec: any cutting of the stream gives the same messages, any garbage a WireError."""

import contextlib
import itertools
import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import WireError
from netprobe.wire.control import (
    MAX_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    ControlReader,
    Message,
    encode_frames,
    encode_message,
    frame_columns_untrusted,
    pack_i64,
    unpack_i64_untrusted,
)

laws = settings(deadline=None, derandomize=True, max_examples=60)


def read_all(octets, cuts):
    reader, messages = ControlReader(), []
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    for start, end in itertools.pairwise(edges):
        messages += reader.feed(octets[start:end])
    return messages


headers = st.dictionaries(
    st.text("abcxyz", min_size=1).filter(lambda name: name not in ("type", "body", "message_type")),
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20) | st.lists(st.integers(0, 9)),
    max_size=4,
)


@laws
@given(
    st.lists(st.tuples(st.text(max_size=10), headers, st.binary(max_size=200)), max_size=5), st.lists(st.integers(0))
)
def test_messages_survive_any_chunking(items, cuts):
    octets = b"".join(encode_message(kind, body, **header) for kind, header, body in items)
    expected = [Message(kind, {"type": kind, **header}, body) for kind, header, body in items]
    assert read_all(octets, cuts) == expected


def test_one_octet_at_a_time_is_enough():
    octets = encode_message("sent", bytes(range(256)), id=4) * 3
    assert len(read_all(octets, range(len(octets)))) == 3


@laws
@given(st.binary(max_size=120), st.lists(st.integers(0), max_size=5))
def test_any_octets_give_messages_or_a_wire_error(octets, cuts):
    with contextlib.suppress(WireError):
        read_all(octets, cuts)


def test_ten_thousand_mutated_streams_give_messages_or_a_wire_error():
    rng = random.Random(2)
    seed = encode_message("hello", version=1) + encode_message("observe", bytes(64), snap=96, outgoing=True, id=1)
    for _ in range(10_000):
        octets = bytearray(seed)
        for _ in range(rng.randrange(1, 4)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        try:
            for message in read_all(bytes(octets), [rng.randrange(len(octets))]):
                message.optional_integer("id")
                message.flag("outgoing")
                message.integer("snap", minimum=64)
        except WireError:
            pass


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack("!II", MAX_MESSAGE_BYTES + 1, 10),
        struct.pack("!II", 3, 0),
        struct.pack("!II", 100, 97),
        struct.pack("!II", MAX_MESSAGE_BYTES, MAX_HEADER_BYTES + 1),
        struct.pack("!II", 6, 2) + b"[]",
        struct.pack("!II", 6, 2) + b"{}",
        struct.pack("!II", 14, 10) + b'{"type":1}',
        struct.pack("!II", 4, 0),
        struct.pack("!II", 60_004, 60_000) + b"[" * 60_000,
        struct.pack("!II", 5_004, 5_000) + b"1" * 5_000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_stream_that_is_no_control_channel_is_refused_at_once_and_for_good(octets):
    reader = ControlReader()
    with pytest.raises(WireError):
        reader.feed(octets)
    with pytest.raises(WireError):
        reader.feed(encode_message("hello"))


def test_a_length_is_refused_before_its_octets_are_there():
    """So a peer cannot make the reader hold more than the bound."""
    reader = ControlReader()
    with pytest.raises(WireError):
        reader.feed(struct.pack("!II", 0xFFFF_FFFF, 2))


@pytest.mark.parametrize("value", [None, "7", 7.0, True, -1, 11, [7], 10**30])
def test_an_integer_field_is_an_integer_in_its_range(value):
    with pytest.raises(WireError, match="not an integer from 0 to 10"):
        Message("send", json.loads(json.dumps({"count": value}))).integer("count", maximum=10)


def test_other_fields_are_checked_too():
    message = Message("x", {"flag": 1, "text": 3, "list": [1, "2"], "long": [1] * 9})
    for read in (
        lambda: message.flag("flag"),
        lambda: message.text("text"),
        lambda: message.integers("list", minimum=0, maximum=9, at_most=5),
        lambda: message.integers("long", minimum=0, maximum=9, at_most=5),
        lambda: message.integers("text", minimum=0, maximum=9, at_most=5),
    ):
        with pytest.raises(WireError):
            read()
    assert message.flag("absent") is False
    assert message.optional_integer("absent") is None


@laws
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_an_int64_column_survives(values):
    assert list(unpack_i64_untrusted(pack_i64(values))) == values


def test_half_an_integer_is_a_wire_error():
    with pytest.raises(WireError):
        unpack_i64_untrusted(bytes(12))


def test_frames_come_back_as_columns():
    (message,) = ControlReader().feed(encode_frames([5, 6], [0, 1], [b"abc", b"defgh"]))
    columns = frame_columns_untrusted(message)
    assert list(unpack_i64_untrusted(columns.t_ns)) == [5, 6]
    assert struct.unpack("<2I", columns.lengths) == (3, 5)
    assert (columns.directions, columns.data) == (b"\0\1", b"abcdefgh")


@laws
@given(st.integers(0, 50), st.binary(max_size=100))
def test_a_frames_body_that_does_not_agree_with_itself_is_a_wire_error(count, body):
    try:
        columns = frame_columns_untrusted(Message("frames", {"count": count}, body))
    except WireError:
        return
    assert sum(struct.unpack(f"<{count}I", columns.lengths)) == len(columns.data)
