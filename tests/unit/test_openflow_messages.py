"""OpenFlow without a switch: golden answers of Open vSwitch 3.1.0, the state machine, and what makers refuse."""

import json
from pathlib import Path

import pytest

from netprobe.errors import RefusedError, UsageError, WireError
from netprobe.wire.openflow import OpenFlowConnection, State, error_name, xid_of
from netprobe.wire.openflow_messages import (
    AggregateStats,
    BarrierReply,
    EchoRequest,
    ErrorMessage,
    FeaturesReply,
    FlowEntry,
    FlowStats,
    Hello,
    MessageType,
    Other,
    OxmField,
    PacketIn,
    Version,
    message,
)
from netprobe.wire.openflow_requests import (
    MAX_HARD_TIMEOUT_S,
    NETPROBE_COOKIE,
    NETPROBE_COOKIE_MASK,
    FlowAdd,
    flow_add,
    flow_delete,
    match,
    oxm,
    packet_out,
)

GOLDEN = json.loads((Path(__file__).parent / "data" / "openflow_replies.json").read_text())
VERSIONS = [Version.OF13, Version.OF14, Version.OF15]
DSCP_3 = bytes.fromhex("80000a0208008000100103")


def ready(version=Version.OF15):
    connection = OpenFlowConnection((version,))
    [hello] = connection.feed(message(version, MessageType.HELLO, 0))
    assert hello.version is version
    return connection


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answers_of_a_real_switch_are_read(version):
    golden = {name: bytes.fromhex(text) for name, text in GOLDEN[version.name].items()}
    connection = OpenFlowConnection((version,))
    assert [type(e) for e in connection.feed(golden["hello"])] == [Hello]
    assert connection.version is version

    barrier, stats = connection.feed(message(version, MessageType.BARRIER_REPLY, 9) + golden["aggregate"])
    assert barrier == BarrierReply(9)
    assert stats == AggregateStats(3, packet_count=18, byte_count=1014, flow_count=2)

    [flows] = connection.feed(golden["flows"])
    entry = FlowEntry(
        table=9, priority=7, cookie=NETPROBE_COOKIE | 5, packet_count=0, byte_count=0, hard_timeout_s=30, match=DSCP_3
    )
    assert flows == FlowStats(8, (entry,), more=False)

    [features] = connection.feed(golden["features"])
    assert features == FeaturesReply(9, datapath_id=0x0EF5514BDD4D, n_tables=254)

    error = connection.feed(golden["bad_in_port"])[0]
    assert isinstance(error, ErrorMessage)
    assert (error.xid, error_name(error)) == (10, "BAD_REQUEST/BAD_PORT")
    assert error_name(connection.feed(golden["bad_out_port"])[0]) == "BAD_ACTION/BAD_OUT_PORT"


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_may_come_cut_anywhere(version):
    stream = bytes.fromhex(GOLDEN[version.name]["hello"] + GOLDEN[version.name]["flows"])
    whole = OpenFlowConnection((version,)).feed(stream)
    bit_by_bit = OpenFlowConnection((version,))
    assert [e for i in range(len(stream)) for e in bit_by_bit.feed(stream[i : i + 1])] == whole


def test_our_hello_offers_the_bitmap_of_all_our_versions():
    assert OpenFlowConnection().hello().hex() == "06000010" + "00000000" + "00010008" + "00000070"


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [
        (message(4, MessageType.HELLO, 1), Version.OF13),  # without a bitmap: everything up to its header's
        (message(6, MessageType.HELLO, 1, bytes.fromhex("0001000800000032")), Version.OF14),
        (message(9, MessageType.HELLO, 1, bytes.fromhex("0002000500000000" + "0001000800000052")), Version.OF15),
    ],
)
def test_the_highest_common_version_is_agreed_on(theirs, agreed):
    connection = OpenFlowConnection()
    assert connection.feed(theirs) == [Hello(1, agreed)]
    assert connection.barrier()[0] == agreed


def test_a_switch_without_a_common_version_is_named_with_what_it_offers():
    with pytest.raises(WireError, match=r"offers versions \[1\], netprobe speaks \[4, 5, 6\]"):
        OpenFlowConnection().feed(message(1, MessageType.HELLO, 1))


def test_an_echo_request_carries_the_bytes_that_answer_it():
    connection = ready()
    [echo] = connection.feed(message(6, MessageType.ECHO_REQUEST, 77, b"ping"))
    assert echo == EchoRequest(77, message(6, MessageType.ECHO_REPLY, 77, b"ping"))


