"""Laws of frames, messages and links: any octets give messages or a WireError, and no cutting of the stream matters."""

import contextlib
import itertools
import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.links import BOOT, PART, hello, open_links

from netprobe.errors import WireError
from netprobe.wire.flow_control import Limits
from netprobe.wire.framing import Frame, FrameReader, encode_frame
from netprobe.wire.link import AgentLink, CollectorLink, OperatorLink
from netprobe.wire.link_events import Closed
from netprobe.wire.report import (
    KINDS,
    Answer,
    Ask,
    Block,
    Fault,
    Hello,
    MessageReader,
    Ping,
    Raw,
    Shed,
    encode_message,
    message_of_untrusted,
    unpack_value_untrusted,
)

laws = settings(deadline=None, derandomize=True, max_examples=100)

frames = st.builds(Frame, st.integers(0, 255), st.binary(max_size=60), st.binary(max_size=200))


def cut(octets, cuts):
    edges = [0, *sorted(at % (len(octets) + 1) for at in cuts), len(octets)]
    return [octets[a:b] for a, b in itertools.pairwise(edges)]


@laws
@given(st.lists(frames, max_size=5), st.lists(st.integers(0), max_size=20))
def test_frames_survive_any_cutting(sent, cuts):
    reader, got = FrameReader(), []
    for part in cut(b"".join(map(encode_frame, sent)), cuts):
        reader.feed_untrusted(part)
        while (frame := reader.next_untrusted()) is not None:
            got.append(frame)
    assert got == sent
    assert reader.buffered_bytes == 0


@laws
@given(st.binary(max_size=200), st.lists(st.integers(0), max_size=5))
def test_any_octets_are_messages_or_a_wire_error(octets, cuts):
    reader = MessageReader()
    with contextlib.suppress(WireError):
        for part in cut(octets, cuts):
            list(reader.feed_untrusted(part))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
near_misses = st.sampled_from(
    [
        msgspec.to_builtins(message, builtin_types=(bytes,))
        for message in (
            hello(),
            Block(run="r", boot=BOOT, number=1),
            Ping(id=1, now_ns=1),
            Fault(kind="a", where="b", problem="c"),
        )
    ]
)


@laws
@given(
    st.sampled_from(sorted(KINDS)),
    near_misses,
    st.dictionaries(st.sampled_from(["run", "id", "version", "error", "parts", "why", "x"]), plain),
    st.binary(max_size=3),
)
def test_any_header_is_a_message_or_a_wire_error(kind, fields, changes, tail):
    """Right types in wrong places, deep values, octets behind the end."""
    try:
        message = message_of_untrusted(Frame(kind, msgspec.msgpack.encode(fields | changes) + tail))
    except WireError as error:
        text = str(error)  # it quotes what the peer wrote
    else:
        text = ""
        assert encode_message(message) if type(message) in KINDS.values() else message.version != 1
    assert text.isprintable()


@laws
@given(st.binary(max_size=40), st.sampled_from([dict[str, int], list[str], Hello, int, str]))
def test_any_packed_octets_are_a_value_or_a_wire_error(octets, expected):
    with contextlib.suppress(WireError):
        unpack_value_untrusted(Raw(octets), expected)


def every_link():
    agent, collector = open_links()
    operator, of_operator = open_links(role="operator")
    collector.ask("x")
    operator.ask("x")
    judging = CollectorLink(Limits(), 0)
    judging.feed(encode_message(hello()), 0)
    return [
        AgentLink(hello(), 0),
        OperatorLink(hello("operator"), 0),
        CollectorLink(Limits(), 0),
        judging,
        agent,
        collector,
        operator,
        of_operator,
    ]


GOOD = [
    encode_message(hello()),
    encode_message(Ask(id=1, op="x"), b"12"),
    encode_message(Answer(id=1)),
    encode_message(Block(run="r", boot=BOOT, number=0), b"345"),
    encode_message(Ping(id=3, now_ns=0)),
    encode_message(Shed(run="r", boot=BOOT, first=0, next=2, from_ns=0, to_ns=1)),
]


def test_mutated_streams_end_a_link_once_or_leave_it_well():
    """Whatever comes, `feed` raises nothing, Closed comes once and last, and a closed link stays silent."""
    rng = random.Random(3)
    for _ in range(1_500):
        octets = bytearray(b"".join(rng.choices(GOOD, k=3)))
        for _ in range(rng.randrange(4)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        for link in every_link():
            events, now = [], 0
            for part in cut(bytes(octets), [rng.randrange(len(octets))]):
                events += link.feed(part, now)
                events += link.tick(now)
                link.data_to_send()
            closings = [isinstance(event, Closed) for event in events]
            assert sum(closings) <= 1
            assert link.is_closed == any(closings)
            if link.is_closed:
                assert closings[-1]
                assert link.feed(GOOD[1], now) == link.tick(10**12) == link.receive_eof() == []


@laws
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.lists(st.integers(0), max_size=30))
def test_blocks_survive_any_cutting(sizes, cuts):
    agent, collector = open_links()
    blocks = [bytes([number]) * size for number, size in enumerate(sizes)]
    for number, block in enumerate(blocks):
        agent.send_block(PART, number, block, 0)
    events = [event for part in cut(agent.data_to_send(), cuts) for event in collector.feed(part, 0)]
    assert [(event.number, event.octets) for event in events] == list(enumerate(blocks))
