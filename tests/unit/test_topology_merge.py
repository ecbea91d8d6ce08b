"""What the databases say wins, what they do not know stays: guests that move, appear, vanish, and ports nobody sees."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from support import databases
from support.clouds import pair, topology

from netprobe.model.inventory import ChassisRow, InterfaceRow, PortBindingRow, PortGroupRow
from netprobe.model.points import Point, PointKind, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.topology import RouterLink
from netprobe.plan.paths import build_path
from netprobe.plan.topology_merge import Sources, merge

CLOUD = pair()
VM1, VM2, *_ = CLOUD.guests
NOTHING = Sources(None, None, {}, {})


def named(cloud, name):
    return next(one for one in cloud.attachments if one.name == name)


def test_databases_that_agree_change_nothing():
    """The state file of a lab and its databases say the same."""
    assert merge(CLOUD, databases.sources(CLOUD)) == CLOUD


def test_without_any_database_everything_stays():
    """Only what is stale is said."""
    assert merge(CLOUD, NOTHING) == CLOUD
    assert merge(CLOUD, replace(NOTHING, stale={"OVN southbound": "refused"})).stale == {"OVN southbound": "refused"}


def moved(port="tapnew"):
    """vm2 is claimed by hv1, and its port is there."""
    given = databases.with_ports(databases.sources(CLOUD), "hv2", gone={VM2.iface_id})
    given = databases.with_ports(given, "hv1", InterfaceRow(port, "br-int", "", 17, VM2.iface_id, is_up=True))
    return replace(given, southbound=databases.rebind(given.southbound, VM2.iface_id, chassis="hv1"))


def test_a_guest_that_moved_keeps_its_points_ids_and_changes_their_places():
    """The store still knows vm2.backend; its place says hv1 now."""
    vm2 = named(merge(CLOUD, moved()), "vm2")
    assert (vm2.host, vm2.ofport, vm2.port_device, vm2.is_bound) == ("hv1", 17, "tapnew", True)
    assert [p.id for p in vm2.chain] == ["vm2.guest", "vm2.backend"]
    assert vm2.chain[1] == Point("vm2.backend", PointKind.BACKEND, "hv1", "hv1", "tapnew")
    assert vm2.chain[0] == VM2.chain[0]
    assert vm2.agent == VM2.agent


def test_paths_follow_a_guest_that_moved():
    """vm1 and vm2 now share hv1: no tunnel any more."""
    cloud = merge(CLOUD, moved())
    path = build_path(cloud, named(cloud, "vm1"), named(cloud, "vm2"), Vantage.GUEST, Protocol.UDP)
    assert [s.point.place for s in path.forward] == [
        "vm1/vm1.guest",
        "hv1/vm1.backend",
        "hv1/vm2.backend",
        "vm2/vm2.guest",
    ]


def test_while_a_guest_moves_it_is_bound_nowhere():
    """Claimed by nobody, claimed before the port is there, or the port there before it is claimed."""
    given = databases.sources(CLOUD)
    unclaimed = replace(given, southbound=databases.rebind(given.southbound, VM2.iface_id, chassis=""))
    assert (named(merge(CLOUD, unclaimed), "vm2").host, named(merge(CLOUD, unclaimed), "vm2").is_bound) == (
        "hv2",
        False,
    )
    claimed = replace(given, southbound=databases.rebind(given.southbound, VM2.iface_id, chassis="hv1"))
    early = named(merge(CLOUD, claimed), "vm2")
    assert (early.host, early.is_bound, early.port_device, early.chain[1].device) == ("hv1", False, "", "")
    assert "hv1 has no port of its own yet" in early.unobserved
    plugged = databases.with_ports(given, "hv1", InterfaceRow("tapnew", "br-int", "", 17, VM2.iface_id))
    assert named(merge(CLOUD, plugged), "vm2").host == "hv2"


def test_a_port_without_its_flows_is_not_bound_yet():
    """Port_Binding's `up`."""
    given = databases.sources(CLOUD)
    given = replace(given, southbound=databases.rebind(given.southbound, VM1.iface_id, is_up=False))
    assert not named(merge(CLOUD, given), "vm1").is_bound


