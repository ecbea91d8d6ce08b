"""Our reading of OVN's match expressions against OVN's own: random ones, and packets through ovn-trace.

Only databases and northd run, in a folder: no root, no namespace, no switch.
"""

import random
import shutil
from ipaddress import ip_address

import pytest
from support.ovn_oracle import ovn_oracle

from netprobe.host.ovn_policy import read_northbound
from netprobe.model.packets import Packet
from netprobe.model.policy import Way
from netprobe.model.rule_lists import RuleLists
from netprobe.plan.policy_ovn import policy_from_northbound

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("ovn-northd") is None, reason="needs OVN")]

EXPRESSIONS, PACKETS = 30, 10
ATOMS = (
    *("ip4", "ip6", "ip", "tcp", "udp", "icmp", "icmp4", "icmp6", "1", 'outport == "b"', 'outport == {"a", "b"}'),
    *(
        "tcp.dst == 80",
        "80 <= tcp.dst <= 90",
        "tcp.dst != 80",
        "!(tcp.dst == {22, 80})",
        "udp.dst > 90",
        "tcp.src < 1024",
    ),
    *(
        "tcp.dst == 0x50/0xfff0",
        "udp.dst == {53, 80, 90}",
        "90 >= udp.dst",
        "!(80 <= tcp.dst <= 90)",
        "ip.proto == 132",
    ),
    *("ip4.src == 10.0.0.0/24", "ip4.dst != 10.0.0.0/25", "ip4.src == {10.0.0.1, 10.0.1.0/24}", "ip6.src == fd00::/64"),
    *("ip6.dst == {fd00::1, fd01::/16}", "icmp4.type == 8", "icmp6.type == {128, 129}", "icmp4.code == 0", "sctp"),
    *("eth.type == 0x800", "ip.proto == {6, 17}", "ip4.src <= 10.0.0.1", "!(ip4.src == 10.0.0.0/31)"),
)
V4, V6 = (
    ("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.200", "10.0.1.9"),
    ("fd00::1", "fd00::1:0:0:0:1", "fd01::9", "fe00::1"),
)
PORTS = (21, 22, 53, 79, 80, 81, 90, 91, 95, 96, 1023, 1024, 40000)


def expression(chosen, depth=0):
    """A random expression that OVN takes."""
    if depth == 3 or chosen.random() < 0.35:
        return chosen.choice(ATOMS)
    operator = chosen.choice((" && ", " || "))
    return operator.join(f"({expression(chosen, depth + 1)})" for _ in range(chosen.randint(2, 3)))


def packet(chosen):
    """A random packet, and OVN's words for it."""
    family = chosen.choice((4, 6))
    src, dst = (chosen.choice(V4 if family == 4 else V6) for _ in range(2))
    words = [f"ip{family}.src == {src}", f"ip{family}.dst == {dst}"]
    protocol = chosen.choice((1 if family == 4 else 58, 6, 17, 132, 47))
    made = {"protocol": protocol, "src_port": 0, "dst_port": 0}
    if protocol in (6, 17, 132):
        name = {6: "tcp", 17: "udp", 132: "sctp"}[protocol]
        made |= {"src_port": chosen.choice(PORTS), "dst_port": chosen.choice(PORTS)}
        words += [f"{name}.src == {made['src_port']}", f"{name}.dst == {made['dst_port']}"]
    elif protocol == 47:
        words.append("ip.proto == 47")
    else:
        made |= {"icmp_type": chosen.choice((0, 8) if family == 4 else (128, 129)), "icmp_code": chosen.choice((0, 1))}
        words += [f"icmp{family}.{key} == {made[f'icmp_{key}']}" for key in ("type", "code")]
    return Packet("", "", ip_address(src), ip_address(dst), **made), " && ".join(words)


def test_our_reading_of_expressions_is_ovns(tmp_path):
    """Random expressions and packets; each is asked of both."""
    chosen = random.Random(4)
    wrong, matched, asked = [], 0, 0
    with ovn_oracle(tmp_path) as oracle:
        for _ in range(EXPRESSIONS):
            match = expression(chosen)
            oracle.set_acl(match)
            policy = policy_from_northbound(read_northbound(oracle.remote), "nb")
            assert all("not IP" in remark for remark in policy.remarks), policy.remarks
            rules = RuleLists(policy)
            entries = [e for p in policy.ports if p.name == "b" for e in rules.at(p).entries[Way.INGRESS]]
            for _ in range(PACKETS):
                one, words = packet(chosen)
                is_dropped = any(
                    e.fits(one, is_tracked=True) and e.is_between(int(one.src_ip), int(one.dst_ip)) for e in entries
                )
                if is_dropped == oracle.passes(words):
                    wrong.append((match, words, is_dropped))
                matched, asked = matched + is_dropped, asked + 1
    assert wrong == []
    assert asked == EXPRESSIONS * PACKETS
    assert asked / 10 < matched < asked * 9 / 10, f"{matched} of {asked} matched: it proves little"
