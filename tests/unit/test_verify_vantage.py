"""What cannot be proved from a vantage, or between networks, is left out and said."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from netprobe.model.packets import (
    Check,
    ConnState,
    Cover,
    Decision,
    EnforcementPoint,
    Kind,
    Packet,
    Scenario,
    Stage,
    Step,
)
from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Attachment
from netprobe.service.backends import backend_on, is_tracked_by_kernel
from netprobe.service.verify_vantage import cover_from, routed

PACKET = Packet(
    "02:00:00:00:00:01", "02:00:00:00:00:02", IPv4Address("10.0.0.1"), IPv4Address("10.0.1.2"), 17, None, 53
)


def decision(port, stage, *, is_allowed):
    return Decision((Check(EnforcementPoint(port, stage), is_allowed, "r", "r"),))


def scenario(number, *decisions, packet=PACKET):
    steps = tuple(Step(i % 2 == 0, packet, ConnState.NEW, one) for i, one in enumerate(decisions))
    return Scenario(number, f"s{number}", "a", "b", steps, frozenset())


PASSES = decision("b", Stage.INGRESS, is_allowed=True)
COVER = Cover(
    (
        scenario(0, decision("a", Stage.EGRESS, is_allowed=False)),
        scenario(1, PASSES, PASSES, PASSES),
        scenario(2, decision("b", Stage.INGRESS, is_allowed=False)),
    ),
    1,
    1,
)


def attachment(name, network, **changes):
    point = Point(f"{name}.guest", PointKind.GUEST, "hv1")
    one = Attachment(
        name, "hv1", name, "eth0", "02:00:00:00:00:09", IPv4Address(0), IPv6Address(0), (), "", name, 1, "tap",
        (point, point), network=network, gateway_mac=f"02:00:00:00:ff:0{network[-1]}",
    )  # fmt: skip
    return replace(one, **changes)


def test_packet_out_behind_a_hybrid_bridge_proves_first_packets_at_their_targets_alone():
    left = cover_from(COVER, "vswitch", "bridge")
    assert [(s.number, s.key, len(s.steps)) for s in left.scenarios] == [(0, "s1", 1), (1, "s2", 1)]
    assert {what for what, _ in left.unproven} == {"a egress", "connections of a, after their first packet"}
    for vantage, backend in (("tap", "bridge"), ("guest", "bridge"), ("vswitch", "ovs-ct"), ("vswitch", "ovn")):
        assert cover_from(COVER, vantage, backend) is COVER


def test_between_networks_packets_go_to_the_senders_router():
    there = {"a": attachment("a", "net1"), "b": attachment("b", "net2")}
    left = routed(COVER, there)
    assert [step.packet.dst_mac[-2:] for step in left.scenarios[1].steps] == ["01", "02", "01"]
    assert left.unproven == ()


def test_what_a_nat_would_change_and_what_no_router_takes_is_said_to_be_unproven():
    plain = attachment("a", "net1"), attachment("b", "net2")
    natted = replace(plain[0], behind_nat={"net2": IPv4Address("10.0.1.1")})
    alone = replace(plain[1], gateway_mac="")
    for ends in ((natted, plain[1]), (plain[0], alone)):
        left = routed(COVER, dict(zip("ab", ends, strict=True)))
        assert left.scenarios == ()
        assert [what for what, _ in left.unproven] == ["a to b"]
    neighbours = replace(COVER, scenarios=(scenario(0, PASSES, packet=replace(PACKET, kind=Kind.ARP)),))
    assert routed(neighbours, dict(zip("ab", plain, strict=True))).scenarios == ()


def test_neighbours_are_left_as_they_are():
    there = {name: attachment(name, "net1") for name in "ab"}
    assert routed(COVER, there).scenarios == COVER.scenarios


@pytest.mark.parametrize(
    ("backend", "datapaths", "real"),
    [
        ("ovs-ct", "netdev@ovs-netdev\n", "ovs-ct"),
        ("ovs-ct", "system@ovs-system\n", "ovs-kernel"),
        ("ovn", "system@ovs-system\nsystem@ovs-system\n", "ovn-kernel"),
        ("ovn", "netdev@ovs-netdev\nsystem@ovs-system\n", "ovn"),
        ("ovn", "netdev@ovs-netdev\n", "ovn"),
        ("bridge", "system@ovs-system\n", "bridge"),
    ],
)
def test_what_a_userspace_datapath_does_by_its_nature_excuses_no_kernel(backend, datapaths, real):
    assert backend_on(backend, datapaths) == real


def test_a_switch_with_dpdk_is_one_by_its_own_commands():
    assert backend_on("ovs-ct", "netdev@ovs-netdev\n", "dpctl/show\ndpdk/log-list\n") == "ovs-dpdk"
    assert backend_on("ovs-ct", "netdev@ovs-netdev\n", "dpctl/show\n") == "ovs-ct"


@pytest.mark.parametrize(
    ("backend", "is_kernel"),
    [("bridge", True), ("ovs-kernel", True), ("ovn-kernel", True), ("ovs-ct", False), ("ovs-dpdk", False)],
)
def test_connections_are_looked_for_where_they_are_tracked(backend, is_kernel):
    """Of other protocols than TCP and UDP, what the kernel tracks for Open vSwitch can only be deleted over netlink."""
    assert is_tracked_by_kernel(backend) is is_kernel
