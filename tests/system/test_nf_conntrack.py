"""The kernel's conntrack table of a namespace: every protocol is read, and exactly what was named is deleted."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from support.kernel_tables import FIRST_PORT, GUEST, GUEST2, HOST, one_of_each, open_tracked, udp
from support.waiting import until

from netprobe.errors import HostNotReadyError
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.judge.conntrack import ICMPV6, UDP, FiveTuple
from netprobe.model.topology import Host
from netprobe.service.own_entries import delete_tuples, table_of
from netprobe.wire.nf_conntrack import attribute, delete_request

pytestmark = pytest.mark.system

TRACK = "-A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT"
KEEP_SILENT = "-t raw -A OUTPUT -p tcp --tcp-flags RST RST -j DROP"


@pytest.fixture
def tracked():
    with open_tracked("kc") as names:
        yield names


@pytest.fixture
def table(tracked):
    with KernelConntrack(tracked.host) as table:
        yield table


def ours(port, src=GUEST):
    return FiveTuple(UDP, ip_address(src), ip_address(HOST), port, 5353)


def originals(table):
    return {entry.original for entry in table.dump()}


def test_where_no_rule_asks_for_it_nothing_is_tracked(tracked, table):
    tracked.send(udp(FIRST_PORT))
    assert table.dump() == ()
    assert table.delete_own([ours(FIRST_PORT)], None).absent == (ours(FIRST_PORT),)
    assert table.use().used == 0
    assert table.use().limit > 0


def test_every_protocol_is_read_and_deleted(tracked, table):
    """Zones of both directions (7), of one (9), and none; the table says how full it is."""
    tracked.rules(TRACK, KEEP_SILENT, "-t raw -A PREROUTING -j CT --zone 7")
    tracked.rules(TRACK, KEEP_SILENT, "-t raw -A PREROUTING -p tcp -j CT --zone-orig 9", six=True)
    packets = one_of_each()
    tracked.send(*packets)
    until(lambda: len(table.dump()) >= len(packets))
    entries = table.dump()
    assert sorted(e.original.protocol for e in entries) == [1, 1, 1, 6, 6, 17, 17, 47, 58, 132, 136, 253, 253]
    assert {(e.original.src.version, e.zone) for e in entries} == {(4, 7), (6, 0), (6, 9)}
    assert {e.state for e in entries if e.original.protocol == 6} == {"SYN_SENT"}
    assert next(e for e in entries if e.original.protocol == ICMPV6).is_answered
    assert table.use().used == len(entries)
    said = table.delete_own([e.original for e in entries], None)
    assert (set(said.deleted), said.absent, said.kept) == ({e.original for e in entries}, (), ())
    assert table.dump() == ()


def test_only_what_was_named_goes(tracked, table):
    """Others' entries stay: other ports, another sender, and those that have our tuple in the answering direction."""
    tracked.rules(TRACK)
    tracked.send(*(udp(FIRST_PORT + i) for i in range(3)), udp(FIRST_PORT, src=GUEST2))
    until(lambda: len(table.dump()) == 4)
    answering = replace(ours(FIRST_PORT + 1), src=ip_address(HOST), dst=ip_address(GUEST))
    answering = replace(answering, src_port=5353, dst_port=FIRST_PORT + 1)
    said = table.delete_own([ours(FIRST_PORT), answering, ours(FIRST_PORT + 9)], None)
    assert (said.deleted, set(said.absent)) == ((ours(FIRST_PORT),), {answering, ours(FIRST_PORT + 9)})
    assert originals(table) == {ours(FIRST_PORT + 1), ours(FIRST_PORT + 2), ours(FIRST_PORT, GUEST2)}


def test_one_tuple_in_two_zones_goes_where_it_was_asked_for(tracked, table):
    tracked.rules(TRACK, "-t raw -A PREROUTING -p udp -m mark --mark 0 -j CT --zone 7")
    tracked.send(udp(FIRST_PORT))
    until(table.dump)
    tracked.rules("-t raw -I PREROUTING -p udp -j CT --zone 8", "-t raw -D PREROUTING 2")
    tracked.send(udp(FIRST_PORT))
    until(lambda: {e.zone for e in table.dump()} == {7, 8})
    assert table.delete_own([ours(FIRST_PORT)], 8).deleted == (ours(FIRST_PORT),)
    assert {e.zone for e in table.dump()} == {7}
    tracked.send(udp(FIRST_PORT))
    until(lambda: {e.zone for e in table.dump()} == {7, 8})
    assert table.delete_own([ours(FIRST_PORT)], None).deleted == (ours(FIRST_PORT), ours(FIRST_PORT))
    assert table.dump() == ()


def test_the_kernel_takes_a_deletion_for_no_other_entry_and_never_for_a_flush(tracked, table):
    """The right tuple with another number, and an empty tuple: both are refused, and the entries stay."""
    tracked.rules(TRACK)
    tracked.send(udp(FIRST_PORT), udp(FIRST_PORT + 1))
    until(lambda: len(table.dump()) == 2)
    entry = table._tracked()[0]
    other_number = entry.name[:-4] + bytes(octet ^ 0xFF for octet in entry.name[-4:])
    no_tuple = attribute(1, b"", is_nested=True)
    assert delete_request(1, entry).endswith(entry.name)
    assert table._delete([replace(entry, name=name) for name in (other_number, no_tuple)]) == [2, 22]
    assert len(table.dump()) == 2


def test_thousands_go_at_once_through_the_service(tracked, table):
    """More than one datagram of a dump, and many batches of deletions; a tenant's entry among them stays."""
    tracked.rules(TRACK)
    ports = range(FIRST_PORT, FIRST_PORT + 2000)
    tracked.send(udp(40000), *map(udp, ports))
    until(lambda: len(table.dump()) == 2001)
    host = Host("hv1", tracked.host, "", "", "", zone=5)
    said = delete_tuples(table_of(host, is_kernel=True), (ours(port) for port in ports))
    assert (len(said.deleted), said.absent, said.kept) == (2000, (), ())
    assert originals(table) == {ours(40000)}


def test_a_namespace_that_is_not_there_is_told():
    with pytest.raises(HostNotReadyError, match="cannot be entered"), KernelConntrack("nowhere-at-all"):
        pass
