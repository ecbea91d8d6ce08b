"""Rows of a recorded OVN (23.03, two chassis): a router with a gateway chassis, and a router that is one chassis's own.

data/ovn_two_hosts.json is what netprobe.host.ovsdb_idl read from it: vm1..vm4 on net1 and net2 behind r1, whose port
on ext is served by hv1; vm5 and vm6 on net5 behind t2, then gr, which is hv2's, toward pub. The ways that frames took
there were recorded with packet sockets on every device.
"""

import json
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from support.clouds import attachment, host

from netprobe.host.ovn_databases import northbound_of, southbound_of
from netprobe.host.ovsdb import inventory_of
from netprobe.model.points import Point, PointKind, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.topology import RouterLink, Topology
from netprobe.plan.paths import build_path, next_hop, translations
from netprobe.plan.topology_merge import Sources, merge

TABLES = json.loads((Path(__file__).parent / "data" / "ovn_two_hosts.json").read_text())
SOURCES = Sources(
    southbound_of(TABLES["southbound"]),
    northbound_of(TABLES["northbound"]),
    {name: inventory_of(name, TABLES[name]) for name in ("hv1", "hv2")},
    {},
)
BASE = Topology(
    hosts=(host("hv1", 1), host("hv2", 2)),
    guests=(replace(attachment("vm1", 1, host="hv2"), iface_id="vm1"),),  # as if written down before it moved
    bypasses=(),
    vswitches={name: Point(f"{name}.vswitch", PointKind.VSWITCH, name) for name in ("hv1", "hv2")},
)
CLOUD = merge(BASE, SOURCES)
GUESTS = {guest.name: guest for guest in CLOUD.guests}


def test_a_hosts_ports_are_read():
    """Guests' ports have an iface-id and a bridge; tunnels know their other end."""
    hv1 = SOURCES.inventories["hv1"]
    assert (hv1.chassis, hv1.encap_ips, hv1.is_offload_on) == ("hv1", ("172.30.0.1",), False)
    port = hv1.ports["vm1"]
    assert (port.name, port.bridge, port.ofport, port.kind, port.driver, port.is_up) == (
        *("tapvm1", "br-int", 1, "", "veth", True),
    )
    assert [row.remote_ip for row in hv1.interfaces if row.kind == "geneve"] == ["172.30.0.2"]


def test_every_guest_is_found_where_it_is():
    """All ten, and the one that was written down on another host."""
    assert {name: guest.host for name, guest in GUESTS.items()} == {
        **dict.fromkeys(("vm1", "vm3", "vm5", "ext2", "pub1"), "hv1"),
        **dict.fromkeys(("vm2", "vm4", "vm6", "ext1", "pub2"), "hv2"),
    }
    assert all(guest.is_bound and guest.port_device == f"tap{name}" for name, guest in GUESTS.items())


def test_a_guests_addresses_network_and_gateway_are_read():
    """From Port_Binding and from the router's ports."""
    vm4 = GUESTS["vm4"]
    assert (vm4.mac, vm4.ipv4, vm4.ipv6) == ("fa:16:3e:0a:00:04", IPv4Address("10.2.0.4"), ip_address("fd00:10:2::4"))
    assert (vm4.network, vm4.gateway_mac) == ("net2", "00:00:00:02:00:fe")
    assert vm4.prefixes == (ip_network("10.2.0.0/24"), ip_network("fd00:10:2::/64"))
    assert GUESTS["vm5"].ipv6.is_unspecified


def test_nat_is_read_also_behind_two_routers():
    """A floating IP is one's own address outside; the others share the router's."""
    seen = {name: (str(g.floating or ""), {k: str(v) for k, v in g.behind_nat.items()}) for name, g in GUESTS.items()}
    assert seen["vm1"] == ("172.24.0.11", {"ext": "172.24.0.11"})
    assert seen["vm4"] == ("", {"ext": "172.24.0.100"})
    assert seen["vm5"] == ("172.25.0.55", {"pub": "172.25.0.55"})
    assert seen["vm6"] == ("", {"pub": "172.25.0.100"})
    assert seen["ext1"] == seen["pub1"] == ("", {})


def test_gateways_are_where_ovn_has_put_them():
    """A distributed router's port by its chassisredirect port, a router of one chassis by all of its ports."""
    central = {link for link in CLOUD.routers if link.is_central}
    assert central == {
        RouterLink("r1", "ext", is_central=True, gateway="hv1"),
        RouterLink("gr", "join", is_central=True, gateway="hv2"),
        RouterLink("gr", "pub", is_central=True, gateway="hv2"),
    }


RECORDED = {
    ("vm1", "vm2"): "vm1.backend< hv1.nic> fabric.hv1< fabric.hv2> hv2.nic< vm2.backend>",
    ("vm1", "vm4"): "vm1.backend< hv1.nic> fabric.hv1< fabric.hv2> hv2.nic< vm4.backend>",
    ("vm4", "ext2"): "vm4.backend< hv2.nic> fabric.hv2< fabric.hv1> hv1.nic< ext2.backend>",
    ("ext2", "vm1"): "ext2.backend< vm1.backend>",
    ("vm1", "ext1"): "vm1.backend< hv1.nic> fabric.hv1< fabric.hv2> hv2.nic< ext1.backend>",
    ("vm5", "pub1"): "vm5.backend< hv1.nic> fabric.hv1< fabric.hv2> hv2.nic< "
    "hv2.nic> fabric.hv2< fabric.hv1> hv1.nic< pub1.backend>",
    ("pub1", "vm5"): "pub1.backend< hv1.nic> fabric.hv1< fabric.hv2> hv2.nic< "
    "hv2.nic> fabric.hv2< fabric.hv1> hv1.nic< vm5.backend>",
    ("vm6", "pub2"): "vm6.backend< pub2.backend>",
    ("pub2", "vm5"): "pub2.backend< hv2.nic> fabric.hv2< fabric.hv1> hv1.nic< vm5.backend>",
}


@pytest.mark.parametrize("pair", RECORDED)
def test_paths_are_the_ways_that_frames_were_seen_to_take(pair):
    """Recorded with a packet socket on every device."""
    sender, target = (GUESTS[name] for name in pair)
    path = build_path(CLOUD, sender, target, Vantage.GUEST, Protocol.RAW_UDP)
    assert " ".join(f"{s.point.id}{'<>'[s.direction]}" for s in path.forward[1:]) == RECORDED[pair]


@pytest.mark.parametrize(
    ("sender", "target", "sent_to", "seen"),
    [
        ("vm1", "ext1", "172.24.0.1", [("172.24.0.11", "172.24.0.1")]),
        ("vm4", "ext2", "172.24.0.2", [("172.24.0.100", "172.24.0.2")]),
        ("ext2", "vm1", "172.24.0.11", [("172.24.0.2", "10.1.0.1")]),
        ("vm5", "pub1", "172.25.0.1", [("172.25.0.55", "172.25.0.1")]),
        ("vm6", "pub1", "172.25.0.1", [("172.25.0.100", "172.25.0.1")]),
        ("pub2", "vm5", "172.25.0.55", [("172.25.0.2", "10.5.0.5")]),
    ],
)
def test_translations_are_the_addresses_that_frames_were_seen_to_have(sender, target, sent_to, seen):
    """Recorded likewise."""
    address, pairs = translations(CLOUD, GUESTS[sender], GUESTS[target], 4)
    assert (str(address), [(str(p.src_ip), str(p.dst_ip)) for p in pairs]) == (sent_to, seen)
    assert next_hop(GUESTS[sender], GUESTS[target], 4) == GUESTS[sender].gateway_mac
