"""OVN's match expressions: what they match, and what is said of those that a policy has no word for."""

import pytest

from netprobe.model.policy import AclMatch
from netprobe.plan.ovn_expression import Comparison, ExpressionError, Junction, parse_expression
from netprobe.plan.ovn_terms import Names, terms_of
from netprobe.plan.policy_ovn import _acl_matches as matches_of

NAMES = Names(
    "outport",
    {"pg": frozenset({"a", "b"}), "other": frozenset({"c"}), "none": frozenset()},
    {"as4": ("10.0.0.1", "10.0.1.0/24"), "as6": ("fd00::1",), "empty": (), "mixed": ("10.0.0.1", "fd00::1")},
)


def matches(text):
    found = []
    for term in terms_of(text, NAMES):
        assert not term.unknown
        found += matches_of(term)
    return found


def shown(text):
    """Matches in short: families protocol sources>destinations sport>dport type/code."""
    return [
        " ".join(
            [
                "".join(map(str, m.families)),
                str(m.protocol or "any"),
                f"{','.join(map(str, m.sources))}>{','.join(map(str, m.destinations))}",
                f"{m.src_ports or ''}>{m.dst_ports or ''}",
                f"{m.icmp_type}/{m.icmp_code}",
            ]
        )
        for m in matches(text)
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", ["46 any > > None/None"]),
        ("0", []),
        ("ip", ["46 any > > None/None"]),
        ("ip4", ["4 any > > None/None"]),
        ("ip6 // all of it", ["6 any > > None/None"]),
        ("/* well */ ip4", ["4 any > > None/None"]),
        ("eth.type == 0x86dd", ["6 any > > None/None"]),
        ("tcp", ["46 6 > > None/None"]),
        ("ip4 && ip.proto == 132", ["4 132 > > None/None"]),
        ("ip.proto == {6, 17}", ["46 6 > > None/None", "46 17 > > None/None"]),
        ("icmp", ["4 1 > > None/None", "6 58 > > None/None"]),
        ("icmp4.type == 8 && icmp4.code == 0", ["4 1 > > 8/0"]),
        ("icmp6.type == {1, 2}", ["6 58 > > 1/None", "6 58 > > 2/None"]),
        ("tcp.dst == 80", ["46 6 > >(80, 80) None/None"]),
        ("80 == tcp.dst", ["46 6 > >(80, 80) None/None"]),
        ("tcp.dst == 0x50/0xfff0", ["46 6 > >(80, 95) None/None"]),
        ("udp.src == 67 && udp.dst == 68", ["46 17 > (67, 67)>(68, 68) None/None"]),
        ("80 <= tcp.dst <= 90", ["46 6 > >(80, 90) None/None"]),
        ("90 > tcp.dst >= 80", ["46 6 > >(80, 89) None/None"]),
        ("tcp.dst >= 80 && tcp.dst < 90", ["46 6 > >(80, 89) None/None"]),
        ("sctp.dst != 5", ["46 132 > >(0, 4) None/None", "46 132 > >(6, 65535) None/None"]),
        ("!(sctp.dst == 5)", ["46 132 > >(0, 4) None/None", "46 132 > >(6, 65535) None/None"]),
        ("!(80 <= tcp.dst <= 90)", ["46 6 > >(0, 79) None/None", "46 6 > >(91, 65535) None/None"]),
        ("tcp.dst == {22, 80}", ["46 6 > >(22, 22) None/None", "46 6 > >(80, 80) None/None"]),
        ("tcp.dst == {22 23,}", ["46 6 > >(22, 23) None/None"]),
        (
            "tcp.dst != {22, 80} && tcp.dst < 100 && tcp.dst > 20",
            ["46 6 > >(21, 21) None/None", "46 6 > >(23, 79) None/None", "46 6 > >(81, 99) None/None"],
        ),
        ("tcp && udp", []),
        ("ip4 && ip6.src == fd00::1", []),
        ("tcp.dst > 65535", []),
        ("ip4.src == 10.0.0.0/8", ["4 any 10.0.0.0/8> > None/None"]),
        ("ip4.src == 10.0.0.7/8", ["4 any 10.0.0.0/8> > None/None"]),
        ("ip4.dst == 10.0.0.0/255.0.0.0", ["4 any >10.0.0.0/8 > None/None"]),
        ("ip6.dst == {fd00::1, fd00::2/127}", ["6 any >fd00::1/128,fd00::2/127 > None/None"]),
        ("ip4.src == $as4", ["4 any 10.0.0.1/32,10.0.1.0/24> > None/None"]),
        ("ip4.src == {$as4, 10.0.0.0}", ["4 any 10.0.0.0/31,10.0.1.0/24> > None/None"]),
        ("ip4.src == $empty", []),
        ("ip4.src != 0.0.0.0/1", ["4 any 128.0.0.0/1> > None/None"]),
        ("ip4.src <= 0.0.0.1", ["4 any 0.0.0.0/31> > None/None"]),
        ("ip4.mcast", ["4 any >224.0.0.0/4 > None/None"]),
        (
            "(ip4.src == $as4 || ip6.src == $as6) && tcp.dst == 80",
            ["4 6 10.0.0.1/32,10.0.1.0/24> >(80, 80) None/None", "6 6 fd00::1/128> >(80, 80) None/None"],
        ),
        ("ip.proto == 1", ["4 1 > > None/None"]),
    ],
)
def test_what_an_expression_matches(text, found):
    """Prerequisites come along, sets are unions, `!` turns relations round."""
    assert shown(text) == found


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ('outport == "a"', [{"a"}]),
        ("outport == @pg && ip4", [{"a", "b"}]),
        ('outport == {@pg, "z"}', [{"a", "b", "z"}]),
        ('outport == @pg && outport == {"b", "c"}', [{"b"}]),
        ("outport == @pg && outport == @other", []),
        ("outport == @none", [set()]),
        ('!(outport != "a")', [{"a"}]),
        ('outport == "a" || outport == "b"', [{"a"}, {"b"}]),
        ('outport == "\\u0061"', [{"a"}]),
    ],
)
def test_which_ports_an_expression_names(text, ports):
    """By name, by port group, or by several."""
    assert [term.ports for term in terms_of(text, NAMES)] == ports


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ip.ttl == 1", "ip.ttl == 1"),
        ("ip4 && ct.new", "ct.new"),
        ("!ct.est", "!ct.est"),
        ("tcp.flags[0..2] == 1", "tcp.flags[0..2] == 1"),
        ("ip4.src[0..7] == 3", "ip4.src[0..7] == 3"),
        ("eth.src == fa:16:3e:00:00:01", "eth.src == fa:16:3e:00:00:01"),
        ('inport == "a"', 'inport == "a" (only outport is known there)'),
        ('outport != "a"', 'outport != "a" (OVN takes only == there)'),
        ("outport == @nowhere", "outport == @nowhere (there is no port group nowhere)"),
        ("ip4.src == $nowhere", "ip4.src == $nowhere (there is no address set nowhere)"),
        ("ip4.src == $mixed", "ip4.src == $mixed (fd00::1 is no IPv4 address or prefix)"),
        ("ip4.src == 10.0.0.1/0.0.0.255", "ip4.src == 10.0.0.1/0.0.0.255 (10.0.0.1/0.0.0.255 is no IPv4 address or"),
        ("tcp.dst == 1/0x101", "tcp.dst == 1/0x101"),
        ("ip.proto != 6", "ip.proto != 6 (OVN takes only == there)"),
        ("!tcp", "!tcp"),
        ("ip.is_frag", "ip.is_frag"),
        ("vlan.present", "vlan.present"),
        ("new_field_of_2030 == 7", "new_field_of_2030 == 7"),
    ],
)
def test_what_a_policy_has_no_word_for_is_named(text, reason):
    """The term is unknown, and says why."""
    (term,) = terms_of(text, NAMES)
    assert term.unknown
    assert term.unknown[0].startswith(reason)


