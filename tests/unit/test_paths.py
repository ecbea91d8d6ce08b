"""Paths across hosts and routers: which points, in which direction, to which MAC, under which addresses."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from support.clouds import FLOATING, SNAT, pair

from netprobe.errors import UsageError
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol, Translation
from netprobe.model.topology import RouterLink
from netprobe.plan.paths import build_path, next_hop, route, translations

CLOUD = pair()
GUESTS = {g.name: g for g in CLOUD.attachments}
ARROW = {0: "<", 1: ">"}  # into a device, out of it


def path(first, last, vantage=Vantage.GUEST, cloud=CLOUD, protocol=Protocol.UDP):
    names = {g.name: g for g in cloud.attachments}
    return build_path(cloud, names[first], names[last], vantage, protocol)


def ways(stops):
    """`<` where a frame comes into a device, `>` where it goes out of one."""
    return [f"{s.point.id}{ARROW[s.direction]}" for s in stops]


def test_a_path_across_hosts_has_eight_points_and_the_answer_comes_back_through_all_of_them():
    """Guest, port, NIC, two ports of the fabric, NIC, port, guest; each direction as the kernel tells it."""
    across = path("vm1", "vm2")
    assert ways(across.forward) == [
        "vm1.guest>",
        "vm1.backend<",
        "hv1.nic>",
        "fabric.hv1<",
        "fabric.hv2>",
        "hv2.nic<",
        "vm2.backend>",
        "vm2.guest<",
    ]
    assert ways(across.returned) == [
        "vm2.guest>",
        "vm2.backend<",
        "hv2.nic>",
        "fabric.hv2<",
        "fabric.hv1>",
        "hv1.nic<",
        "vm1.backend>",
        "vm1.guest<",
    ]


def test_from_the_vswitch_the_probe_still_leaves_through_the_uplink():
    """A packet-out enters at the vswitch and takes the tunnel; the answer ends at the played guest's port."""
    across = path("vm1", "vm2", Vantage.VSWITCH)
    assert ways(across.forward)[:3] == ["hv1.vswitch>", "hv1.nic>", "fabric.hv1<"]
    assert ways(across.returned)[-1] == "vm1.backend>"


def test_between_networks_the_router_is_everywhere():
    """net1 to net2 is routed on the host where the probe begins: no detour."""
    assert ways(path("vm1", "vm4").forward)[2:6] == ["hv1.nic>", "fabric.hv1<", "fabric.hv2>", "hv2.nic<"]
    assert ways(path("vm1", "vm3").forward) == ["vm1.guest>", "vm1.backend<", "vm3.backend>", "vm3.guest<"]


def test_toward_an_outer_network_the_way_leads_through_the_gateway_and_back():
    """vm4 and ext2 are both on hv2, and yet all they say to each other passes hv1."""
    both = path("vm4", "ext2")
    assert ways(both.forward)[2:10] == [
        "hv2.nic>",
        "fabric.hv2<",
        "fabric.hv1>",
        "hv1.nic<",
        "hv1.nic>",
        "fabric.hv1<",
        "fabric.hv2>",
        "hv2.nic<",
    ]
    assert len({(s.point.id, s.direction) for s in both.forward}) == len(both.forward)
    assert ways(both.returned)[2:10] == ways(both.forward)[2:10]


def test_a_gateway_that_is_an_end_of_the_way_is_no_detour():
    """vm1 is on the gateway's host."""
    assert ways(path("vm1", "ext2").forward)[2:6] == ["hv1.nic>", "fabric.hv1<", "fabric.hv2>", "hv2.nic<"]
    assert ways(path("vm1", "ext1").forward) == ["vm1.guest>", "vm1.backend<", "ext1.backend>", "ext1.guest<"]


def test_a_floating_ip_that_its_own_host_translates_needs_no_gateway():
    """Distributed floating IPs: hv2 translates vm4's own."""
    vm4 = replace(GUESTS["vm4"], floating=IPv4Address("172.24.0.14"), floating_mac="fa:16:3e:ff:00:04")
    cloud = replace(CLOUD, guests=tuple(vm4 if g.name == "vm4" else g for g in CLOUD.guests))
    assert ways(path("vm4", "ext2", cloud=cloud).forward) == [
        "vm4.guest>",
        "vm4.backend<",
        "ext2.backend>",
        "ext2.guest<",
    ]
    assert ways(path("ext2", "vm4", cloud=cloud).forward) == [
        "ext2.guest>",
        "ext2.backend<",
        "vm4.backend>",
        "vm4.guest<",
    ]
    assert next_hop(GUESTS["ext2"], vm4, 4) == "fa:16:3e:ff:00:04"


def test_hosts_without_uplink_points_leave_a_gap():
    """Nobody can look between the two backends; the path does not pretend otherwise."""
    cloud = replace(CLOUD, hosts=tuple(replace(h, uplink=()) for h in CLOUD.hosts))
    assert ways(path("vm1", "vm2", cloud=cloud).forward) == ["vm1.guest>", "vm1.backend<", "vm2.backend>", "vm2.guest<"]