def test_a_port_that_the_switch_could_not_open_is_not_bound():
    """Its OpenFlow number is -1."""
    row = replace(databases.interface(VM1), ofport=-1, error="could not open network device tapvm1")
    given = databases.with_ports(databases.sources(CLOUD), "hv1", row, gone={VM1.iface_id})
    assert (named(merge(CLOUD, given), "vm1").is_bound, named(merge(CLOUD, given), "vm1").ofport) == (False, 0)


def test_of_two_ports_of_one_guest_on_one_host_the_open_one_counts():
    """What a migration within a host looks like."""
    closed = InterfaceRow("zzz", "br-int", "", -1, VM1.iface_id, error="gone")
    assert merge(CLOUD, databases.with_ports(databases.sources(CLOUD), "hv1", closed)) == CLOUD


def test_a_deleted_guest_is_gone():
    """Neither OVN nor a switch knows its port any more."""
    given = databases.with_ports(databases.sources(CLOUD), "hv2", gone={VM2.iface_id})
    given = replace(given, southbound=databases.without_binding(given.southbound, VM2.iface_id))
    assert "vm2" not in {guest.name for guest in merge(CLOUD, given).guests}
    assert len(merge(CLOUD, given).guests) == len(CLOUD.guests) - 1


def new_port(given, name="9d5c6fb1", label="", chassis="hv2", addresses=("fa:16:3e:aa:00:01 10.1.0.77 fd00:10:1::77",)):
    row = PortBindingRow(name, "", "dp-net1", chassis, addresses, label)
    return replace(given, southbound=replace(given.southbound, bindings=(*given.southbound.bindings, row)))


def test_a_new_guest_is_found_with_everything_that_is_known_of_it():
    """Its network's prefixes and gateway, its NAT, its groups, its port; no agent."""
    given = new_port(databases.sources(CLOUD), label="web-1")
    given = databases.with_ports(given, "hv2", InterfaceRow("tap9d5c", "br-int", "", 30, "9d5c6fb1", is_up=True))
    given = replace(given, northbound=replace(given.northbound, groups=(PortGroupRow("pg_web", ("9d5c6fb1",)),)))
    web = named(merge(CLOUD, given), "web-1")
    assert (web.host, web.ofport, web.mac, str(web.ipv4), str(web.ipv6)) == (
        *("hv2", 30, "fa:16:3e:aa:00:01", "10.1.0.77", "fd00:10:1::77"),
    )
    assert (web.network, web.prefixes, web.gateway_mac) == (VM2.network, VM2.prefixes, VM2.gateway_mac)
    assert (web.behind_nat, web.groups, web.agent, web.iface_id) == (VM2.behind_nat, ("pg_web",), "", "9d5c6fb1")
    assert web.chain == (
        Point("web-1.guest", PointKind.GUEST, "web-1"),
        Point("web-1.backend", PointKind.BACKEND, "hv2", "hv2", "tap9d5c"),
    )


def test_two_guests_never_have_one_name():
    """A label that is taken is not used."""
    cloud = merge(CLOUD, new_port(databases.sources(CLOUD), label="vm1"))
    assert len({guest.name for guest in cloud.guests}) == len(cloud.guests)
    assert named(cloud, "9d5c6fb1").iface_id == "9d5c6fb1"


@pytest.mark.parametrize("addresses", [("unknown",), (), ("dynamic",), ("fa:16:3e:aa:00:01",)])
def test_a_port_without_addresses_is_no_guest(addresses):
    """Nothing that a probe could be sent to."""
    assert merge(CLOUD, new_port(databases.sources(CLOUD), addresses=addresses)) == CLOUD