@pytest.mark.parametrize("text", ["arp", "arp.op == 1", "eth.type == 0x88cc", "nd", "nd_ra && ip6", "rarp"])
def test_what_is_no_matter_of_ip_is_known_as_such(text):
    """ARP, other frames, neighbour discovery."""
    (term,) = terms_of(text, NAMES)
    assert term.is_discovery or term.families == {0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it ends too early"),
        ("ip4 &&", "it ends too early"),
        ("ip4 && tcp || udp", "&& and || without parentheses"),
        ("!tcp.dst == 80", "! needs parentheses around a comparison"),
        ("(ip4", "a parenthesis is not closed"),
        ("ip4)", "')' is one too many"),
        ("ip4 ip6", "'ip6' is one too many"),
        ("tcp.dst ==", "it ends too early"),
        ("== 80", "'==' is in the wrong place"),
        ("80", "'80' is compared with nothing"),
        ("{80}", "'80' is compared with nothing"),
        ("80 == 80", "'80' is compared with no field"),
        ("tcp.dst == udp.dst", "tcp.dst is compared with udp.dst, which is no constant"),
        ("80 < tcp.dst > 90", "< and > make no range"),
        ("80 == tcp.dst == 80", "== and == make no range"),
        ("tcp.dst < {1, 2}", "< with a set"),
        ("tcp.dst == {}", "{} holds no constant"),
        ("ip4 # all", "'# all' is not understood"),
        ("(" * 200 + "ip4" + ")" * 200, "more than 100 parentheses within each other"),
        (" && ".join("(tcp.dst == 1 || tcp.src == 2)" for _ in range(12)), "more than 1000 alternatives"),
    ],
)
def test_what_ovn_would_not_read_either_is_an_error(text, why):
    """Each with its reason."""
    with pytest.raises(ExpressionError) as caught:
        terms_of(text, NAMES)
    assert why in str(caught.value)


def test_the_tree_carries_negations_inward():
    """De Morgan, and relations turned round."""
    tree = parse_expression("!(ip4 || (tcp.dst < 5 && udp))")
    assert tree == Junction(
        True,
        (
            Comparison("ip4", "!=", ("1",), is_bare=True),
            Junction(False, (Comparison("tcp.dst", ">=", ("5",)), Comparison("udp", "!=", ("1",), is_bare=True))),
        ),
    )


def test_matches_are_the_values_that_the_evaluator_takes():
    """One whole value, not only its short form."""
    assert matches("ip4.src == 10.0.0.0/8 && icmp4.type == 8") == [
        AclMatch((4,), 1, matches("ip4.src == 10.0.0.0/8")[0].sources, (), None, None, 8, None)
    ]
