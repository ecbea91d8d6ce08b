"""A policy, compiled as Neutron's driver does and read back from OVN's rows, decides about every packet as before."""

import contextlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st
from support.northbound import northbound

from netprobe.errors import UsageError
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.policy_compare import compare_policies
from netprobe.model.northbound import AclHolder, AclRow, AddressSetRow, LogicalPortRow, NorthboundPolicy
from netprobe.model.packets import SYN, ConnState, Packet
from netprobe.model.policy import Group, GroupRule, Policy, PolicyPort, Way
from netprobe.model.ranges import common, of_prefixes, others, prefixes, ranges_of, size, without
from netprobe.plan.ovn_expression import ExpressionError
from netprobe.plan.ovn_terms import Names, terms_of
from netprobe.plan.policy_ovn import policy_from_northbound

PREFIXES = {
    4: tuple(map(IPv4Network, ("10.0.0.0/31", "10.0.0.1/32", "10.0.0.0/8", "10.0.0.2/32"))),
    6: tuple(map(IPv6Network, ("fd00::/64", "fd00::1/128", "fd00::2/127"))),
}
PORTS = (79, 80, 81, 89, 90, 91)


@st.composite
def rules(draw, name):
    family = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((None, 6, 17, 132, 1 if family == 4 else 58, 47)))
    ports, icmp_type, icmp_code = None, None, None
    if protocol in (6, 17, 132):
        ports = draw(st.none() | st.lists(st.sampled_from(PORTS), min_size=2, max_size=2).map(sorted).map(tuple))
    if protocol in (1, 58):
        icmp_type = draw(st.sampled_from((None, 8, 128)))
        icmp_code = draw(st.sampled_from((None, 0))) if icmp_type is not None else None
    prefix = draw(st.none() | st.sampled_from(PREFIXES[family]))
    group = draw(st.sampled_from(("", "a", "b"))) if prefix is None else ""
    way = draw(st.sampled_from(Way))
    return GroupRule(name, way, (family,), protocol, ports, icmp_type, icmp_code, prefix, group)


@st.composite
def policies(draw):
    is_stateful = draw(st.booleans())
    groups = tuple(
        Group(g, tuple(draw(rules(f"{g}{i}")) for i in range(draw(st.integers(0, 4)))), is_stateful=is_stateful)
        for g in "ab"
    )
    return Policy(groups, tuple(draw(ports(number)) for number in range(3)))


@st.composite
def ports(draw, number):
    """Neutron takes no groups at a port without port security."""
    has_port_security = draw(st.sampled_from((True, True, False)))
    return PolicyPort(
        f"vm{number}",
        "net1",
        f"02:00:00:00:00:0{number}",
        (IPv4Address(f"10.0.0.{number}"), IPv6Address(f"fd00::{number}")),
        tuple(draw(st.sets(st.sampled_from("ab")))) if has_port_security else (),
        has_port_security,
        id=f"u{number}",
    )


@st.composite
def packets(draw):
    src, dst = draw(st.permutations((0, 1, 2)))[:2]
    family = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((6, 17, 132, 1 if family == 4 else 58, 47)))
    ips = [IPv4Address(f"10.0.0.{i}") if family == 4 else IPv6Address(f"fd00::{i}") for i in (src, dst)]
    packet = Packet(f"02:00:00:00:00:0{src}", f"02:00:00:00:00:0{dst}", *ips, protocol)
    if protocol in (6, 17, 132):
        flags = SYN if protocol == 6 else 0
        packet = replace(packet, src_port=40000, dst_port=draw(st.sampled_from(PORTS)), tcp_flags=flags)
    elif protocol in (1, 58):
        types = (8, 13) if family == 4 else (128,)
        packet = replace(packet, icmp_type=draw(st.sampled_from(types)), icmp_code=draw(st.sampled_from((0, 1))))
    return packet, f"vm{src}", f"vm{dst}"


@settings(max_examples=80, deadline=None)
@given(policies(), st.lists(packets(), min_size=5, max_size=15))
def test_what_is_read_back_decides_as_what_was_compiled(policy, asked):
    """Also where a port has no port security: then nothing of OVN's stands there."""
    read = policy_from_northbound(northbound(policy), "nb")
    assert read.remarks == ()
    assert compare_policies(policy, read) == ()
    promised, actual = Evaluator(policy), Evaluator(read)
    for packet, src, dst in asked:
        said, real = (e.decide(packet, src, dst, ConnState.NEW).is_allowed for e in (promised, actual))
        assert said == real, packet.text()