def test_a_new_port_that_is_bound_nowhere_is_no_guest():
    """Nobody is behind it yet."""
    assert merge(CLOUD, new_port(databases.sources(CLOUD), chassis="")) == CLOUD


def test_a_new_guest_on_an_unknown_host_is_shown_and_cannot_be_seen():
    """The host has no agent: its ports are unobserved, and that is said."""
    given = new_port(databases.sources(CLOUD), chassis="c-9")
    chassis = (*given.southbound.chassis, ChassisRow("c-9", "rack7", ("172.30.0.9",)))
    cloud = merge(CLOUD, replace(given, southbound=replace(given.southbound, chassis=chassis)))
    new = named(cloud, "9d5c6fb1")
    assert (new.host, new.chain[1].device) == ("rack7", "")
    assert cloud.unobserved == {
        "9d5c6fb1.backend": "which port of rack7 is its own is not known: nobody reports what that host has"
    }
    rack7 = cloud.host("rack7")
    assert (rack7.chassis, rack7.encap_ips, rack7.ovs_rundir, rack7.uplink) == (
        "c-9",
        (ip_address("172.30.0.9"),),
        "",
        (),
    )
    path = build_path(cloud, VM1, new, Vantage.GUEST, Protocol.UDP)
    assert [s.point.id for s in path.forward][2:6] == ["hv1.nic", "fabric.hv1", "9d5c6fb1.backend", "9d5c6fb1.guest"]


def test_an_offloaded_port_is_unobserved_and_its_ring_stays_shut():
    """The point is on the path, without a device; the reason is what the host said."""
    given = databases.sources(CLOUD)
    hv1 = replace(given.inventories["hv1"], is_offload_on=True, offloaded={"tapvm1": "in_hw", "nic0": "uplink"})
    cloud = merge(CLOUD, replace(given, inventories={**given.inventories, "hv1": hv1}))
    vm1 = named(cloud, "vm1")
    assert (vm1.unobserved, vm1.port_device, vm1.is_bound) == ("in_hw", "tapvm1", True)
    assert (vm1.chain[1].id, vm1.chain[1].netns, vm1.chain[1].device) == ("vm1.backend", "", "")
    assert [p.device for p in cloud.hosts[0].uplink] == ["", "to-hv1"]
    assert cloud.unobserved == {"vm1.backend": "in_hw", "hv1.nic": "uplink"}
    assert cloud.hosts[1] == CLOUD.hosts[1]


def relayed():
    """A lab's relay in vm1's port, as a state file has it: three points, and a port device of the relay's."""
    relay = Point("vm1.relay", PointKind.BACKEND, "hv1", "hv1", "rr-vm1")
    vm1 = replace(VM1, chain=(*VM1.chain, relay), port_device="rr-vm1")
    return replace(CLOUD, guests=tuple(vm1 if g.name == "vm1" else g for g in CLOUD.guests))


def test_a_relay_in_a_port_keeps_its_chain_while_the_port_is_the_same():
    """Also when its OpenFlow number changed."""
    lab = relayed()
    given = databases.sources(lab)
    assert merge(lab, given) == lab
    row = replace(databases.interface(named(lab, "vm1")), ofport=44)
    vm1 = named(merge(lab, databases.with_ports(given, "hv1", row, gone={VM1.iface_id})), "vm1")
    assert (vm1.ofport, [p.id for p in vm1.chain]) == (44, ["vm1.guest", "vm1.backend", "vm1.relay"])


def test_a_relay_that_was_taken_out_is_seen_before_the_state_file_says_so():
    """The port's device is the tap again: two points."""
    lab = relayed()
    vm1 = named(merge(lab, databases.sources(CLOUD)), "vm1")
    assert vm1 == VM1


