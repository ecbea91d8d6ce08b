"""OVN's northbound database against what Neutron promises: nothing is said of what is kept, and each break is named."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from support.northbound import DROP_GROUP, group_name, northbound

from netprobe.judge.policy_compare import DiscrepancyKind, compare_policies
from netprobe.model.northbound import AclRow
from netprobe.model.policy import AddressGroup, AddressPair, Group, GroupRule, Policy, PolicyPort, Way
from netprobe.plan.policy_ovn import policy_from_northbound

WEB = Group(
    "web",
    (
        GroupRule("http", Way.INGRESS, (4,), 6, (80, 90), remote_prefix=IPv4Network("10.0.0.0/8")),
        GroupRule("ping", Way.INGRESS, (6,), 58, None, 128),
        GroupRule("from peers", Way.INGRESS, (4,), 17, remote_group="peers"),
        GroupRule("monitors", Way.INGRESS, (4,), 132, (5, 5), remote_address_group="mon"),
        GroupRule("out", Way.EGRESS, (4,)),
    ),
)
PEERS = Group("peers", (GroupRule("gre", Way.EGRESS, (6,), 47),), is_stateful=True)
PORTS = (
    PolicyPort("vm1", "net1", "02:00:00:00:00:01", (IPv4Address("10.0.0.1"),), ("web",), id="u1"),
    PolicyPort(
        *("vm2", "net1", "02:00:00:00:00:02", (IPv4Address("10.0.0.2"), IPv6Address("fd00::2")), ("web", "peers")),
        allowed_pairs=(AddressPair(IPv4Network("10.9.0.0/16"), "02:00:00:00:00:99"),),
        id="u2",
    ),
    PolicyPort("open", "net1", "02:00:00:00:00:03", (IPv4Address("10.0.0.3"),), (), has_port_security=False, id="u3"),
)
PROMISED = Policy((WEB, PEERS), PORTS, (AddressGroup("mon", (IPv4Network("192.0.2.0/24"),)),))
ROWS = northbound(PROMISED)
# OVN takes no allowed pairs into the address sets of port groups: where they matter, the two cannot agree.
PROMISED = replace(PROMISED, ports=(PORTS[0], replace(PORTS[1], allowed_pairs=()), PORTS[2]))
PLAIN = northbound(PROMISED)


def compared(rows, promised=PROMISED):
    return compare_policies(promised, policy_from_northbound(rows, "nb"))


def with_group(name, change, rows=PLAIN):
    groups = tuple(change(group) if group.name == name else group for group in rows.port_groups)
    return replace(rows, port_groups=groups)


def with_acl(rule, **values):
    def change(group):
        return replace(group, acls=tuple(replace(a, **values) if a.rule == rule else a for a in group.acls))

    return with_group(group_name("web"), change)


def without_acl(rule):
    return with_group(group_name("web"), lambda g: replace(g, acls=tuple(a for a in g.acls if a.rule != rule)))


def with_port(name, **values):
    return replace(PLAIN, ports=tuple(replace(p, **values) if p.name == name else p for p in PLAIN.ports))


def test_what_neutrons_driver_makes_keeps_the_promise():
    """Nothing to say."""
    assert compared(PLAIN) == ()


def test_a_rule_written_in_another_way_is_the_same_rule():
    """Two ACLs for one range, sets, ranges, another priority above the default deny."""
    split = with_acl("http", match="outport == @pg_web && 80 <= tcp.dst <= 84 && ip4.src == 10.0.0.0/8", priority=1500)
    other = AclRow(
        "x",
        "",
        "to-lport",
        1002,
        "outport == @pg_web && tcp.dst == {85,86,87,88,89,90} && ip4.src == {10.0.0.0/9, 10.128.0.0/9}",
        "allow",
    )
    rows = with_group(group_name("web"), lambda g: replace(g, acls=(*g.acls, other)), split)
    assert compared(rows) == ()


def test_acls_that_stand_for_what_everybody_does_are_no_extra():
    """DHCP, on the switch."""
    acls = (
        AclRow(
            "1",
            "",
            "from-lport",
            1002,
            'inport == "u1" && ip4 && ip4.dst == {255.255.255.255, 10.0.0.0/8} && udp.src == 68 && udp.dst == 67',
            "allow",
        ),
        AclRow("2", "", "to-lport", 1002, 'outport == "u1" && udp.src == 67 && udp.dst == 68 && ip4', "allow"),
        AclRow("3", "", "from-lport", 32767, "ip4 && udp.src == 67 && udp.dst == 68", "drop"),
    )
    assert compared(replace(PLAIN, switches=(replace(PLAIN.switches[0], acls=acls[:2]),))) == ()
    found = compared(replace(PLAIN, switches=(replace(PLAIN.switches[0], acls=acls),)))
    assert [each.ports for each in found] == [("open",)]  # there, nothing should be dropped


def only(rows, promised=PROMISED):
    found = compared(rows, promised)
    assert len(found) == 1, found
    return found[0]


def test_a_missing_rule_is_named_once_for_all_its_ports():
    """With what it would allow."""
    found = only(without_acl("http"))
    assert (found.kind, found.ports) == (DiscrepancyKind.RULE_MISSING, ("vm1", "vm2"))
    assert (found.promised_rule, found.actual_rule) == ("http", "")
    assert found.text() == (
        "vm1, vm2: rule missing: promised web: ingress ipv4 tcp dport 80-90 from 10.0.0.0/8; there is nothing; not "
        "allowed: ipv4 tcp dport 80-90 from 10.0.0.0/8"
    )


@pytest.mark.parametrize(
    ("values", "kinds", "details"),
    [
        (
            {"match": "outport == @pg_web && ip4.src == 10.0.0.0/8 && tcp.dst >= 80 && tcp.dst <= 91"},
            [DiscrepancyKind.RULE_WIDER],
            ["allowed besides: ipv4 tcp dport 91 from 10.0.0.0/8"],
        ),
        (
            {"match": "outport == @pg_web && ip4.src == 10.0.0.0/9 && tcp.dst >= 80 && tcp.dst <= 90"},
            [DiscrepancyKind.RULE_NARROWER],
            ["not allowed: ipv4 tcp dport 80-90 from 10.128.0.0/9"],
        ),
        (
            {"match": "outport == @pg_web && ip4.src == 10.0.0.0/8 && udp.dst >= 80 && udp.dst <= 90"},
            [DiscrepancyKind.RULE_NARROWER, DiscrepancyKind.RULE_WIDER],
            ["not allowed: ipv4 tcp dport 80-90 from 10.0.0.0/8", None],
        ),
        (
            {"action": "allow-stateless"},
            [DiscrepancyKind.RULE_NARROWER, DiscrepancyKind.RULE_WIDER],
            ["not allowed: ipv4 tcp dport 80-90 from 10.0.0.0/8", None],
        ),
        ({"action": "drop"}, [DiscrepancyKind.RULE_MISSING], ["not allowed: ipv4 tcp dport 80-90 from 10.0.0.0/8"]),
        ({"priority": 1000}, [DiscrepancyKind.RULE_MISSING], ["not allowed: ipv4 tcp dport 80-90 from 10.0.0.0/8"]),
        (
            {"way": "from-lport", "match": "inport == @pg_web && ip4.src == 10.0.0.0/8 && 80 <= tcp.dst <= 90"},
            None,
            None,
        ),
    ],
)
def test_a_rule_that_is_not_the_same_is_named_with_both_sides(values, kinds, details):
    """Wider, narrower, other protocol, other treatment, below the default deny."""
    found = compared(with_acl("http", **values))
    if kinds is None:  # in the other direction it allows what another rule allows already
        assert [each.kind for each in found] == [DiscrepancyKind.RULE_MISSING]
        return
    assert [each.kind for each in found] == kinds
    for each, detail in zip(found, details, strict=True):
        assert each.promised_rule == "http"
        assert each.ports == ("vm1", "vm2")
        assert detail is None or each.detail == detail
        if each.kind is not DiscrepancyKind.RULE_MISSING:
            assert each.actual_rule == "http"


def test_an_acl_that_nothing_promises_is_extra():
    """With its name in OVN."""
    row = AclRow("x", "left behind", "to-lport", 1002, 'outport == "u1" && tcp.dst == 23', "allow-related")
    found = only(replace(PLAIN, switches=(replace(PLAIN.switches[0], acls=(row,)),)), PROMISED)
    assert (found.kind, found.ports, found.actual_rule) == (DiscrepancyKind.RULE_EXTRA, ("vm1",), "left behind")
    assert found.text() == (
        "vm1: rule extra: promised nothing; there is acl left behind: allow-related ingress tcp dport 23, priority 1002"
        "; allowed besides: ipv4 tcp dport 23; ipv6 tcp dport 23"
    )


def test_a_drop_that_nothing_promises_takes_from_the_rules_that_it_covers():
    """A user's ACL above the groups."""
    row = AclRow("x", "no tcp", "to-lport", 2000, "ip4 && tcp", "drop")
    found = compared(replace(PLAIN, switches=(replace(PLAIN.switches[0], acls=(row,)),)))
    assert (found[0].promised_rule, found[0].kind) == ("http", DiscrepancyKind.RULE_MISSING)
    assert [each.ports for each in found] == [("vm1", "vm2"), ("open",)]


