"""Points, segments and places for relays where two hypervisors are joined, and whose frames each relay hits."""

from dataclasses import replace
from itertools import pairwise

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config, topology
from netprobe.lab.layout import Layout, Placement, Splice, layout, locate
from netprobe.lab.targets import Targets, targets

PAIR = config.load("pair")
SHAPE = PAIR.shape
ENDS = topology.endpoints(PAIR)
BY_NAME = {end.name: end for end in ENDS}


def at(segment: str, *, expose: bool = False) -> Splice:
    return locate(segment, SHAPE, ENDS, expose=expose)


def way(here: Layout, source: str = "vm1", target: str = "vm2") -> list[str]:
    """The points of a path, as netprobe.plan.paths puts it together."""
    hosts = BY_NAME[source].host, BY_NAME[target].host
    outward = [*here.chains[source], *here.uplinks[hosts[0]]]
    inward = [*here.chains[target], *here.uplinks[hosts[1]]]
    return [point.id for point in (*outward, *reversed(inward))]


def test_a_path_across_hypervisors_has_8_points_and_7_segments_each_way():
    here = layout(SHAPE, ENDS)
    there = way(here)
    assert there == [
        *("vm1.guest", "vm1.backend", "hv1.nic", "fabric.hv1"),
        *("fabric.hv2", "hv2.nic", "vm2.backend", "vm2.guest"),
    ]
    ids = {segment.id for segment in here.segments}
    assert len(ids) == len(here.segments)
    for path in (there, there[::-1], way(here, "bypass1", "vm4")):
        assert all(f"{a}..{b}" in ids for a, b in pairwise(path))


def test_a_vswitch_reaches_its_own_ports_and_its_nic_and_no_others():
    here = layout(SHAPE, ENDS)
    second = {s.second.id for s in here.segments if s.first.id == "hv2.vswitch"}
    assert second == {"vm2.backend", "vm4.backend", "ext1.backend", "bypass2.backend", "hv2.nic"}
    assert not [s.id for s in here.segments if s.id == "vm1.backend..vm2.backend"]


SEGMENTS = [f"{a}..{b}" for path in (way(layout(SHAPE, ENDS)),) for p in (path, path[::-1]) for a, b in pairwise(p)]


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_fault_is_carried_by_its_own_segment(segment):
    here = layout(SHAPE, ENDS, [at(segment)])
    assert [s.id for s in here.segments if s.fault_at] == [segment]
    assert len(way(here)) == 8


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_relay_that_is_shown_is_one_more_point_on_the_path_and_the_fault_is_beside_it(segment):
    here = layout(SHAPE, ENDS, [at(segment, expose=True)])
    (carrier,) = [s for s in here.segments if s.fault_at]
    there = way(here)
    assert len(there) == 9
    assert carrier.id in {f"{a}..{b}" for p in (there, there[::-1]) for a, b in pairwise(p)}
    assert "relay" in carrier.id
    ids = {s.id for s in here.segments}
    assert all(f"{a}..{b}" in ids for p in (there, there[::-1]) for a, b in pairwise(p))
    assert len({(p.netns, p.device) for p in here.points if p.device}) == len([p for p in here.points if p.device])


@pytest.mark.parametrize(
    ("segment", "port", "placement", "peer"),
    [
        ("vm1.backend..hv1.nic", "vm1", Placement.LEAVING, "hv1.nic"),
        ("hv1.nic..fabric.hv1", "fabric.hv1", Placement.FROM, ""),
        ("fabric.hv1..fabric.hv2", "fabric.hv1", Placement.TO_PEER, "fabric.hv2"),
        ("fabric.hv2..hv2.nic", "fabric.hv2", Placement.TO, ""),
        ("hv2.nic..vm2.backend", "hv2.nic", Placement.ARRIVING, "vm2"),
    ],
)
def test_where_a_relay_stands(segment, port, placement, peer):
    assert at(segment) == Splice(segment, port, placement, peer)


def test_relays_in_both_ports_of_an_uplink_keep_it_in_order():
    splices = [at("hv2.nic..vm2.backend", expose=True), at("fabric.hv2..hv2.nic", expose=True)]
    here = layout(SHAPE, ENDS, splices)
    devices = [(point.id, point.netns, point.device) for point in here.uplinks["hv2"]]
    assert devices == [
        ("hv2.relay", "hv2", "rr-und"),
        ("hv2.nic", "hv2", "und"),
        ("relay.hv2", "fabric", "port2"),
        ("fabric.hv2", "fabric", "rr-port2"),
    ]
    assert {s.id for s in here.segments if s.fault_at} == {"hv2.nic..hv2.relay", "fabric.hv2..relay.hv2"}