def test_addresses_networks_and_nat_come_from_ovn():
    """A new floating IP, and a MAC and addresses that were changed."""
    given = databases.sources(CLOUD)
    south = databases.rebind(
        given.southbound, VM2.iface_id, addresses=("FA:16:3E:00:00:AB 10.1.0.200 fd00:10:1::200",), datapath="dp-net2"
    )
    nats = tuple(
        replace(row, logical_ip="10.1.0.200") if row.kind == "dnat_and_snat" else row for row in given.northbound.nats
    )
    cloud = merge(CLOUD, replace(given, southbound=south, northbound=replace(given.northbound, nats=nats)))
    vm2 = named(cloud, "vm2")
    assert (vm2.mac, str(vm2.ipv4), str(vm2.ipv6)) == ("fa:16:3e:00:00:ab", "10.1.0.200", "fd00:10:1::200")
    assert (vm2.network, vm2.gateway_mac) == ("net2", named(CLOUD, "vm4").gateway_mac)
    assert vm2.floating == IPv4Address("172.24.0.11")
    assert named(cloud, "vm1").floating is None


def test_of_several_addresses_the_one_that_was_written_down_stays():
    """Port security may list more than the guest uses."""
    given = databases.sources(CLOUD)
    text = f"{VM2.mac} 10.1.0.99 {VM2.ipv4} fd00:10:1::99 {VM2.ipv6}"
    given = replace(given, southbound=databases.rebind(given.southbound, VM2.iface_id, addresses=("unknown", text)))
    assert merge(CLOUD, given) == CLOUD


def test_the_gateway_is_where_its_port_is_claimed():
    """A fail-over moves it; where nobody serves it the port has no host."""
    given = databases.sources(CLOUD)
    moved_away = replace(given, southbound=databases.rebind(given.southbound, "cr-r1-ext", chassis="hv2"))
    assert RouterLink("r1", "ext", is_central=True, gateway="hv2") in merge(CLOUD, moved_away).routers
    down = replace(given, southbound=databases.rebind(given.southbound, "cr-r1-ext", chassis=""))
    assert RouterLink("r1", "ext", is_central=True) in merge(CLOUD, down).routers


def test_tunnels_ends_come_from_the_chassis():
    """Encap rows win; a host whose chassis was not written down is known by its own OVSDB."""
    cloud = replace(CLOUD, hosts=tuple(replace(h, chassis="", encap_ips=()) for h in CLOUD.hosts))
    assert [h.encap_ips for h in merge(cloud, databases.sources(CLOUD)).hosts] == [h.encap_ips for h in CLOUD.hosts]
    assert [h.chassis for h in merge(cloud, databases.sources(CLOUD)).hosts] == ["hv1", "hv2"]


def test_without_ovn_a_guest_is_where_its_port_is():
    """The lab with one host has no OVN: its port's number and device are OVSDB's, and one that is gone is gone."""
    lab = topology()
    vm1, vm2, vm3, vm9 = lab.guests
    inventories = {"hv1": databases.inventory(lab.hosts[0], [replace(vm1, ofport=5), vm2])}
    cloud = merge(lab, Sources(None, None, inventories, {}))
    assert [guest.name for guest in cloud.guests] == ["vm1", "vm2", "vm9"]  # of vm9's host nothing is known
    assert (cloud.guests[0].ofport, cloud.guests[1]) == (5, vm2)
    assert cloud.bypasses == ()
    assert vm3.name == "vm3"
    assert vm9 in cloud.guests


def test_without_ovn_a_guest_that_moved_is_found_by_its_port():
    """Two copies during a live migration: where it was, until that port closes."""
    lab = replace(pair(), ovn=None, routers=())
    given = replace(databases.sources(lab), southbound=None, northbound=None)
    both = databases.with_ports(given, "hv1", InterfaceRow("tapvm2", "br-int", "", 9, VM2.iface_id))
    assert named(merge(lab, both), "vm2").host == "hv2"
    after = databases.with_ports(both, "hv2", gone={VM2.iface_id})
    assert (named(merge(lab, after), "vm2").host, named(merge(lab, after), "vm2").ofport) == ("hv1", 9)
