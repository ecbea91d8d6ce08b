"""Whose a tracked connection is, where networks have the same addresses."""

from ipaddress import ip_address

import pytest

from netprobe.judge.conntrack import ConntrackEntry, FiveTuple
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.stale_connections import find_stale
from netprobe.model.policy import Group, GroupRule, Policy, PolicyPort, Way

OPEN = Group("open", (GroupRule("out", Way.EGRESS, (4,)), GroupRule("in", Way.INGRESS, (4,), 6)))
CLOSED = Group("closed", (GroupRule("all", Way.EGRESS, (4,)),))
A, B, C = (ip_address(f"10.0.0.{i}") for i in (1, 2, 3))


def port(name, network, ip, group):
    return PolicyPort(name, network, mac=name, ips=(ip,), groups=(group,))


RED, BLUE = port("red", "red", B, "closed"), port("blue", "blue", B, "open")
SENDERS = port("red-sender", "red", A, "open"), port("blue-sender", "blue", A, "open")
LONE = port("lone", "red", C, "open")


def stale(*ports, zones=None, src=A, dst=B, zone=1):
    policy = Policy((OPEN, CLOSED), ports)
    there, back = FiveTuple(6, src, dst, 40000, 22), FiveTuple(6, dst, src, 22, 40000)
    found = find_stale([ConntrackEntry(there, back, zone)], policy, Evaluator(policy).decide, zones)
    return [(one.src, one.dst) for one in found]


@pytest.mark.parametrize("ports", [(BLUE, RED, *SENDERS), (RED, BLUE, *SENDERS)])
def test_an_address_of_two_ports_is_nobody_s(ports):
    """Whichever stands first: one of them permits the connection, and the other does not."""
    assert stale(*ports) == []
    assert stale(*ports, zones={2: "red"}) == []


@pytest.mark.parametrize("ports", [(BLUE, RED, LONE), (RED, BLUE, LONE)])
def test_one_end_that_is_known_does_not_tell_the_other(ports):
    """Networks may be joined by a router."""
    assert stale(*ports, src=C) == []


@pytest.mark.parametrize("ports", [(BLUE, RED, *SENDERS), (RED, BLUE, *SENDERS)])
def test_a_zone_of_one_port_s_own_tells_whose_the_connection_is(ports):
    assert stale(*ports, zones={1: "red"}) == [("red-sender", "red")]
    assert stale(*ports, zones={1: "blue"}) == []
    assert stale(*ports, zones={1: "red-sender"}) == []  # which may send this


def test_a_zone_of_neither_end_tells_nothing():
    assert stale(BLUE, RED, *SENDERS, LONE, zones={1: "lone"}) == []


def test_addresses_that_are_there_but_once_are_their_ports():
    assert stale(RED, SENDERS[0]) == [("red-sender", "red")]
