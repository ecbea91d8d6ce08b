"""What iptables does with a packet: a rule text as iptables-save 1.8.9 printed it, and each verdict as the kernel's."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from netprobe.judge.ebtables import evaluate_frame, parse_ebtables
from netprobe.judge.iptables import evaluate
from netprobe.judge.iptables_conditions import Crossing
from netprobe.judge.iptables_rules import RulesTextError, parse_rules, parse_sets
from netprobe.model.packets import ACK, SYN, ConnState, Kind, Neighbour, Packet

DATA = Path(__file__).parent / "data"
RULES = parse_rules((DATA / "iptables_hybrid.txt").read_text())
SETS = parse_sets((DATA / "ipset_hybrid.txt").read_text())
MAC_A, MAC_B = "fa:16:3e:00:01:11", "fa:16:3e:00:01:12"
OUT_OF_A = Crossing("qbra", "tapa", "qvba")
INTO_B = Crossing("qbrb", "qvbb", "tapb")
INTO_Z = Crossing("qbrz", "qvbz", "tapz")
OUT_OF_B = Crossing("qbrb", "tapb", "qvbb")
PACKET = Packet(MAC_A, MAC_B, ip_address("10.0.1.11"), ip_address("10.0.1.12"), 6, 61000, 80, tcp_flags=SYN)
CHAIN = "neutron-openvswi-"


def verdict(at, state=ConnState.NEW, **changes):
    return evaluate(RULES, SETS, replace(PACKET, **changes), state, at)


def test_all_of_a_real_text_is_known():
    assert all(c.text for rule in RULES.rules for c in rule.conditions)
    assert [chain.policy for chain in RULES.tables["filter"].values()][:3] == ["ACCEPT", "ACCEPT", "ACCEPT"]
    assert len(list(RULES.rules)) == 47
    assert SETS["NIPv4sg1"].kind == "hash:net"


@pytest.mark.parametrize(
    ("changes", "is_allowed"),
    [
        ({}, True),
        ({"dst_port": 79}, False),
        ({"dst_port": 81}, False),
        ({"dst_port": 22}, True),
        ({"dst_port": 8000}, True),
        ({"dst_port": 8007}, True),
        ({"dst_port": 7999}, False),
        ({"dst_port": 8008}, False),
        ({"dst_port": 22, "src_ip": ip_address("10.0.2.6")}, True),
        ({"dst_port": 22, "src_ip": ip_address("10.0.2.7")}, False),  # nomatch
        ({"dst_port": 22, "src_ip": ip_address("10.0.1.10")}, False),
        ({"protocol": 1, "icmp_type": 8, "tcp_flags": 0}, True),
        ({"protocol": 1, "icmp_type": 0, "tcp_flags": 0}, False),
        ({"protocol": 17, "dst_port": 5000}, True),
        ({"protocol": 17, "dst_port": 5010}, False),
        ({"protocol": 132, "dst_port": 99}, True),
        ({"protocol": 47}, True),
        ({"protocol": 50}, False),
        ({"protocol": 17, "src_port": 67, "dst_port": 68}, True),
    ],
)
def test_what_comes_in_is_judged_by_the_targets_chain(changes, is_allowed):
    found = verdict(INTO_B, **changes)
    assert (found.is_allowed, found.unknown, found.zone) == (is_allowed, "", 4098)
    assert found.deciding.chain == f"{CHAIN}ib"


@pytest.mark.parametrize(
    ("changes", "is_allowed", "chain"),
    [
        ({}, True, "oa"),
        ({"src_mac": MAC_B}, False, "sa"),
        ({"src_ip": ip_address("10.0.1.99")}, False, "sa"),
        ({"protocol": 17, "src_port": 68, "dst_port": 67, "src_ip": ip_address("0.0.0.0")}, True, "oa"),
        ({"protocol": 17, "src_port": 67, "dst_port": 68}, False, "oa"),
    ],
)
def test_what_goes_out_is_judged_by_the_senders_chains(changes, is_allowed, chain):
    found = verdict(OUT_OF_A, **changes)
    assert (found.is_allowed, found.zone, found.deciding.chain) == (is_allowed, 4097, CHAIN + chain)


def test_flags_and_negation_are_read():
    sender = {"src_mac": MAC_B, "src_ip": ip_address("10.0.1.12")}
    assert verdict(OUT_OF_B, **sender).is_allowed is True
    assert verdict(OUT_OF_B, tcp_flags=SYN | ACK, **sender).is_allowed is False
    assert verdict(OUT_OF_B, dst_ip=ip_address("10.0.9.5"), **sender).is_allowed is False


@pytest.mark.parametrize(
    ("state", "is_allowed"),
    [(ConnState.ESTABLISHED, True), (ConnState.REPLY, True), (ConnState.RELATED, True), (ConnState.INVALID, False)],
)
def test_the_state_of_the_connection_decides_before_ports(state, is_allowed):
    assert verdict(INTO_B, state, dst_port=81).is_allowed is is_allowed


def test_the_comment_of_the_deciding_rule_and_its_number_are_kept():
    found = verdict(INTO_B, dst_port=22)
    assert (found.deciding.comment, found.deciding.number) == ("web[0]", 3)
    assert found.rule.target == "ACCEPT"
    denied = verdict(INTO_B, dst_port=81)
    assert denied.rule.comment == "Default drop rule for unmatched traffic."
    assert denied.deciding.target == "neutron-openvswi-sg-fallback"


def text_with(rule, policy="ACCEPT"):
    return f"*filter\n:FORWARD {policy} [0:0]\n:other - [0:0]\n{rule}\nCOMMIT\n"


def judged(text, packet=PACKET, state=ConnState.NEW):
    return evaluate(parse_rules(text), SETS, packet, state, INTO_B)


@pytest.mark.parametrize(
    ("rule", "unknown"),
    [
        ("-A FORWARD -m owner --uid-owner 0 -j DROP", "-m owner"),
        ("-A FORWARD -p tcp --frobnicate 1 2 -j ACCEPT", "--frobnicate 1 2"),
        ("-A FORWARD -m set --match-set nobody src -j DROP", "--match-set nobody src"),
        ("-A FORWARD -m set --match-set NIPv4sg1 src,dst -j DROP", "--match-set NIPv4sg1 src,dst"),
        ("-A FORWARD -m conntrack --ctstate SNAT -j DROP", "--ctstate SNAT"),
        ("-A FORWARD -p tcp --dport eighty -j DROP", "--dport eighty"),
        ("-A FORWARD -j nowhere", "-j nowhere"),
        ("-A FORWARD -j NFQUEUE --queue-num 1", "-j NFQUEUE"),
    ],
)
def test_what_is_not_known_makes_the_answer_unknown_and_is_named(rule, unknown):
    found = judged(text_with(rule))
    assert (found.is_allowed, found.unknown) == (None, unknown)


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -p udp -m owner --uid-owner 0 -j DROP",  # does not match whatever its owner is
        "-A FORWARD -m owner --uid-owner 0 -j LOG",  # decides nothing
    ],
)
def test_an_unknown_condition_does_no_harm_where_it_cannot_decide(rule):
    assert judged(text_with(rule)).is_allowed is True


def test_a_chains_policy_decides_where_no_rule_does():
    found = judged(text_with("-A FORWARD -p udp -j ACCEPT", "DROP"))
    assert (found.is_allowed, found.chain, found.rule) == (False, "FORWARD", None)
    assert judged("").is_allowed is True


def test_chains_that_call_each_other_come_to_an_end():
    assert judged(text_with("-A FORWARD -j other\n-A other -j FORWARD")).is_allowed is None


def test_goto_returns_to_the_callers_caller():
    assert judged(text_with("-A FORWARD -g other\n-A FORWARD -j DROP")).is_allowed is True


def test_reject_drops_and_tells_the_sender():
    found = judged(text_with("-A FORWARD -p tcp -j REJECT --reject-with tcp-reset"))
    assert (found.is_allowed, found.is_rejected) == (False, True)


def test_untracked_packets_have_no_connection():
    raw = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j CT --notrack\nCOMMIT\n"
    drops = text_with("-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED,INVALID,RELATED -j DROP")
    assert judged(raw + drops).is_allowed is True
    assert judged(drops).is_allowed is False


def test_neighbour_discovery_is_never_tracked():
    drops = text_with("-A FORWARD -m state --state INVALID,NEW -j DROP")
    v6 = replace(PACKET, src_ip=ip_address("fe80::1"), dst_ip=ip_address("ff02::1"), protocol=58)
    assert judged(drops, replace(v6, icmp_type=135)).is_allowed is True
    assert judged(drops, replace(v6, icmp_type=128)).is_allowed is False


def test_counters_are_read_and_may_be_missing():
    text = "*filter\n:FORWARD ACCEPT [7:70]\n[5:300] -A FORWARD -p tcp -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n"
    rules = list(parse_rules(text).rules)
    assert [(rule.packets, rule.octets) for rule in rules] == [(5, 300), (0, 0)]
    assert rules[0].text == "-A FORWARD -p tcp -j ACCEPT"


@pytest.mark.parametrize(
    "text",
    [
        "-A FORWARD -j DROP\n",
        "*filter\n-A FORWARD -j DROP\nCOMMIT\n",
        '*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment "no end -j DROP\nCOMMIT\n',
        "*filter\n:FORWARD ACCEPT [0:0]\n-D FORWARD -j DROP\nCOMMIT\n",
        "iptables: command not found",
    ],
)
def test_a_text_that_is_no_rule_set_is_refused_and_says_the_line(text):
    with pytest.raises(RulesTextError, match="line "):
        parse_rules(text)


@pytest.mark.parametrize("text", ["add nobody 10.0.0.1", "create s hash:net\nadd s ten", "ipset v7.17: error"])
def test_a_text_that_is_no_ipset_save_is_refused(text):
    with pytest.raises(RulesTextError, match="ipset, line"):
        parse_sets(text)


def test_ranges_of_addresses_are_members():
    sets = parse_sets("create s hash:ip family inet\nadd s 10.0.0.1-10.0.0.3\n")
    assert sets["s"].holds(replace(PACKET, src_ip=ip_address("10.0.0.2")), "src") is True
    assert sets["s"].holds(replace(PACKET, src_ip=ip_address("10.0.0.4")), "src") is False


FRAMES = parse_ebtables((DATA / "ebtables_hybrid.txt").read_text())


def arp(spa, sender=MAC_A, **changes):
    body = Neighbour(sender, ip_address(spa), ip_address("10.0.1.12"))
    asked = replace(PACKET, protocol=0, kind=Kind.ARP, neighbour=body, dst_mac="ff:ff:ff:ff:ff:ff")
    return replace(asked, **changes)


@pytest.mark.parametrize(
    ("packet", "at", "is_allowed"),
    [
        (arp("10.0.1.11"), OUT_OF_A, True),
        (arp("10.0.1.12"), OUT_OF_A, False),
        (arp("10.0.1.11", MAC_B), OUT_OF_A, False),
        (arp("10.0.1.12", MAC_B, src_mac=MAC_B), OUT_OF_B, True),
        (arp("10.0.1.11", MAC_B, src_mac=MAC_B), OUT_OF_B, False),
        (arp("10.0.1.12", MAC_B), OUT_OF_B, False),
        (arp("10.0.1.9"), INTO_Z, False),
        (arp("10.0.1.9", dst_mac=MAC_B), INTO_Z, True),
        (PACKET, OUT_OF_A, True),
    ],
)
def test_arp_is_judged_by_ebtables(packet, at, is_allowed):
    found = evaluate_frame(FRAMES, packet, at)
    assert (found.is_allowed, found.unknown) == (is_allowed, "")