def test_a_packet_in_is_read_with_port_table_and_cookie():
    body = bytes.fromhex("ffffffff 0040 01 5d 00000000000000aa") + match(oxm(OxmField.IN_PORT, 3)) + bytes(2) + b"frame"
    [event] = ready().feed(message(6, MessageType.PACKET_IN, 0, body))
    assert event == PacketIn(0, reason=1, table=93, cookie=0xAA, in_port=3, total_bytes=64, frame=b"frame")


def test_messages_that_are_of_no_use_are_passed_on_whole():
    assert ready().feed(message(6, MessageType.PORT_STATUS, 0, b"x")) == [Other(0, MessageType.PORT_STATUS, b"x")]


@pytest.mark.parametrize(
    "second",
    [
        message(6, MessageType.HELLO, 1),
        message(6, MessageType.FLOW_MOD, 1),
        message(5, MessageType.BARRIER_REPLY, 1),
        message(6, MessageType.ERROR, 1, b"\0"),
        bytes.fromhex("0615000400000001"),
    ],
    ids=["second hello", "a controller's message", "another version", "cut off", "length 4"],
)
def test_illegal_input_ends_the_connection_for_good(second):
    connection = ready()
    with pytest.raises(WireError):
        connection.feed(second)
    assert connection.state is State.DEAD
    with pytest.raises(WireError, match="dead"):
        connection.feed(message(6, MessageType.BARRIER_REPLY, 1))


def test_nothing_but_hello_or_error_may_come_first():
    with pytest.raises(WireError, match="waiting for the switch's hello"):
        OpenFlowConnection().feed(message(6, MessageType.BARRIER_REPLY, 1))
    refused = OpenFlowConnection()
    [error] = refused.feed(message(1, MessageType.ERROR, 0, bytes(4)))
    assert error_name(error) == "HELLO_FAILED/INCOMPATIBLE"
    assert refused.state is State.DEAD


def test_packet_out_names_the_port_in_a_field_and_since_1_5_in_a_match():
    actions = "0000 0010 fffffff9 ffff 000000000000".replace(" ", "")
    old = "040d 0029 00000007 ffffffff 00000003 0010 000000000000" + actions + "aa"
    new = "060d 0031 00000007 ffffffff 0010 0000 0001 000c 80000004 00000003 00000000" + actions + "aa"
    assert packet_out(4, 7, 3, b"\xaa") == bytes.fromhex(old)
    assert packet_out(6, 7, 3, b"\xaa") == bytes.fromhex(new)


def test_each_request_has_an_xid_of_its_own_and_never_0():
    connection = ready()
    connection._xid = 0xFFFFFFFE
    assert [xid_of(connection.barrier()) for _ in range(3)] == [0xFFFFFFFF, 1, 2]


@pytest.mark.parametrize("seconds", [0, -1, MAX_HARD_TIMEOUT_S + 1])
def test_a_flow_that_would_outlive_us_is_refused(seconds):
    with pytest.raises(RefusedError, match=f"1 to {MAX_HARD_TIMEOUT_S} s"):
        flow_add(6, 1, FlowAdd(table=0, priority=1, label=0, hard_timeout_s=seconds))


def test_every_flow_carries_our_cookie_and_only_such_flows_can_be_deleted():
    added = flow_add(6, 1, FlowAdd(table=0, priority=1, label=7, hard_timeout_s=60))
    assert int.from_bytes(added[8:16], "big") == NETPROBE_COOKIE | 7
    assert added[8:12] == b"nprb"
    for request in (flow_delete(6, 1), flow_delete(6, 1, label=7)):
        cookie, mask = (int.from_bytes(request[i : i + 8], "big") for i in (8, 16))
        assert mask & NETPROBE_COOKIE_MASK == NETPROBE_COOKIE_MASK
        assert cookie & NETPROBE_COOKIE_MASK == NETPROBE_COOKIE


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="IP_DSCP"):
        oxm(OxmField.IP_DSCP, 256)
    with pytest.raises(UsageError, match="32 bits"):
        flow_add(6, 1, FlowAdd(table=0, priority=1, label=1 << 32, hard_timeout_s=1))
    with pytest.raises(UsageError, match="65535"):
        packet_out(6, 1, 1, bytes(65536))