@settings(max_examples=150, deadline=None)
@given(policies(), rules("changed"), st.integers(0, 7), st.lists(packets(), min_size=10, max_size=20))
def test_policies_between_which_nothing_differs_decide_alike(policy, rule, at, asked):
    """Or, the same: whatever decides otherwise is told. The two differ in one rule at most."""
    found = [each for group in policy.groups for each in group.rules]
    changed = found[at % len(found)].id if found else ""
    groups = tuple(
        replace(group, rules=tuple(rule if each.id == changed else each for each in group.rules))
        for group in policy.groups
    )
    read = policy_from_northbound(northbound(replace(policy, groups=groups)), "nb")
    promised, actual = Evaluator(policy), Evaluator(read)
    differing = [
        packet.text()
        for packet, src, dst in asked
        if len({e.decide(packet, src, dst, ConnState.NEW).is_allowed for e in (promised, actual)}) > 1
    ]
    assert not differing or compare_policies(policy, read)


WORDS = (
    *("ip4", "ip6", "ip", "tcp", "tcp.dst", "ip4.src", "outport", "&&", "||", "!", "(", ")", "{", "}", ",", "==", "!="),
    *(
        "<",
        "<=",
        ">=",
        "80",
        "0x50/0xf0",
        "10.0.0.1",
        "10.0.0.0/8",
        "fd00::1",
        "$a",
        "@g",
        '"u1"',
        '"',
        "//",
        "nd",
        "0",
    ),
    *("[0..3]", "ip.ttl", "icmp4.type", "eth.type", "ct.new", "-", "\\", "é", "1"),
)
NAMES = Names("outport", {"g": frozenset({"u1"})}, {"a": ("10.0.0.1", "nonsense")})


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text())
def test_any_text_is_an_expression_or_an_expression_error(text):
    """Whatever an ACL says."""
    with contextlib.suppress(ExpressionError):
        terms_of(text, NAMES)


TEXTS = st.sampled_from(
    ("", "u1", "u2", "a", "g", "02:00:00:00:00:01 10.0.0.1", "dynamic", "::/0", "02:00:00:00:00:01")
)
ACLS = st.builds(
    AclRow,
    *(TEXTS, TEXTS, st.sampled_from(("to-lport", "from-lport", "x")), st.integers(0, 3)),
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
    st.sampled_from(("allow", "drop", "reject", "pass")),
)
NAMED = st.tuples(TEXTS) | st.tuples(TEXTS, TEXTS)
HOLDERS = st.lists(st.builds(AclHolder, TEXTS, NAMED, st.lists(ACLS, max_size=3).map(tuple), TEXTS), max_size=2).map(
    tuple
)
LOGICAL = st.builds(
    LogicalPortRow, TEXTS, TEXTS, st.sampled_from(("", "", "router")), NAMED, TEXTS, NAMED, st.booleans()
)


@settings(max_examples=300, deadline=None)
@given(HOLDERS, HOLDERS, st.lists(st.builds(AddressSetRow, TEXTS, NAMED), max_size=2), st.lists(LOGICAL, max_size=3))
def test_any_rows_are_a_policy_or_a_usage_error(switches, groups, sets, ports):
    """Whatever the database says."""
    with contextlib.suppress(UsageError):
        policy = policy_from_northbound(NorthboundPolicy(switches, groups, tuple(sets), tuple(ports)), "nb")
        assert not {port.name for port in policy.ports} & {port.name for port in policy.left_out}


NUMBERS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


def numbers(ranges):
    return {n for first, last in ranges for n in range(first, last + 1)}


@given(NUMBERS, NUMBERS)
def test_ranges_are_sets_of_numbers(one, other):
    """Union, intersection, complement, difference, size."""
    a, b = ranges_of(one), ranges_of(other)
    assert numbers(a) == numbers(one)
    assert numbers(common(a, b)) == numbers(a) & numbers(b)
    assert numbers(without(a, b)) == numbers(a) - numbers(b)
    assert numbers(others(a, 99)) == set(range(100)) - numbers(a)
    assert size(a) == len(numbers(a))
    assert of_prefixes(prefixes(a, 4)) == a
    assert of_prefixes(prefixes(a, 6)) == a