def test_a_port_that_is_not_in_its_port_group_lacks_all_of_its_rules():
    """Group membership."""
    rows = with_group(group_name("peers"), lambda g: replace(g, ports=()))
    found = compared(rows)
    assert ("vm2",) in [each.ports for each in found if each.promised_rule == "gre"]
    # $pg_peers_ip4 is empty then, and the rule about it at every port of web with it.
    assert ("vm1", "vm2") in [each.ports for each in found if each.promised_rule == "from peers"]


def test_a_stale_address_set_is_told_by_the_addresses():
    """Neutron's address groups are sets of their own in OVN."""
    sets = tuple(
        replace(s, addresses=("192.0.2.0/25", "198.51.100.1")) if s.name == "ag_mon_ip4" else s
        for s in PLAIN.address_sets
    )
    narrower, wider = compared(replace(PLAIN, address_sets=sets))
    assert (narrower.kind, narrower.detail) == (
        DiscrepancyKind.RULE_NARROWER,
        "not allowed: ipv4 sctp dport 5 from 192.0.2.128/25",
    )
    assert (wider.kind, wider.detail) == (
        DiscrepancyKind.RULE_WIDER,
        "allowed besides: ipv4 sctp dport 5 from 198.51.100.1/32",
    )
    assert {narrower.promised_rule, narrower.actual_rule, wider.actual_rule} == {"monitors"}