def test_a_way_that_passes_a_point_twice_in_one_direction_is_refused():
    """Two tenants' routers, the second one's gateway on the first one's host: out of hv1's NIC twice."""
    routers = (
        RouterLink("r1", "net1"),
        RouterLink("r1", "ext", is_central=True, gateway="hv2"),
        RouterLink("r2", "net2"),
        RouterLink("r2", "ext", is_central=True, gateway="hv1"),
    )
    vm4 = replace(GUESTS["vm4"], floating=IPv4Address("172.24.0.14"))
    cloud = replace(CLOUD, routers=routers, guests=tuple(vm4 if g.name == "vm4" else g for g in CLOUD.guests))
    with pytest.raises(UsageError, match=r"passes hv1\.nic twice in the same direction"):
        path("vm1", "vm4", cloud=cloud)


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (replace(CLOUD, hosts=CLOUD.hosts[:1]), "ext2 is on 'hv2', of which nothing is known"),
        (replace(CLOUD, routers=()), "which host that is done on is not known"),
        (replace(CLOUD, routers=CLOUD.routers[1:]), "no router joins 'net1' and 'ext'"),
        (
            replace(CLOUD, routers=(*CLOUD.routers[1:], RouterLink("r1", "ext", is_central=True))),
            "no host serves the port of router r1 on ext at present",
        ),
    ],
)
def test_what_is_not_known_is_said(cloud, message):
    """No path is made up."""
    with pytest.raises(UsageError) as caught:
        path("vm1", "ext2", cloud=cloud)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sender", "target", "family", "mac"),
    [
        ("vm1", "vm2", 4, GUESTS["vm2"].mac),
        ("vm1", "vm2", 6, GUESTS["vm2"].mac),
        ("byp1", "vm2", 4, GUESTS["vm2"].mac),
        ("vm1", "vm4", 4, "00:00:00:01:00:fe"),
        ("vm4", "vm1", 6, "00:00:00:02:00:fe"),
        ("ext1", "vm1", 4, "00:00:00:03:00:fe"),
    ],
)
def test_a_frame_is_sent_to_the_target_on_its_own_link_and_else_to_the_router(sender, target, family, mac):
    """RFC 1122 §3.3.1.1: the next hop."""
    assert next_hop(GUESTS[sender], GUESTS[target], family) == mac


def test_without_prefixes_everybody_on_the_network_is_on_the_link():
    """A state file of a lab with one network names none."""
    one, two = (replace(GUESTS[name], prefixes=(), network="", gateway_mac="") for name in ("vm1", "vm4"))
    assert next_hop(one, two, 4) == two.mac


def test_without_a_router_nobody_elsewhere_is_reached():
    """Said before anything is sent."""
    with pytest.raises(UsageError, match=r"10\.2\.0\.4 is not on vm1's network, which has no router"):
        next_hop(replace(GUESTS["vm1"], gateway_mac=""), GUESTS["vm4"], 4)


def translated(sender, target, family=4, cloud=CLOUD):
    names = {g.name: g for g in cloud.attachments}
    dst, pairs = translations(cloud, names[sender], names[target], family)
    return str(dst), [(str(p.src_ip), str(p.dst_ip)) for p in pairs]


@pytest.mark.parametrize("cloud", [CLOUD, replace(CLOUD, routers=())])
def test_what_nat_makes_of_the_addresses(cloud):
    """Out with the floating IP or the router's, in by the floating IP; nothing within, and nothing of IPv6."""
    assert translated("vm1", "ext1", cloud=cloud) == ("172.24.0.5", [(str(FLOATING), "172.24.0.5")])
    assert translated("vm4", "ext1", cloud=cloud) == ("172.24.0.5", [(str(SNAT), "172.24.0.5")])
    assert translated("ext1", "vm1", cloud=cloud) == (str(FLOATING), [("172.24.0.5", "10.1.0.1")])
    assert translated("vm1", "vm4", cloud=cloud) == ("10.2.0.4", [])
    assert translated("vm1", "vm2", cloud=cloud) == ("10.1.0.2", [])
    assert translated("vm1", "ext1", 6, cloud=cloud) == ("fd00:10:3::5", [])


def test_between_two_tenants_both_routers_translate():
    """The source first, then the destination."""
    routers = (
        RouterLink("r1", "net1"),
        RouterLink("r1", "ext", is_central=True, gateway="hv1"),
        RouterLink("r2", "net2"),
        RouterLink("r2", "ext", is_central=True, gateway="hv2"),
    )
    vm4 = replace(GUESTS["vm4"], floating=IPv4Address("172.24.0.14"))
    cloud = replace(CLOUD, routers=routers, guests=tuple(vm4 if g.name == "vm4" else g for g in CLOUD.guests))
    dst, pairs = translations(cloud, GUESTS["vm1"], vm4, 4)
    assert dst == ip_address("172.24.0.14")
    assert pairs == (Translation(FLOATING, vm4.floating), Translation(FLOATING, vm4.ipv4))
    assert ways(path("vm1", "vm4", cloud=cloud).forward)[2:6] == ["hv1.nic>", "fabric.hv1<", "fabric.hv2>", "hv2.nic<"]


def test_who_is_hidden_behind_nat_cannot_be_probed_from_outside():
    """vm4 has no floating IP."""
    with pytest.raises(UsageError, match="vm4 is behind a router's NAT, seen from ext, and has no floating IP"):
        translated("ext1", "vm4")


def test_the_shortest_way_between_networks_is_taken():
    """One router rather than two."""
    joined = (("a", "net1"), ("a", "x"), ("b", "x"), ("b", "net2"), ("c", "net1"), ("c", "net2"))
    cloud = replace(CLOUD, routers=tuple(RouterLink(router, network) for router, network in joined))
    assert [link.router for link in route(cloud, "net1", "net2")] == ["c", "c"]
    assert [link.router for link in route(cloud, "net1", "x")] == ["a", "a"]
    assert route(cloud, "net1", "net1") == ()


def test_a_guest_without_an_address_of_a_family_says_so():
    """`::` is how a topology says that there is none, and no name of a guest."""
    vm1 = replace(GUESTS["vm1"], ipv6=ip_address("::"))
    assert "::" not in vm1.names
    with pytest.raises(UsageError, match="vm1: has no IPv6 address"):
        vm1.address(6)
