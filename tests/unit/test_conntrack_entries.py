"""Conntrack entries: real dumps of Open vSwitch 3.1.0, exact tuples for deletion, and the state a probe would get."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from netprobe.errors import UsageError
from netprobe.judge.conntrack import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    CtState,
    FiveTuple,
    entries_matching,
    flush_argument,
    parse_dump,
    state_for,
)

DATA = Path(__file__).parent / "data"
A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")
A6, B6 = ip_address("fd00::1"), ip_address("fd00::2")


@pytest.mark.parametrize("name", ["conntrack_dump.txt", "conntrack_dump_m.txt"])
def test_a_real_dump_is_read_line_by_line(name):
    dump = parse_dump((DATA / name).read_text())
    assert dump.bad_lines == 0
    assert len(dump.entries) == 12
    assert {e.zone for e in dump.entries} == {5}
    assert {e.original.protocol for e in dump.entries} == {TCP, UDP, ICMP, ICMPV6}
    echo = FiveTuple(ICMPV6, A6, B6, 78, 0, 128, 0)
    assert [e.reply for e in dump.entries if e.original == echo] == [FiveTuple(ICMPV6, B6, A6, 78, 0, 129, 0)]
    states = {e.original.src_port: e.state for e in dump.entries if e.original.protocol == TCP}
    assert states == {61000: "SYN_SENT", 61001: "ESTABLISHED"}
    assert all((e.timeout_s is not None) == name.endswith("_m.txt") for e in dump.entries)


def test_lines_that_are_no_entries_are_counted():
    good = "tcp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1,dport=2),reply=(src=10.0.0.2,dst=10.0.0.1,sport=2,dport=1)"
    dump = parse_dump(f"{good}\nrubbish\n{good.replace('sport=1', 'sport=66000')}\n\n{good.replace('tcp', 'gre')}\n")
    assert (len(dump.entries), dump.bad_lines) == (1, 3)


def test_matching_finds_both_directions_and_minds_the_zone():
    entries = parse_dump((DATA / "conntrack_dump.txt").read_text()).entries
    ours = FiveTuple(TCP, A, B, 61000, 80)
    answer = FiveTuple(TCP, B, A, 80, 61000)
    assert entries_matching(entries, [ours]) == entries_matching(entries, [answer], zone=5)
    assert len(entries_matching(entries, [ours])) == 1
    assert entries_matching(entries, [ours], zone=6) == []
    assert entries_matching(entries, [replace(ours, src_port=61002)]) == []


def test_an_exact_tuple_is_written_as_ovs_wants_it():
    assert flush_argument(FiveTuple(TCP, A, B, 61000, 80)) == (
        "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=6,ct_tp_src=61000,ct_tp_dst=80"
    )
    assert flush_argument(FiveTuple(UDP, A6, B6, 61000, 53)) == (
        "ct_ipv6_src=fd00::1,ct_ipv6_dst=fd00::2,ct_nw_proto=17,ct_tp_src=61000,ct_tp_dst=53"
    )
    assert flush_argument(FiveTuple(ICMP, A, B, 77, 0, 8, 0)) == (
        "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=1,icmp_id=77,icmp_type=8,icmp_code=0"
    )


@pytest.mark.parametrize(
    "tuple_",
    [
        FiveTuple(TCP, A, B, 0, 80),
        FiveTuple(UDP, A, B, 61000, 0),
        FiveTuple(UDP, ip_address("0.0.0.0"), B, 61000, 53),
        FiveTuple(ICMP, A, B, 0, 0, 8, 0),
        FiveTuple(SCTP, A, B, 61000, 0),
        FiveTuple(0, A, B, 0),
        FiveTuple(50, A, B, 61000, 80),
    ],
)
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_tuple_with_a_hole_is_refused_because_ovs_takes_it_for_any(tuple_, is_alone):
    with pytest.raises(UsageError):
        flush_argument(tuple_, is_alone=is_alone)


@pytest.mark.parametrize("protocol", [SCTP, 47, 253])
def test_a_tuple_without_ports_is_named_only_where_it_is_the_only_one_of_its_kind(protocol):
    tuple_ = FiveTuple(protocol, A, B, 0)
    assert flush_argument(tuple_, is_alone=True) == f"ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto={protocol}"
    with pytest.raises(UsageError):
        flush_argument(tuple_)


@pytest.mark.parametrize(
    "tuple_",
    [
        FiveTuple(ICMPV6, A6, B6, 78, 0, 128, 0),
        FiveTuple(ICMP, A, B, 77, 0, 3, 1),
        FiveTuple(ICMP, A, B, 77, 0, 17, 0),
        FiveTuple(ICMP, A6, B6, 77, 0, 8, 0),
    ],
)
def test_a_tuple_whose_deletion_kills_the_switch_is_refused(tuple_):
    with pytest.raises(UsageError):
        flush_argument(tuple_, is_alone=True)


def test_protocols_that_ovs_prints_by_name_or_number():
    rest = "orig=(src=10.0.0.1,dst=10.0.0.2,sport=0,dport=0),reply=(src=10.0.0.2,dst=10.0.0.1,sport=0,dport=0),zone=77"
    dump = parse_dump("\n".join(f"{name},{rest}" for name in ("sctp", "udplite", "dccp", "igmp", "47", "256")))
    assert [entry.original.protocol for entry in dump.entries] == [132, 136, 33, 2, 47]
    assert dump.bad_lines == 1


def entry(state="", protocol=TCP, zone=5):
    line = (DATA / "conntrack_dump.txt").read_text().splitlines()[0]
    found = parse_dump(line).entries[0]
    original, reply = FiveTuple(protocol, A, B, 61000, 80), FiveTuple(protocol, B, A, 80, 61000)
    return replace(found, original=original, reply=reply, state=state, zone=zone)


OURS, ANSWER = FiveTuple(TCP, A, B, 61000, 80), FiveTuple(TCP, B, A, 80, 61000)


@pytest.mark.parametrize(
    ("entries", "tuple_", "flags", "state"),
    [
        ([], OURS, 0x02, CtState.NEW),
        ([], OURS, 0x12, CtState.INVALID),  # a SYN-ACK that nobody asked for
        ([], OURS, 0x10, CtState.NEW),
        ([entry("SYN_SENT")], OURS, 0x02, CtState.NEW),
        ([entry("TIME_WAIT")], OURS, 0x02, CtState.NEW),
        ([entry("ESTABLISHED")], OURS, 0x02, CtState.INVALID),
        ([entry("SYN_RECV")], OURS, 0x02, CtState.INVALID),
        ([entry("ESTABLISHED")], OURS, 0x18, CtState.ESTABLISHED),
        ([entry("ESTABLISHED")], ANSWER, 0x12, CtState.REPLY),
        ([entry("ESTABLISHED", zone=6)], OURS, 0x02, CtState.NEW),
        ([entry(protocol=UDP)], replace(OURS, protocol=UDP), 0, CtState.NEW),
    ],
)
def test_the_state_of_a_packet_is_what_open_vswitch_was_measured_to_give(entries, tuple_, flags, state):
    assert state_for(tuple_, entries, tcp_flags=flags, zone=5) is state


def test_udp_is_established_once_somebody_answered():
    assert state_for(replace(OURS, protocol=UDP), [entry(protocol=UDP)], is_answered=True) is CtState.ESTABLISHED
