"""OVN's northbound database as a policy: ports, entries, and what cannot be judged."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from netprobe.errors import UsageError
from netprobe.host.ovn_policy import policy_rows
from netprobe.model.northbound import AclHolder, AclRow, AddressSetRow, LogicalPortRow, NorthboundPolicy
from netprobe.model.policy import AclMatch, Action, AddressPair, Way
from netprobe.plan.policy_ovn import policy_from_northbound

MAC1, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
PORTS = (
    LogicalPortRow("uuid1", "vm1", "", (f"{MAC1} 10.0.0.1 fd00::1",), port_security=(f"{MAC1} 10.0.0.1 fd00::1",)),
    LogicalPortRow("uuid2", "vm2", "", (f"{MAC2} 10.0.0.2", "unknown")),
    LogicalPortRow("gateway", "", "router", ("router",)),
)


def acl(match, action="allow-related", way="to-lport", **values):
    return AclRow("row", values.pop("name", "rule"), way, values.pop("priority", 1002), match, action, **values)


def policy_of(*acls, ports=PORTS, on_switch=False, sets=()):
    names = tuple(port.name for port in ports)
    group = AclHolder("pg", ("uuid1",), () if on_switch else acls)
    switch = AclHolder("ls", names, acls if on_switch else (), label="net1")
    return policy_from_northbound(NorthboundPolicy((switch,), (group,), sets, ports), "nb")


def test_ports_are_those_of_guests_with_what_they_may_send():
    """A router's port is none; a port without port_security may send anything."""
    policy = policy_of()
    vm1, vm2 = policy.ports
    assert (vm1.name, vm1.id, vm1.network, vm1.mac, vm1.groups) == ("vm1", "uuid1", "net1", MAC1, ())
    assert (vm1.has_port_security, vm1.allowed_pairs) == (True, ())
    assert (vm2.ips, vm2.has_port_security) == ((IPv4Address("10.0.0.2"),), False)
    assert (policy.groups, policy.has_default_deny, policy.remarks) == ((), False, ())


def test_port_security_beyond_the_own_addresses_are_pairs():
    """Prefixes, other MACs, a MAC alone, an address with its network's length; OVSDB sorts what is written."""
    port = LogicalPortRow(
        *("uuid1", "vm1", "", (MAC2, f"{MAC1} 10.0.0.1")),
        port_security=(f"{MAC1} 10.0.0.1 10.9.0.0/16 10.8.0.7/24", f"{MAC2}"),
    )
    (vm1,) = policy_of(ports=(port,)).ports
    assert (vm1.mac, vm1.ips) == (MAC1, (IPv4Address("10.0.0.1"),))
    assert vm1.allowed_pairs == (
        AddressPair(IPv4Network("10.9.0.0/16")),
        AddressPair(IPv4Network("10.8.0.7")),
        AddressPair(IPv4Network("0.0.0.0/0"), MAC2),
        AddressPair(IPv6Network("::/0"), MAC2),
    )


def test_addresses_that_ovn_chose_are_a_ports_own():
    """`dynamic`, and the column that says what became of it."""
    port = LogicalPortRow("uuid1", "", "", ("dynamic",), dynamic=f"{MAC1} 10.0.0.9", port_security=(MAC1,))
    (found,) = policy_of(ports=(port,)).ports
    assert (found.name, found.mac, found.ips) == ("uuid1", MAC1, (IPv4Address("10.0.0.9"),))


def test_a_port_that_may_not_send_from_its_own_address_is_told():
    """port_security was not updated."""
    port = replace(PORTS[0], port_security=(f"{MAC1} 10.0.0.7",))
    assert policy_of(ports=(port,)).remarks == (
        "port vm1 may not send from its own address 10.0.0.1: port_security has it not",
        "port vm1 may not send from its own address fd00::1: port_security has it not",
    )


def test_a_port_that_is_switched_off_is_told():
    """Nothing passes there."""
    policy = policy_of(ports=(replace(PORTS[0], is_enabled=False), PORTS[1]))
    assert policy.remarks == ("port vm1 is switched off (enabled=false): nothing passes there",)


def test_ports_of_one_label_go_by_their_own_names():
    """Labels need not be unique."""
    assert [p.name for p in policy_of(ports=(PORTS[0], replace(PORTS[1], label="vm1"))).ports] == ["uuid1", "uuid2"]