def test_ovn_leaves_allowed_pairs_out_of_remote_groups_and_that_is_told():
    """Neutron promises them, OVN's own address sets have fixed addresses only."""
    found = only(ROWS, replace(PROMISED, ports=PORTS))
    assert (found.kind, found.promised_rule) == (DiscrepancyKind.RULE_NARROWER, "from peers")
    assert found.detail == "not allowed: ipv4 udp from 10.9.0.0/16"


def test_a_missing_default_deny_is_told():
    """Both directions, both families."""
    found = only(with_group(DROP_GROUP, lambda g: replace(g, acls=g.acls[:1])))
    assert found.text() == (
        "vm1, vm2: no default deny: promised egress ipv4 and ipv6: what no rule allows is dropped; there is no ACL "
        "that drops all the rest"
    )


def test_a_port_that_is_missing_is_told_and_one_that_was_left_out_is_not():
    """What cannot be judged has its remark already."""
    gone = replace(
        PLAIN,
        ports=PLAIN.ports[1:],
        switches=(replace(PLAIN.switches[0], ports=("u2", "u3")),),
    )
    found = compared(gone)
    assert (found[0].kind, found[0].ports, found[0].text()) == (
        DiscrepancyKind.PORT_MISSING,
        ("vm1",),
        "vm1: port missing: promised port vm1; there is nothing",
    )
    row = AclRow("x", "ttl", "to-lport", 2000, 'outport == "u1" && ip.ttl == 1', "drop")
    assert compared(replace(PLAIN, switches=(replace(PLAIN.switches[0], acls=(row,)),))) == ()


def test_ports_that_nobody_promised_are_told_together():
    """An export of one project would make many."""
    found = only(PLAIN, replace(PROMISED, ports=PROMISED.ports[:2]))
    assert (found.kind, found.ports) == (DiscrepancyKind.PORT_EXTRA, ("open",))


@pytest.mark.parametrize(
    ("values", "kind", "promised", "actual"),
    [
        (
            {"port_security": ()},
            DiscrepancyKind.PORT_SECURITY,
            "only its own addresses",
            "any address may be sent from",
        ),
        (
            {"port_security": ("02:00:00:00:00:01 10.0.0.1 10.7.0.0/16",)},
            DiscrepancyKind.PORT_SECURITY,
            "addresses to send from besides its own: none",
            "10.7.0.0/16 with its own MAC",
        ),
        (
            {"addresses": ("02:00:00:00:00:77 10.0.0.1",), "port_security": ("02:00:00:00:00:77 10.0.0.1",)},
            DiscrepancyKind.ADDRESSES,
            "02:00:00:00:00:01",
            "02:00:00:00:00:77",
        ),
        (
            {"addresses": ("02:00:00:00:00:01 10.0.0.7",), "port_security": ("02:00:00:00:00:01 10.0.0.7",)},
            DiscrepancyKind.ADDRESSES,
            "10.0.0.1",
            "10.0.0.7",
        ),
    ],
)
def test_addresses_and_port_security_that_differ_are_told(values, kind, promised, actual):
    """Anti-spoofing off, a pair too many, another MAC, another address."""
    found = only(with_port("u1", **values))
    assert (found.kind, found.ports) == (kind, ("vm1",))
    assert found.promised.startswith(promised)
    assert found.actual == actual


def test_a_port_without_port_security_that_is_guarded_all_the_same_is_told():
    """It is in the drop group."""
    found = compared(with_group(DROP_GROUP, lambda g: replace(g, ports=("u1", "u2", "u3"))))
    assert {each.ports for each in found} == {("open",)}
    assert found[0].detail == "port security is off: nothing should be dropped"


def test_a_policy_keeps_its_own_promise():
    """Groups against groups: the default deny is implicit on both sides."""
    assert compare_policies(PROMISED, PROMISED) == ()