def test_a_packet_out_has_no_relay_behind_it_on_its_way_to_the_nic():
    with pytest.raises(UsageError, match=r"Use hv1\.nic\.\.fabric\.hv1"):
        at("hv1.vswitch..hv1.nic")


def test_a_moved_guest_has_its_points_on_the_other_hypervisor():
    ends = tuple(replace(end, host="hv2") if end.name == "vm1" else end for end in ENDS)
    here = layout(SHAPE, ends)
    assert here.chains["vm1"][1].place == "hv2/vm1.backend"
    ids = {segment.id for segment in here.segments}
    assert {"vm1.backend..vm2.backend", "vm1.backend..hv2.nic", "hv2.vswitch..vm1.backend"} <= ids
    assert not {"vm1.backend..vm3.backend", "vm1.backend..hv1.nic"} & ids


@pytest.mark.parametrize(
    ("source", "target", "by_floating", "leaves"),
    [
        ("vm1", "vm2", False, True),
        ("vm1", "vm3", False, False),
        ("vm2", "vm4", False, False),  # routed where they are
        ("vm4", "ext1", False, True),  # through the gateway and back
        ("ext1", "vm4", False, True),
        ("vm3", "vm1", True, False),  # on the gateway's own hypervisor
        ("vm2", "vm1", True, True),
    ],
)
def test_what_leaves_a_hypervisor(source, target, by_floating, leaves):
    assert topology.leaves_host(SHAPE, BY_NAME[source], BY_NAME[target], by_floating=by_floating) is leaves


def test_whose_frames_are_hit():
    def hit(segment: str) -> Targets:
        return targets(at(segment), SHAPE, ENDS)

    assert hit("fabric.hv1..fabric.hv2") == hit("vm1.guest..vm1.backend") == hit("hv1.nic..fabric.hv1") == Targets()
    vm1, vm2, vm4 = BY_NAME["vm1"], BY_NAME["vm2"], BY_NAME["vm4"]
    assert hit("vm2.backend..vm4.backend") == Targets((vm4.mac,), (vm4.ipv4, vm4.ipv6))
    assert hit("hv2.nic..vm2.backend") == Targets((vm2.mac,), inside=True)
    assert hit("hv1.nic..vm1.backend") == Targets((vm1.mac,), (vm1.floating,), inside=True)
    leaving = hit("vm2.backend..hv2.nic")
    away = [BY_NAME[name] for name in ("vm1", "vm3", "ext1", "bypass1")]
    assert leaving == Targets(addresses=(*(a for end in away for a in (end.ipv4, end.ipv6)), vm1.floating))


def test_endpoints_of_the_pair_have_addresses_of_their_networks_and_numbers_above_ovns():
    assert [(end.name, end.ipv4, end.ipv6, end.ofport) for end in ENDS] == [
        ("vm1", "10.1.0.1", "fd00:1::1", 101),
        ("vm2", "10.1.0.2", "fd00:1::2", 102),
        ("vm3", "10.1.0.3", "fd00:1::3", 103),
        ("vm4", "10.2.0.4", "fd00:2::4", 104),
        ("ext1", "172.24.0.15", "fd00:24::15", 105),
        ("bypass1", "10.1.0.241", "fd00:1::241", 341),
        ("bypass2", "10.1.0.242", "fd00:1::242", 342),
    ]
    assert (BY_NAME["vm1"].floating, BY_NAME["bypass1"].floating) == ("172.24.0.101", "")


def test_fifty_guests_have_addresses_devices_and_ports_of_their_own():
    guests = [
        f'[[guest]]\nname = "vm{n}"\nhost = "hv{1 + n % 2}"\nnetwork = "{"net1" if n % 3 else "ext"}"\n'
        + ("floating = true\n" if n % 3 else "")
        for n in range(1, 51)
    ]
    ends = topology.endpoints(config.parse("".join(guests), where="x.toml", lab="pair"))
    assert len(ends) == 52
    routers = [network.router_ipv4 for network in SHAPE.networks]
    addresses = [end.ipv4 for end in ends] + [end.floating for end in ends if end.floating] + routers
    for values in (addresses, [e.mac for e in ends], [e.tap for e in ends], [e.ofport for e in ends]):
        assert len(set(values)) == len(values)