def test_an_acl_is_an_entry_at_the_ports_that_it_names():
    """Name, direction, priority, action, matches."""
    policy = policy_of(acl("outport == @pg && ip4 && tcp.dst == {22, 80}"), acl("ip", "drop", "from-lport", name="all"))
    allow, drop = policy.acls
    assert (allow.id, allow.way, allow.priority, allow.action) == ("rule", Way.INGRESS, 1002, Action.ALLOW_RELATED)
    assert (allow.ports, allow.network) == (("vm1",), "")
    assert allow.matches == (AclMatch((4,), 6, dst_ports=(22, 22)), AclMatch((4,), 6, dst_ports=(80, 80)))
    assert (drop.way, drop.ports, drop.matches) == (Way.EGRESS, ("vm1", "vm2"), (AclMatch(),))


@pytest.mark.parametrize("on_switch", [True, False])
def test_an_acl_that_names_no_port_stands_at_all_of_its_switches(on_switch):
    """Of the switch that has it, or of those with a port of the port group that has it."""
    (entry,) = policy_of(acl("ip"), on_switch=on_switch).acls
    assert entry.ports == ("vm1", "vm2")


def test_one_acl_about_several_ports_is_an_entry_for_each_set_of_them():
    """Names stay unique."""
    policy = policy_of(acl('(outport == "uuid1" && tcp) || (outport == "uuid2" && udp)'))
    assert [(a.id, a.ports, a.matches[0].protocol) for a in policy.acls] == [
        ("rule", ("vm1",), 6),
        ("rule #2", ("vm2",), 17),
    ]


def test_neutrons_rule_is_what_an_acl_is_called_else_its_name_else_its_text():
    """The user's own words first."""
    named = policy_of(acl("ip4", rule="uuid of the rule"), acl("ip6"), acl("tcp", name=""))
    assert [a.id for a in named.acls] == ["uuid of the rule", "rule", "pg to-lport 1002 tcp"]


def test_address_sets_are_those_of_the_table_and_of_port_groups():
    """`$pg_ip4` is made by OVN of the addresses of the group's ports."""
    sets = (AddressSetRow("mine", ("192.0.2.0/24",)),)
    match = "ip4.src == $pg_ip4 || ip6.src == $pg_ip6 || ip4.src == $mine"
    (entry,) = policy_of(acl(match), sets=sets).acls
    assert [m.sources for m in entry.matches] == [
        (IPv4Network("10.0.0.1"),),
        (IPv6Network("fd00::1"),),
        (IPv4Network("192.0.2.0/24"),),
    ]


def test_an_entry_that_matches_nothing_is_no_entry_of_any_port():
    """An empty address set, a contradiction, a port that is no guest's."""
    sets = (AddressSetRow("empty"),)
    matches = ("ip4.src == $empty", "tcp && udp", 'outport == "gateway" && ip', 'outport == "nowhere"')
    assert policy_of(*map(acl, matches), sets=sets).acls == ()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (acl("outport == @pg && ip.ttl == 1"), "it matches on ip.ttl == 1"),
        (
            acl("outport == @pg && ip4 && tcp || udp"),
            "its match cannot be read: && and || without parentheses: outport",
        ),
        (acl("outport == @pg", is_late=True), "it is asked after load balancing, in a stage of its own"),
        (acl("outport == @pg", tier=2), "it is in tier 2"),
        (acl("outport == @pg", "pass"), "its action is 'pass'"),
        (acl("outport == @pg", way="sideways"), "its direction is 'sideways'"),
        (acl("outport == @pg && ip4.src == $none"), "it matches on ip4.src == $none (there is no address set none)"),
    ],
)
def test_ports_of_what_cannot_be_judged_are_left_out_and_told(row, why):
    """Never a wrong match, never in silence. What is wrong of a whole ACL concerns all of its switches' ports."""
    policy = policy_of(row, acl('outport == "uuid2" && ip', name="other"))
    assert len(policy.remarks) == 1
    names = "vm1" if "matches on" in why else "vm1, vm2"
    assert policy.remarks[0].startswith(f"port {names} cannot be judged and is left out: of ACL rule {why}")
    assert [p.name for p in policy.left_out] == names.split(", ")
    assert not {p.name for p in policy.ports} & set(names.split(", "))
    assert [a.ports for a in policy.acls] == ([("vm2",)] if names == "vm1" else [])


