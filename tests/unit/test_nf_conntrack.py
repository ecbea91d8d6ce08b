"""What Linux 6.18 answered to a dump of its conntrack table, and the requests as nfnetlink_conntrack.h has them."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from netprobe.errors import WireError
from netprobe.wire.nf_conntrack import (
    AF_INET6,
    CT_NEW,
    IPS_SEEN_REPLY,
    TrackedTuple,
    attribute,
    delete_request,
    dump_request,
    parse_answers_untrusted,
)

DUMP = (Path(__file__).parent / "data" / "nf_conntrack_dump.bin").read_bytes()
GUEST, HOST = ip_address("10.77.0.2"), ip_address("10.77.0.1")
GUEST6, HOST6 = ip_address("fd77::2"), ip_address("fd77::1")


def entries():
    return [answer.entry for answer in parse_answers_untrusted(DUMP) if answer.entry]


def only(protocol, src, icmp_type=0):
    return next(
        e
        for e in entries()
        if (e.original.protocol, e.original.src, e.original.icmp_type) == (protocol, src, icmp_type)
    )


def test_a_real_dump_is_read_whole():
    """Of every protocol one entry; the last answer says that the dump is complete."""
    answers = parse_answers_untrusted(DUMP)
    assert (answers[-1].entry, answers[-1].error) == (None, 0)
    assert all(answer.error is None and not answer.is_interrupted for answer in answers[:-1])
    assert sorted(e.original.protocol for e in entries()) == [1, 1, 1, 6, 6, 17, 17, 47, 58, 132, 136, 253, 253]


@pytest.mark.parametrize("protocol", [6, 17, 132, 136])
def test_ports_of_both_directions(protocol):
    entry = only(protocol, GUEST)
    there = entry.original.dst_port
    assert entry.original == TrackedTuple(protocol, GUEST, HOST, 61000, there)
    assert entry.reply == TrackedTuple(protocol, HOST, GUEST, there, 61000)
    assert there == (5353 if protocol == 17 else 80)


@pytest.mark.parametrize(("icmp_type", "answer"), [(8, 0), (13, 14), (17, 18)])
def test_icmp_queries_have_an_identifier_and_their_answers_another_type(icmp_type, answer):
    entry = only(1, GUEST, icmp_type)
    assert entry.original == TrackedTuple(1, GUEST, HOST, 77, 0, icmp_type, 0)
    assert entry.reply == TrackedTuple(1, HOST, GUEST, 77, 0, answer, 0)


def test_an_answered_icmpv6_echo():
    entry = only(58, GUEST6, 128)
    assert entry.reply == TrackedTuple(58, HOST6, GUEST6, 77, 0, 129, 0)
    assert (entry.family, entry.status & IPS_SEEN_REPLY) == (AF_INET6, IPS_SEEN_REPLY)


@pytest.mark.parametrize("protocol", [47, 253])
def test_a_protocol_without_ports(protocol):
    assert only(protocol, GUEST).original == TrackedTuple(protocol, GUEST, HOST)


def test_zone_mark_labels_state_and_timeout():
    """As the rules of the recording set them: zone 7; 9 for the originating direction alone; mark 0x1234; label 100."""
    tcp, udp, tcp6, udp6 = only(6, GUEST), only(17, GUEST), only(6, GUEST6), only(17, GUEST6)
    assert (tcp.zone, tcp.state, tcp.timeout_s, tcp.mark, tcp.labels) == (7, "SYN_SENT", 119, 0, 0)
    assert (udp.zone, udp.state, udp.mark) == (7, "", 0x1234)
    assert (tcp6.zone, tcp6.labels) == (9, 1 << 100)
    assert udp6.zone == 0  # its zone 11 is that of answers
    assert only(132, GUEST).state == "CLOSED"


def test_requests_are_written_as_the_kernel_reads_them():
    """Dump: header of 16 bytes, nfgenmsg of 4. Delete: the tuple as it was dumped, zone, number; an ack is wanted."""
    assert dump_request(5) == bytes.fromhex("14000000 0101 0103 05000000 00000000 00000000")
    entry = only(17, GUEST)
    request = delete_request(6, entry)
    assert request[:20] == len(request).to_bytes(4, "little") + bytes.fromhex("0201 0500 06000000 00000000 02000000")
    assert request[20:] == entry.name
    original, zone = entry.name[:52], entry.name[52:60]
    assert original[:4] == bytes.fromhex("34000180")
    assert original in DUMP
    assert zone == bytes.fromhex("06001200 00070000")
    assert entry.name[60:64] == bytes.fromhex("08000c00")
    assert len(entry.name) == 68


def test_errors_and_acks():
    """NLMSG_ERROR: minus errno, then the header of the request. NLMSG_DONE may come with nothing."""
    header = bytes.fromhex("24000000 0200 0000 07000000 00000000")
    request = bytes(16)
    answers = parse_answers_untrusted(
        header + (-2).to_bytes(4, "little", signed=True) + request + header + bytes(4) + request
    )
    assert [(a.sequence, a.error) for a in answers] == [(7, 2), (7, 0)]
    done = parse_answers_untrusted(bytes.fromhex("10000000 0300 1200 08000000 00000000"))
    assert [(a.sequence, a.error, a.is_interrupted) for a in done] == [(8, 0, True)]
    overrun = parse_answers_untrusted(bytes.fromhex("10000000 0400 0000 08000000 00000000"))
    assert overrun[0].is_interrupted


def ct_new(attributes):
    body = b"\2\0\0\0" + attributes
    return (16 + len(body)).to_bytes(4, "little") + CT_NEW.to_bytes(2, "little") + bytes(10) + body


IPS = attribute(1, attribute(1, b"\x0a\0\0\1") + attribute(2, b"\x0a\0\0\2"), is_nested=True)
PROTO = attribute(2, attribute(1, b"\x11"), is_nested=True)


def both(tuple_):
    return attribute(1, tuple_, is_nested=True) + attribute(2, tuple_, is_nested=True)


def test_attributes_that_nobody_knows_are_skipped_at_every_depth():
    odd = attribute(99, b"abcde") + attribute(0x3FFF, b"")
    nested = attribute(1, attribute(1, b"\x0a\0\0\1") + odd + attribute(2, b"\x0a\0\0\2"), is_nested=True)
    plain = parse_answers_untrusted(ct_new(both(IPS + PROTO)))[0].entry
    strange = parse_answers_untrusted(ct_new(odd + both(odd + nested + PROTO) + odd))[0].entry
    assert (strange.original, strange.reply) == (plain.original, plain.reply)


def test_a_state_that_is_newer_than_this_program_is_its_number():
    info = attribute(4, attribute(1, attribute(1, b"\x63"), is_nested=True), is_nested=True)
    assert parse_answers_untrusted(ct_new(both(IPS + PROTO) + info))[0].entry.state == "99"


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(16),  # a message that is 0 bytes long
        ct_new(b"")[:18],
        ct_new(b"\3\0\1\0"),  # an attribute that is shorter than its header
        ct_new(b"\x09\0\1\0"),  # one that is longer than the message
        ct_new(b""),
        ct_new(attribute(1, IPS + PROTO, is_nested=True)),  # no answering direction
        ct_new(both(IPS)),
        ct_new(both(PROTO)),
        ct_new(both(attribute(1, attribute(1, b"\x0a\0\0") + attribute(2, b"\x0a\0\0\2")) + PROTO)),
        ct_new(both(IPS + PROTO) + attribute(18, b"\1")),
        ct_new(both(IPS + PROTO) + attribute(22, bytes(17))),
        bytes.fromhex("12000000 0200 0000 07000000 00000000 0000"),
    ],
)
def test_what_is_no_message_is_a_wire_error(data):
    with pytest.raises(WireError):
        parse_answers_untrusted(data)
