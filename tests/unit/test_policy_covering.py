"""Covering probes by example: each kind of boundary of a small policy, what can't be proved, and what can't decide."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from netprobe.judge.evaluator import Evaluator
from netprobe.model.packets import ConnState, Fragment
from netprobe.model.policy import (
    ICMP,
    TCP,
    UDP,
    AclMatch,
    Action,
    AddressPair,
    Group,
    GroupRule,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)
from netprobe.plan.covering import WRONG_STAGE, cover
from netprobe.plan.port_masks import range_masks

OUT = GroupRule("out", Way.EGRESS, (4, 6))


def port(number, groups=("any",), **more):
    ips = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number}"))
    return PolicyPort(f"g{number}", "net", f"02:00:00:00:00:{number:02x}", ips, groups, **more)


def policy(*rules, acls=(), ports=None, groups=()):
    """g1 carries the rules; g2 and g3 may send anything; nobody owns 10.0.0.4 and up."""
    found = (Group("web", (OUT, *rules)), Group("any", (replace(OUT, id="any"),)), *groups)
    return Policy(found, ports or (port(1, ("web",)), port(2), port(3)), acls=acls)


def made(made_policy):
    return cover(made_policy, Evaluator(made_policy))


def of(found, label):
    return [scenario for scenario in found.scenarios if label in scenario.covers]


def web(**more):
    return GroupRule("r", Way.INGRESS, (4,), **{"protocol": TCP, "ports": (80, 80), **more})


def test_a_permitted_unit_is_a_conversation_of_three():
    (scenario,) = of(made(policy(web())), "r")
    assert [step.state for step in scenario.steps] == [ConnState.NEW, ConnState.REPLY, ConnState.ESTABLISHED]
    assert [step.is_forward for step in scenario.steps] == [True, False, True]
    assert [step.packet.text().split()[1] for step in scenario.steps] == ["syn", "syn-ack", "ack"]
    assert all(step.expected.is_allowed for step in scenario.steps)
    assert scenario.steps[0].packet.src_port is None  # each attempt has its own


@pytest.mark.parametrize(
    ("label", "protocol", "dport"), [("port-1", TCP, 79), ("port+1", TCP, 81), ("protocol", UDP, 80)]
)
def test_both_sides_of_a_port_and_the_other_protocol_are_tried(label, protocol, dport):
    (scenario,) = of(made(policy(web())), f"r:{label}")
    packet = scenario.steps[0].packet
    assert (packet.protocol, packet.dst_port, scenario.dst) == (protocol, dport, "g1")
    assert not scenario.steps[0].expected.is_allowed


def test_each_mask_of_a_range_has_a_probe_within_it():
    found = made(policy(web(ports=(1000, 1010))))
    for value, mask in range_masks(1000, 1010):
        (scenario,) = of(found, f"r:mask {value:#06x}/{mask:#06x}")
        assert scenario.steps[0].packet.dst_port & mask == value


def test_the_widest_range_has_a_probe_a_mask_and_no_boundary_that_does_not_exist():
    found = made(policy(web(ports=(0, 65535))))
    assert len(of(found, "r")) == 1
    assert not of(found, "r:port-1") + of(found, "r:port+1")


def test_every_member_of_a_remote_group_is_tried_and_one_who_is_none():
    rule = web(ports=(80, 80), protocol=TCP, remote_group="peers")
    ports = (port(1, ("web",)), port(2, ("any", "peers")), port(3, ("any", "peers")), port(4))
    found = made(policy(rule, ports=ports, groups=(Group("peers", ()),)))
    assert {s.src for label in ("r:from g2", "r:from g3") for s in of(found, label)} == {"g2", "g3"}
    (outside,) = of(found, "r:outside")
    assert (outside.src, outside.steps[0].expected.is_allowed) == ("g4", False)


def test_prefix_edges_are_tried_by_whoever_may_use_them():
    rule = web(remote_prefix=ip_network("10.0.0.128/30"))
    nobody = made(policy(rule))
    assert ("r", "no port may send from such an address (at g1)") in nobody.unproven
    wild = made(policy(rule, ports=(port(1, ("web",)), port(2), port(3, has_port_security=False))))
    sources = {
        label: str(of(wild, f"r:{label}")[0].steps[0].packet.src_ip)
        for label in ("first address", "last address", "address before", "address after")
    }
    assert list(sources.values()) == ["10.0.0.128", "10.0.0.131", "10.0.0.127", "10.0.0.132"]


def test_the_address_of_another_port_is_never_a_decoy():
    rule = web(remote_prefix=ip_network("10.0.0.2/32"))
    ports = (port(1, ("web",)), port(2), port(3, has_port_security=False))
    owners = {str(ip): p.name for p in ports for ip in p.ips}
    for scenario in made(policy(rule, ports=ports)).scenarios:
        for step in scenario.steps:
            sender = scenario.src if step.is_forward else scenario.dst
            assert owners.get(str(step.packet.src_ip), sender) == sender


def test_an_icmp_rule_is_told_from_other_queries_and_codes():
    found = made(policy(web(protocol=ICMP, ports=None, icmp_type=8, icmp_code=0)))
    assert of(found, "r")[0].steps[1].packet.icmp_type == 0
    assert of(found, "r:code+1")[0].steps[0].packet.icmp_code == 1
    assert of(found, "r:other type")[0].steps[0].packet.icmp_type == 13


def test_a_redundant_rule_is_probed_and_said_to_be_so():
    found = made(policy(web(), replace(web(), id="wide", ports=None)))
    assert of(found, "r")
    assert [rule for rule, _ in found.shadowed] == ["r"]


def test_an_acl_that_shadows_a_rule_is_tried_where_the_rule_would_let_pass():
    acl = NetworkAcl("no", Way.INGRESS, 1500, Action.REJECT, (AclMatch((4,), TCP),), network="net")
    found = made(policy(web(), acls=(acl,)))
    scenario = next(s for s in of(found, "no") if s.dst == "g1")
    assert scenario.steps[0].packet.dst_port == 80
    assert scenario.steps[0].expected.is_rejected
    assert dict(found.shadowed)["r"].startswith("acl no")


def test_a_rule_that_nobody_carries_and_one_that_nobody_may_meet_are_said():
    idle = Group("idle", (replace(web(), id="i"),))
    strict = policy(web(), groups=(idle,), ports=(port(1, ("web",)), port(2, ("web",))))
    strict = replace(strict, groups=(Group("web", (web(),)), idle))
    found = made(strict)
    assert dict(found.shadowed)["i"] == "no port has the group idle"
    assert dict(found.unreachable)["r"].startswith(WRONG_STAGE)


def test_answers_errors_and_fragments_are_tried_once_a_port_and_family():
    found = made(policy(web(protocol=UDP), replace(web(), id="t")))
    related = next(s for s in found.scenarios if " related v4" in s.key)
    assert [step.state for step in related.steps] == [ConnState.NEW, ConnState.RELATED]
    assert related.steps[1].packet.quoted == related.steps[0].packet
    assert related.steps[1].expected.is_allowed
    fragments = next(s for s in found.scenarios if s.key.endswith(" fragments v4"))
    assert [step.packet.fragment for step in fragments.steps] == [Fragment.FIRST, Fragment.LATER]
    dropped = next(s for s in found.scenarios if "fragments of what is dropped v4" in s.key)
    assert [step.expected.is_allowed for step in dropped.steps] == [False, False]
    for word in ("unsolicited syn-ack", "unsolicited error", "unsolicited answer", "lone ack"):
        scenario = next(s for s in found.scenarios if f" {word} v4" in s.key)
        assert not scenario.steps[0].expected.is_allowed


def test_anti_spoofing_is_tried_with_addresses_that_are_nobodys():
    pair = AddressPair(ip_network("10.0.0.64/30"), "02:00:00:00:00:aa")
    ports = (port(1, ("web",), allowed_pairs=(pair,)), port(2), port(3, has_port_security=False))
    found = made(policy(web(), ports=ports))
    outcomes = {
        s.key.split(" ", 1)[1]: s.steps[0].expected.is_allowed for s in found.scenarios if s.key.startswith("g1>g")
    }
    for word in ("foreign mac v4", "foreign ip v6", "arp foreign ip v4", "arp foreign mac v4", "dhcp server v4"):
        assert outcomes[word] is False
    for word in ("router advertisement v6", "neighbour advertisement foreign target v6", "pair 0 with own mac v4"):
        assert outcomes[word] is False
    for word in ("pair 0 v4", "arp v4", "neighbour advertisement v6"):
        assert outcomes[word] is True


def test_every_port_hears_neighbours_servers_and_routers_from_who_may_play_one():
    found = made(policy(web(), ports=(port(1, ("web",)), port(2), port(3, has_port_security=False))))
    keys = {scenario.key: scenario.steps[0].expected.is_allowed for scenario in found.scenarios}
    for word in ("dhcp answer v4", "dhcp answer v6", "arp heard v4", "router advertisement heard v6"):
        assert keys[f"g3>g1 {word}"]
        assert keys[f"g3>g2 {word}"]


def test_what_depends_on_the_port_that_an_attempt_chooses_is_left_out_and_said():
    within = AclMatch((4,), TCP, src_ports=(62000, 65535), dst_ports=(80, 80))
    acl = NetworkAcl("half", Way.INGRESS, 1500, Action.DROP, (within,), network="net")
    found = made(policy(web(), acls=(acl,)))
    assert dict(found.unproven)["r"].startswith("its outcome depends on the source port")
    assert {s.steps[0].packet.src_port for s in of(found, "half:first source port")} == {62000}


def test_of_a_rule_with_many_members_and_masks_ports_share_the_pairs():
    peers = [port(number, ("peers", "any")) for number in range(50, 110)]
    webs = [port(number, ("web",)) for number in range(1, 31)]
    rule = web(ports=(1, 65534), remote_group="peers")
    found = made(policy(rule, ports=(*webs, *peers), groups=(Group("peers", ()),)))
    units = [(s.dst, label) for s in found.scenarios for label in s.covers if label.startswith("r:mask")]
    for name in ("g1", "g7"):
        labels = [label.split(" from ") for dst, label in units if dst == name and " from " in label]
        assert len({mask for mask, _ in labels}) == 30
        assert len({member for _, member in labels}) == 60
        assert len(labels) < 100
    assert len({label for _, label in units if " from " in label}) > 1500


def test_keys_are_unique_and_the_same_wherever_the_network_is():
    def moved(found):
        def ip(each):
            return type(each)(int(each) + (1 << 16))

        return replace(found, ports=tuple(replace(p, ips=tuple(map(ip, p.ips))) for p in found.ports))

    base = policy(web(remote_group="any"), replace(web(), id="u", protocol=UDP, ports=(53, 60)))
    keys = [scenario.key for scenario in made(base).scenarios]
    assert len(set(keys)) == len(keys)
    assert keys == [scenario.key for scenario in made(moved(base)).scenarios]
    assert not [key for key in keys if "10.0" in key or "fd00" in key]


def test_scenarios_are_numbered_and_the_same_each_time():
    one, other = made(policy(web())), made(policy(web()))
    assert one == other
    assert [scenario.number for scenario in one.scenarios] == list(range(len(one.scenarios)))


def test_the_bound_is_below_and_the_naive_number_far_above():
    found = made(policy(web()))
    assert 0 < found.lower_bound <= len(found.scenarios) < found.naive
    assert found.naive == 2 * 6 * (65536 + 65536 + 256)