@pytest.mark.parametrize(
    "match", ["outport == @pg && arp", "outport == @pg && nd", 'outport == "gateway" && ip.ttl == 1']
)
def test_what_concerns_no_guests_ip_packets_leaves_nobody_out(match):
    """Allowing ARP is no news; a router's port is none of ours."""
    policy = policy_of(acl(match))
    assert (policy.remarks, policy.acls, len(policy.ports)) == ((), (), 2)


@pytest.mark.parametrize(
    ("match", "remark"),
    [
        ("outport == @pg && arp", "ACL rule drops frames that are not IP at port vm1: that it does is not proved"),
        ("outport == @pg && nd_ra", "ACL rule drops neighbour discovery at port vm1: that it does is not proved"),
        ("outport == @pg", "ACL rule drops frames that are not IP too, as ARP, at port vm1"),
    ],
)
def test_what_drops_more_than_ip_is_told(match, remark):
    """A policy has no word for it."""
    assert policy_of(acl(match, "drop")).remarks == (remark,)


def test_entries_whose_order_is_undefined_are_told():
    """OVN takes either of two ACLs of one priority."""
    policy = policy_of(acl("outport == @pg && tcp"), acl("outport == @pg && ip4", "drop", name="no"))
    assert policy.remarks == (
        "ACL entries no and rule have priority 1002 both, and match the same packets: which one decides is undefined",
    )


def test_two_ports_with_one_address_are_refused():
    """On one switch."""
    with pytest.raises(UsageError) as caught:
        policy_of(ports=(PORTS[0], replace(PORTS[1], addresses=(f"{MAC2} 10.0.0.1",))))
    assert str(caught.value) == (
        "nb: guest vm2: has 10.0.0.1, which guest vm1 has too on network net1. Give each guest addresses of its own."
    )


def test_icmp_types_and_protocols_beyond_a_few_are_not_written_out():
    """A code without a type is."""
    (entry,) = policy_of(acl("outport == @pg && icmp4.code == 1")).acls
    assert {(m.icmp_type, m.icmp_code) for m in entry.matches} == {(type_, 1) for type_ in range(256)}
    numbers = ", ".join(map(str, range(0, 200, 2)))
    assert "too many protocols" in policy_of(acl(f"outport == @pg && ip.proto == {{{numbers}}}")).remarks[0]


def test_rows_come_as_the_database_has_them():
    """References are UUIDs, sets are lists, a switch may have a name of OpenStack's."""
    tables = {
        "ACL": {
            "acl-1": {
                "name": ["web"],
                "direction": "to-lport",
                "priority": 1002,
                "match": "ip",
                "action": "allow",
                "label": 7,
                "options": {"apply-after-lb": "true"},
                "external_ids": {"neutron:security_group_rule_id": "r1"},
            }
        },
        "Port_Group": {"g": {"name": "pg", "ports": ["p"], "acls": ["acl-1", "gone"]}},
        "Address_Set": {"s": {"name": "as", "addresses": ["10.0.0.2", "10.0.0.1"]}},
        "Logical_Switch": {
            "l": {"name": "neutron-x", "ports": ["p"], "acls": [], "external_ids": {"neutron:network_name": "net1"}}
        },
        "Logical_Switch_Port": {
            "p": {
                "name": "uuid1",
                "type": "",
                "addresses": [f"{MAC1} 10.0.0.1"],
                "dynamic_addresses": [],
                "port_security": [],
                "enabled": [False],
                "external_ids": {"neutron:port_name": "vm1"},
            }
        },
    }
    row = AclRow("acl-1", "web", "to-lport", 1002, "ip", "allow", 7, "r1", is_late=True)
    assert policy_rows(tables) == NorthboundPolicy(
        switches=(AclHolder("neutron-x", ("uuid1",), (), "net1"),),
        port_groups=(AclHolder("pg", ("uuid1",), (row,), "pg"),),
        address_sets=(AddressSetRow("as", ("10.0.0.1", "10.0.0.2")),),
        ports=(LogicalPortRow("uuid1", "vm1", "", (f"{MAC1} 10.0.0.1",), is_enabled=False),),
    )
