"""Our entries out of a real switch's own conntrack table, by the thousand and by odd protocols; others' stay.

A private switch with the userspace datapath and no ports: packets come by packet-out, the sender's MAC says the zone.
"""

import os
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from netprobe.host import iproute, process
from netprobe.host.conntrack import Conntrack
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.ovs import PrivateSwitch
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import GRE, ICMPV6, SCTP, UDPLITE, FiveTuple
from netprobe.judge.conntrack import UDP as UDP_NUMBER
from netprobe.model.topology import Host
from netprobe.service.own_entries import delete_tuples, table_of

pytestmark = pytest.mark.system

BRIDGE = "br-own"
LOCAL = 0xFFFFFFFE  # OFPP_LOCAL
ZONE, OTHER_ZONE = 644, 645
MAC, OTHER_MAC = "fa:16:3e:00:00:01", "fa:16:3e:00:00:03"
A, B, C = (ip_address(f"10.0.0.{i}") for i in (1, 2, 3))
A6, B6 = ip_address("fd00::1"), ip_address("fd00::2")
PORTS = (61000).to_bytes(2, "big") + (80).to_bytes(2, "big")


@pytest.fixture(scope="module")
def switch(tmp_path_factory):
    netns, records = f"own-{os.getpid()}", []
    running = PrivateSwitch(netns, tmp_path_factory.mktemp("own"))
    iproute.add_namespaces([netns])
    try:
        running.create_database()
        records.append(running.start_server())
        records[:0] = running.start_switch()
        running.add_bridge(BRIDGE, [])
        flows = [f"{ip},dl_src={mac},actions=ct(commit,zone={zone})" for mac, zone in zones() for ip in ("ip", "ipv6")]
        running.replace_flows(BRIDGE, flows)
        yield running
    finally:
        process.end(records)
        iproute.delete_namespaces([netns])


def zones():
    return (MAC, ZONE), (OTHER_MAC, OTHER_ZONE)


@pytest.fixture
def send(switch):
    """Puts IP packets into the switch, in our zone unless said otherwise; the table is empty at first."""
    with OpenFlowClient(switch.run_dir, BRIDGE) as client, UnixctlClient(switch.run_dir) as unixctl:
        unixctl.call("dpctl/flush-conntrack")  # a switch of our own: nobody else's entries are in it

        def go(*packets, mac=MAC):
            frames = [bytes(Ether(src=mac, dst="fa:16:3e:00:00:02") / packet) for packet in packets]
            for first in range(0, len(frames), 64):
                client.packet_out(LOCAL, frames[first : first + 64])

        yield go


def entries(switch):
    with UnixctlClient(switch.run_dir) as unixctl:
        return {(entry.original, entry.zone) for entry in Conntrack(unixctl).dump().entries}


def pid_of(switch):
    return (switch.run_dir / "ovs-vswitchd.pid").read_text()


def hypervisor(switch, zone=ZONE):
    return Host("hv1", switch.netns, BRIDGE, str(switch.run_dir), "", zone=zone)


def udp(port, src=A):
    return IP(src=str(src), dst=str(B)) / UDP(sport=port, dport=53) / b"x"


def ours(port, src=A):
    return FiveTuple(UDP_NUMBER, src, B, port, 53)


def odd(protocol, src=A, payload=PORTS + bytes(20)):
    if src.version == 6:
        return IPv6(src=str(src), dst=str(B6), nh=protocol) / Raw(payload)
    return IP(src=str(src), dst=str(B), proto=protocol) / Raw(payload)


def test_thousands_of_which_half_are_gone_already(switch, send):
    """In our zone alone; neither the tenant's port, nor an entry that has our tuple in the answering direction."""
    answering = IP(src=str(B), dst=str(A)) / UDP(sport=53, dport=60999) / b"x"
    send(udp(40000), answering, *(udp(port) for port in range(61000, 62000)))
    send(udp(61000), mac=OTHER_MAC)
    tenants = {
        (ours(40000), ZONE),
        (FiveTuple(UDP_NUMBER, B, A, 53, 60999), ZONE),
        (ours(61000), OTHER_ZONE),
    }
    said = delete_tuples(table_of(hypervisor(switch), is_kernel=False), (ours(port) for port in range(60999, 63000)))
    assert said.deleted == tuple(t for t in said.deleted if 61000 <= t.src_port < 62000)
    assert (len(said.deleted), len(said.absent), said.kept) == (1000, 1001, ())
    assert entries(switch) == tenants


