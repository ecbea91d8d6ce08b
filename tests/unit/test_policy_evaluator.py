"""The reference evaluator by example: each sentence of the policy's semantics."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from netprobe.judge.evaluator import Evaluator, evaluate
from netprobe.model.packets import ACK, RST, SYN, ConnState, Fragment, Kind, Neighbour, Packet, Stage
from netprobe.model.policy import (
    ICMP,
    ICMPV6,
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

NEW, EST, REPLY = ConnState.NEW, ConnState.ESTABLISHED, ConnState.REPLY
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
OUT = GroupRule("out", Way.EGRESS, (4, 6))


def port(name, number, mac, **more):
    ips = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number}"))
    return PolicyPort(name, "net", mac, ips, **{"groups": ("web",), **more})


def policy(*rules, acls=(), is_stateful=True, **of_b):
    group = Group("web", (OUT, *rules), is_stateful=is_stateful)
    return Policy((group,), (port("a", 1, A), port("b", 2, B, **of_b)), acls=acls)


def tcp(dport=80, flags=SYN, **more):
    return Packet(A, B, ip_address("10.0.0.1"), ip_address("10.0.0.2"), TCP, 61000, dport, tcp_flags=flags, **more)


def asked(made, packet, state=NEW, src="a", dst="b"):
    return evaluate(made, packet, src, dst, state)


WEB = GroupRule("web", Way.INGRESS, (4,), TCP, (80, 81))
PING = GroupRule("ping", Way.INGRESS, (4, 6), ICMP, icmp_type=8)


def test_a_rule_lets_pass_what_it_names_and_says_so():
    decision = asked(policy(WEB), tcp(81))
    assert decision.is_allowed
    assert [(str(c.point), c.rule) for c in decision.checks] == [
        ("a anti-spoofing", "anti-spoofing"),
        ("a egress", "out"),
        ("b ingress", "web"),
    ]
    assert decision.checks[2].text == "web: ingress ipv4 tcp dport 80-81 from any"


@pytest.mark.parametrize("packet", [tcp(79), tcp(82), replace(tcp(80), protocol=UDP)])
def test_what_no_rule_names_is_dropped_at_the_receiver(packet):
    decision = asked(policy(WEB), packet)
    assert (decision.is_allowed, str(decision.point), decision.checks[-1].rule) == (False, "b ingress", "default deny")


def test_what_may_not_leave_is_dropped_at_the_sender():
    made = Policy((Group("web", (WEB,)),), (port("a", 1, A), port("b", 2, B)))
    assert str(asked(made, tcp()).point) == "a egress"


@pytest.mark.parametrize(
    ("packet", "rule"),
    [
        (replace(tcp(), src_mac="02:00:00:00:00:99"), "anti-spoofing"),
        (replace(tcp(), src_ip=ip_address("10.0.0.9")), "anti-spoofing"),
        (replace(tcp(), protocol=UDP, src_port=67, dst_port=68), "dhcp"),
    ],
)
def test_a_guest_sends_neither_from_other_addresses_nor_as_a_dhcp_server(packet, rule):
    decision = asked(policy(WEB), packet)
    assert (decision.is_allowed, decision.point.stage, decision.checks[0].rule) == (False, Stage.ANTI_SPOOFING, rule)


def test_an_allowed_pair_may_be_used_with_its_own_mac_only():
    pair = AddressPair(ip_network("10.0.0.64/30"), "02:00:00:00:00:aa")
    base = policy(WEB)
    made = replace(base, ports=(replace(base.ports[0], allowed_pairs=(pair,)), base.ports[1]))
    foreign = replace(tcp(), src_ip=ip_address("10.0.0.65"))
    assert not asked(made, foreign).is_allowed
    assert asked(made, replace(foreign, src_mac=pair.mac)).is_allowed


def test_a_dhcp_client_passes_without_a_rule_until_the_receivers_rules():
    made = Policy((Group("web", ()),), (port("a", 1, A), port("b", 2, B)))
    decision = asked(made, replace(tcp(), protocol=UDP, src_port=68, dst_port=67))
    assert [c.rule for c in decision.checks] == ["dhcp", "dhcp", "default deny"]


def arp(mac=A, ip="10.0.0.1"):
    body = Neighbour(mac, ip_address(ip), ip_address("10.0.0.2"))
    return Packet(A, B, body.ip, body.target, 0, kind=Kind.ARP, neighbour=body)


def nd(icmp_type, ip, mac=A, src="fd00::1"):
    body = Neighbour(mac, ip_address(ip))
    return Packet(
        A, B, ip_address(src), ip_address("fd00::2"), ICMPV6, icmp_type=icmp_type, kind=Kind.ND, neighbour=body
    )


@pytest.mark.parametrize(
    ("packet", "is_allowed"),
    [
        (arp(), True),
        (arp(ip="10.0.0.9"), False),
        (arp(mac="02:00:00:00:00:99"), False),
        (nd(136, "fd00::1"), True),
        (nd(136, "fd00::9"), False),
        (nd(136, "fd00::1", mac="02:00:00:00:00:99"), False),
        (nd(135, "fd00::2"), True),
        (nd(135, "fd00::1", src="::", mac=""), True),
        (nd(136, "fe80::ff:fe00:a", src="fe80::ff:fe00:a"), True),
        (nd(135, "fd00::2", src="fd00::9"), False),
        (nd(134, "fd00::1"), False),
    ],
)
def test_arp_and_neighbour_discovery_pass_without_rules_with_own_addresses_only(packet, is_allowed):
    made = Policy((Group("web", ()),), (port("a", 1, A), port("b", 2, B)))
    decision = asked(made, packet)
    assert decision.is_allowed is is_allowed
    assert is_allowed or decision.point.stage is Stage.ANTI_SPOOFING


def test_without_port_security_a_port_sends_and_receives_anything():
    made = policy(has_port_security=False)
    assert asked(made, tcp()).is_allowed
    back = replace(tcp().reversed(), src_ip=ip_address("10.9.9.9"), src_mac="02:00:00:00:00:99")
    decision = asked(made, back, src="b", dst="a")
    assert [c.rule for c in decision.checks] == ["no port security", "default deny"]


@pytest.mark.parametrize(
    ("state", "is_allowed"), [(NEW, False), (EST, False), (REPLY, True), (ConnState.RELATED, True)]
)
def test_answers_and_errors_of_a_connection_pass_whatever_rules_say_and_nothing_else_does(state, is_allowed):
    assert asked(policy(), tcp(61000, ACK), state).is_allowed is is_allowed


@pytest.mark.parametrize("is_stateful", [True, False])
def test_only_a_stateful_port_drops_what_is_invalid(is_stateful):
    decision = asked(policy(WEB, is_stateful=is_stateful), tcp(80, RST), ConnState.INVALID)
    assert decision.is_allowed is not is_stateful
    assert decision.checks[-1].rule == ("invalid" if is_stateful else "web")


def test_at_a_stateless_port_an_answer_needs_a_rule():
    assert not asked(policy(WEB, is_stateful=False), tcp(61000, SYN | ACK), REPLY).is_allowed


def test_later_fragments_are_part_of_their_datagram_only_where_conntrack_puts_it_together():
    later = replace(tcp(), fragment=Fragment.LATER)
    assert asked(policy(WEB), later).is_allowed
    assert not asked(policy(WEB, is_stateful=False), later).is_allowed


def acl(action, priority, *, way=Way.INGRESS, id_="acl", **match):
    return NetworkAcl(id_, way, priority, action, (AclMatch(**match),), network="net")


def test_acls_and_rules_are_one_list_by_priority():
    above, below = acl(Action.DROP, 1003, protocol=TCP), acl(Action.DROP, 1001, protocol=TCP)
    assert asked(policy(WEB, acls=(above,)), tcp()).checks[-1].rule == "acl"
    assert asked(policy(WEB, acls=(below,)), tcp()).checks[-1].rule == "web"


def test_of_equal_priority_a_drop_comes_first():
    made = policy(acls=(acl(Action.ALLOW, 1500, id_="yes"), acl(Action.REJECT, 1500, id_="no", protocol=TCP)))
    decision = asked(made, tcp())
    assert (decision.is_allowed, decision.is_rejected, decision.checks[-1].rule) == (False, True, "no")
    assert asked(made, replace(tcp(), protocol=UDP)).is_allowed


def test_an_allow_below_the_default_deny_lets_nothing_pass():
    assert asked(policy(acls=(acl(Action.ALLOW, 1000),)), tcp()).checks[-1].rule == "default deny"


def test_an_answer_to_what_passed_untracked_is_a_packet_like_any_other():
    stateless = acl(Action.ALLOW_STATELESS, 1500, way=Way.EGRESS)
    made = policy(acls=(stateless,))
    answer = tcp(flags=SYN | ACK).reversed()
    assert asked(made, answer, REPLY, src="b", dst="a").checks[-1].rule == "invalid"
    answer = replace(answer, protocol=UDP, tcp_flags=0)
    assert asked(made, answer, REPLY, src="b", dst="a").checks[-1].rule == "default deny"


def test_bare_acls_have_no_default_deny_and_hold_without_port_security():
    made = Policy(
        (),
        (port("a", 1, A, groups=()), port("b", 2, B, groups=(), has_port_security=False)),
        acls=(acl(Action.DROP, 10, protocol=TCP),),
        has_default_deny=False,
    )
    assert asked(made, tcp()).checks[-1].rule == "acl"
    decision = asked(made, replace(tcp(), protocol=UDP))
    assert [c.rule for c in decision.checks] == ["anti-spoofing", "default allow", "default allow"]


@pytest.mark.parametrize(
    ("family", "icmp_type", "is_allowed"), [(4, 8, True), (6, 128, False), (6, 8, True), (4, 13, False)]
)
def test_an_icmp_rule_is_about_the_icmp_of_the_packets_family(family, icmp_type, is_allowed):
    src, dst = (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2"))[family == 6]
    protocol = ICMP if family == 4 else ICMPV6
    packet = Packet(A, B, ip_address(src), ip_address(dst), protocol, icmp_type=icmp_type)
    assert asked(policy(PING), packet).is_allowed is is_allowed


def test_a_remote_group_is_its_members_addresses_and_pairs():
    pair = AddressPair(ip_network("10.0.0.64/30"))
    rule = GroupRule("r", Way.INGRESS, (4,), remote_group="web")
    base = policy(rule)
    made = replace(base, ports=(replace(base.ports[0], allowed_pairs=(pair,)), base.ports[1]))
    assert asked(made, tcp()).is_allowed
    assert asked(made, replace(tcp(), src_ip=ip_address("10.0.0.66"))).is_allowed
    outside = replace(made, ports=(replace(made.ports[0], groups=("eg",)), made.ports[1]))
    outside = replace(outside, groups=(*made.groups, Group("eg", (OUT,))))
    assert not asked(outside, tcp()).is_allowed


def test_a_port_that_is_left_open_is_within_a_range_that_holds_all_that_may_be_chosen():
    for ports, is_allowed in (((60000, 65535), True), ((61001, 65535), False)):
        made = policy(GroupRule("r", Way.INGRESS, (4,), TCP, ports), is_stateful=False)
        assert asked(made, tcp(None)).is_allowed is is_allowed


def test_decisions_are_made_once():
    evaluator = Evaluator(policy(WEB))
    assert evaluator.decide(tcp(80), "a", "b", NEW) is evaluator.decide(tcp(81), "a", "b", NEW)
