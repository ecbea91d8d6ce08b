"""Whatever a switch says, its OpenFlow decoder gives events or WireError, and the parsers of its texts give values."""

import itertools
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from netprobe.errors import WireError
from netprobe.judge.conntrack import parse_dump
from netprobe.judge.ofproto_trace import Verdict, parse_trace
from netprobe.judge.reason import Evidence, ReasonCode, explain
from netprobe.wire.openflow import OpenFlowConnection, State
from netprobe.wire.openflow_messages import HEADER, MessageType, Version, message

DATA = Path(__file__).parents[1] / "unit" / "data"
TEXTS = [path.read_text() for path in sorted(DATA.glob("*.txt"))]
MODERATE = settings(deadline=None, derandomize=True, max_examples=200)


def cut(data, places):
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def feed_all(connection, chunks):
    """All events, and whether the connection died over them."""
    events = []
    try:
        for chunk in chunks:
            events += connection.feed(chunk)
    except WireError:
        assert connection.state is State.DEAD
        return events, True
    return events, False


bodies = st.builds(
    lambda version, kind, xid, body: message(version, kind, xid, body),
    st.sampled_from([*Version]),
    st.sampled_from([*MessageType]),
    st.integers(0, 2**32 - 1),
    st.one_of(st.binary(max_size=120), st.builds(lambda b: b"\0\1\0\0\0\0\0\0" + b, st.binary(max_size=120))),
)


@MODERATE
@given(
    st.sampled_from([*Version]),
    st.lists(bodies, max_size=4),
    st.binary(max_size=40),
    st.lists(st.integers(0, 999), max_size=4),
)
def test_any_bytes_in_any_chunks_give_events_or_wire_error_and_the_cuts_do_not_matter(version, messages, tail, places):
    data = message(version, MessageType.HELLO, 0) + b"".join(messages) + tail
    whole = feed_all(OpenFlowConnection(), [data])
    bit_by_bit = feed_all(OpenFlowConnection(), cut(data, places))
    assert whole[1] == bit_by_bit[1]
    assert bit_by_bit[0][: len(whole[0])] == whole[0]


@MODERATE
@given(st.sampled_from([*Version]), st.binary(max_size=200))
def test_mutated_flow_statistics_never_hang_or_raise_anything_else(version, body):
    connection = OpenFlowConnection((version,))
    connection.feed(message(version, MessageType.HELLO, 0))
    for kind in (1, 2):
        multipart = kind.to_bytes(2, "big") + bytes(6) + body
        again = OpenFlowConnection((version,))
        again.feed(message(version, MessageType.HELLO, 0))
        feed_all(again, [message(version, MessageType.MULTIPART_REPLY, 1, multipart)])


@MODERATE
@given(st.binary(min_size=HEADER.size, max_size=64))
def test_bytes_that_are_no_openflow_at_all_only_raise_wire_error(data):
    feed_all(OpenFlowConnection(), [data])


@st.composite
def mangled_texts(draw):
    """A real text with lines cut, doubled, shuffled or replaced."""
    lines = draw(st.sampled_from(TEXTS)).splitlines()
    picked = draw(st.lists(st.sampled_from(lines), max_size=30))
    mangled = [line[: draw(st.integers(0, len(line)))] if draw(st.booleans()) else line for line in picked]
    return "\n".join([*mangled, draw(st.text(max_size=40))])


@MODERATE
@given(st.one_of(st.text(max_size=300), mangled_texts()))
@example("Flow: ,ct_zone=99999,\n 0. priority 99999, cookie 0xffffffffffffffff\nDatapath actions: clone((((")
@example("Flow: x\nDatapath actions: " + "clone(" * 5000)
@example("\u0663. No match.\ntcp,orig=(src=1.1.1.1,dst=1,sport=\u0663,dport=1),reply=(src=1,dst=1,sport=1,dport=1)")
def test_any_text_is_parsed_and_explained_without_an_exception(text):
    trace = parse_trace(text)
    assert trace.verdict in Verdict
    reason = explain(trace, {}, expected_port="tapb")
    assert reason.code in ReasonCode
    assert reason.evidence is Evidence.PREDICTED
    dump = parse_dump(text)
    assert len(dump.entries) + dump.bad_lines == sum(1 for line in text.splitlines() if line.strip())