def test_without_a_zone_of_the_host_they_go_from_every_zone(switch, send):
    """OVN: each port and router has a zone of its own."""
    send(udp(61000), udp(61001))
    send(udp(61000), mac=OTHER_MAC)
    said = delete_tuples(table_of(hypervisor(switch, zone=None), is_kernel=False), [ours(61000)])
    assert said.deleted == (ours(61000), ours(61000))
    assert entries(switch) == {(ours(61001), ZONE)}


@pytest.mark.parametrize("protocol", [2, 33, GRE, 50, 112, SCTP, UDPLITE, 253])
@pytest.mark.parametrize(("src", "dst"), [(A, B), (A6, B6)], ids=["v4", "v6"])
def test_a_protocol_that_the_table_has_without_ports(switch, send, protocol, src, dst):
    """Open vSwitch 3.1 has all but TCP, UDP and ICMP so, SCTP too. It lives on, and the neighbours stay."""
    pid, other = pid_of(switch), ip_address("fd00::3") if src.version == 6 else C
    send(odd(protocol, src), odd(protocol, other), odd(254, src))
    send(odd(protocol, src), mac=OTHER_MAC)
    tuple_ = FiveTuple(protocol, src, dst, 0)
    said = delete_tuples(table_of(hypervisor(switch), is_kernel=False), [tuple_])
    assert (said.deleted, said.absent, said.kept) == ((tuple_,), (), ())
    neighbours = {(replace(tuple_, src=other), ZONE), (replace(tuple_, protocol=254), ZONE), (tuple_, OTHER_ZONE)}
    assert entries(switch) == neighbours
    assert pid_of(switch) == pid


def test_sctp_that_was_named_with_its_ports_is_kept(switch, send):
    """The entry is shared by whatever SCTP the two exchange; who says that it is ours names it without ports."""
    send(odd(SCTP))
    with_ports = FiveTuple(SCTP, A, B, 61000, 80)
    said = delete_tuples(table_of(hypervisor(switch), is_kernel=False), [with_ports, replace(with_ports, src=C)])
    assert (said.deleted, said.absent) == ((), (replace(with_ports, src=C),))
    assert [tuple_ for tuple_, _why in said.kept] == [with_ports]
    assert entries(switch) == {(FiveTuple(SCTP, A, B, 0), ZONE)}


@pytest.mark.parametrize("icmp_type", [8, 13, 15])
def test_icmp_queries(switch, send, icmp_type):
    pid = pid_of(switch)
    send(*(IP(src=str(A), dst=str(B)) / ICMP(type=icmp_type, id=i) / bytes(12) for i in (77, 78)))
    tuple_ = FiveTuple(1, A, B, 77, 0, icmp_type, 0)
    assert delete_tuples(table_of(hypervisor(switch), is_kernel=False), [tuple_]).deleted == (tuple_,)
    assert entries(switch) == {(replace(tuple_, src_port=78), ZONE)}
    assert pid_of(switch) == pid


def test_icmpv6_is_never_named(switch, send):
    """Nor ICMP in IPv6, or ICMPv6 in IPv4, which have a type of 0; the switch would abort."""
    pid = pid_of(switch)
    send(IPv6(src=str(A6), dst=str(B6)) / ICMPv6EchoRequest(id=77))
    send(odd(1, A6, b"\x08" + bytes(27)), odd(ICMPV6, A, b"\x80" + bytes(27)))
    there = entries(switch)
    assert len(there) == 3
    said = delete_tuples(table_of(hypervisor(switch), is_kernel=False), [tuple_ for tuple_, _zone in there])
    assert ({tuple_ for tuple_, _why in said.kept}, said.deleted) == ({tuple_ for tuple_, _zone in there}, ())
    assert entries(switch) == there
    assert pid_of(switch) == pid
