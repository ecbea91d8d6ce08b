"""Policies as users write them: what is accepted, and the whole message where it is not."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from netprobe.errors import UsageError
from netprobe.model.policy import PROTOCOL_NAMES, Action, AddressPair, GroupRule, Policy, Way
from netprobe.plan.policy_file import LAB_GUEST_KEYS, LAB_TOP_KEYS, parse_policy, read_policy
from netprobe.plan.policy_neutron import COMMANDS

GUEST = '[[guest]]\nname = "vm1"\ngroups = ["web"]\n'
WEB = '[[group]]\nname = "web"\n'
RULE = WEB + '[[group.rule]]\ndirection = "ingress"\n'
ACL = GUEST + WEB + '[[acl]]\nname = "a"\ndirection = "ingress"\npriority = 1\naction = "drop"\n'
PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
TWO_GUESTS = '[[guest]]\nname = "a"\n{}\n[[guest]]\nname = "b"\n{}\n'
OWN = "Give each guest addresses of its own."
UNDEFINED = " both, and match the same packets: which one decides is undefined"

WHOLE = """
schema = 1

[[group]]
name = "web"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = 80
[[group.rule]]
id = "sctp from the office"
direction = "ingress"
ethertype = "ipv4"
protocol = 132
port = "1-65535"
remote_prefix = "192.0.2.0/24"
[[group.rule]]
direction = "egress"
ethertype = "ipv6"
protocol = "icmpv6"
icmp_type = 128
icmp_code = 0
remote_address_group = "monitors"
[[group.rule]]
direction = "ingress"
remote_group = "web"

[[group]]
name = "raw"
stateful = false

[[address_group]]
name = "monitors"
prefixes = ["fd00::7", "10.9.0.0/16"]

[[guest]]
name = "vm1"
groups = ["web", "web"]
network = "net1"
mac = "02:00:00:00:00:0A"
ips = ["10.0.0.1", "fd00:0::1"]
allowed_address_pairs = [{ ip = "10.0.0.99" }, { prefix = "10.1.0.0/24", mac = "02:00:00:00:00:0b" }]
host = "hv1"
floating = true

[[guest]]
name = "vm2"
network = "net1"
port_security = false

[[acl]]
name = "no telnet"
direction = "egress"
priority = 2000
action = "reject"
protocol = "tcp"
port = 23
network = "net1"

[[acl]]
name = "ping"
direction = "ingress"
priority = 3000
action = "allow-stateless"
protocol = "icmp"
source = ["10.0.0.0/8", "fd00::/8"]

[[bypass]]
host = "hv1"
"""


def refused(text: str) -> str:
    """The message of the UsageError that a text ends in."""
    with pytest.raises(UsageError) as caught:
        parse_policy(text, "p.toml")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_key_of_the_format_is_read():
    """One document with all keys."""
    policy = parse_policy(WHOLE, "p.toml")
    web, raw = policy.groups
    assert web.rules == (
        GroupRule("web[0]", Way.INGRESS, (4, 6), 6, (80, 80)),
        GroupRule(
            *("sctp from the office", Way.INGRESS, (4,), 132, (1, 65535)), remote_prefix=IPv4Network("192.0.2.0/24")
        ),
        GroupRule("web[2]", Way.EGRESS, (6,), 58, None, 128, 0, remote_address_group="monitors"),
        GroupRule("web[3]", Way.INGRESS, (4, 6), remote_group="web"),
    )
    assert (web.is_stateful, raw.is_stateful, raw.rules) == (True, False, ())
    assert policy.address_groups[0].prefixes == (IPv6Network("fd00::7"), IPv4Network("10.9.0.0/16"))
    vm1, vm2 = policy.ports
    assert (vm1.mac, vm1.ips) == ("02:00:00:00:00:0a", (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")))
    assert vm1.groups == ("web",)
    assert vm1.allowed_pairs == (
        AddressPair(IPv4Network("10.0.0.99")),
        AddressPair(IPv4Network("10.1.0.0/24"), "02:00:00:00:00:0b"),
    )
    assert (vm2.groups, vm2.has_port_security) == ((), False)
    telnet, ping = policy.acls
    assert (telnet.network, telnet.ports, telnet.action, telnet.way) == ("net1", (), Action.REJECT, Way.EGRESS)
    assert (ping.network, ping.ports) == ("", ("vm1", "vm2"))
    assert [(m.families, m.protocol, m.sources) for m in ping.matches] == [
        ((4,), 1, (IPv4Network("10.0.0.0/8"),)),
        ((6,), 58, (IPv6Network("fd00::/8"),)),
    ]
    assert (policy.remarks, policy.has_default_deny) == ((), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[guest", "p.toml: is no TOML: "),
        ("a = " + "[" * 10_000, "p.toml: is no TOML: "),
        (WEB, "p.toml: names no guest. Add a [[guest]] with a name and its groups."),
        ("gest = 1\n", "p.toml: unknown key 'gest' (allowed: acl, address_group, bypass, group, guest, schema). Did "),
        ("schema = 2\n" + GUEST, "p.toml.schema: got 2 (allowed: an integer from 1 to 1)."),
        ("group = 3\n" + GUEST, "p.toml.group: got 3 (allowed: an array of tables: [[group]])."),
        (WEB + "statefull = true\n", "p.toml: group[0]: unknown key 'statefull' (allowed: name, rule, stateful). Did"),
        (WEB + 'stateful = "yes"\n', "p.toml: group[0].stateful: got 'yes' (allowed: true or false)."),
        ("[[group]]\n", "p.toml: group[0].name: got None (allowed: a non-empty string)."),
        (WEB + "[[group.rule]]\n", "p.toml: group[0]: rule[0].direction: got None (allowed: a non-empty string)."),
        (RULE + "dport = 80\n", "p.toml: group[0]: rule[0]: unknown key 'dport' (allowed: direction, ethertype, "),
        (
            WEB + '[[group.rule]]\ndirection = "in"\n',
            "p.toml: group[0]: rule[0].direction: unknown value 'in' (allowed: egress, ingress).",
        ),
        (RULE + 'ethertype = "ipx"\n', "p.toml: group[0]: rule[0].ethertype: got 'ipx' (allowed: ipv4, ipv6, both)."),
        (
            RULE + 'protocol = "tpc"\n',
            "rule[0].protocol: got 'tpc' (allowed: any, a number from 0 to 255, or one of ah",
        ),
        (RULE + "protocol = 256\n", "rule[0].protocol: got 256 (allowed: any, a number from 0 to 255, or one of ah, "),
        (RULE + "protocol = true\n", "rule[0].protocol: got True (allowed: any, a number from 0 to 255, or one of ah"),
        (
            RULE + 'protocol = "tcp"\nport = 65536\n',
            'p.toml: group[0]: rule[0].port: got 65536 (allowed: 0 to 65535, or a range such as "5000-5009").',
        ),
        (RULE + 'protocol = "tcp"\nport = -1\n', "rule[0].port: got -1 (allowed: 0 to 65535, or a range such as "),
        (RULE + 'protocol = "tcp"\nport = "٨٠"\n', "rule[0].port: got '٨٠' (allowed: 0 to 65535, or a range such as "),
        (
            RULE + 'protocol = "tcp"\nport = "90-80"\n',
            "p.toml: group[0]: rule[0].port: '90-80' is a range the wrong way round (allowed: \"80-90\").",
        ),
        (
            RULE + 'protocol = "icmp"\nport = 80\n',
            "rule[0].port: there are no ports in icmp (allowed: protocol tcp, udp, dccp, sctp, udplite).",
        ),
        (RULE + "port = 80\n", "rule[0].port: there are no ports in any protocol (allowed: protocol tcp, udp, dccp,"),
        (RULE + "protocol = 47\nport = 80\n", "rule[0].port: there are no ports in gre (allowed: protocol tcp, udp, "),
        (
            RULE + 'ethertype = "ipv4"\nprotocol = "icmp"\nicmp_type = 256\n',
            "p.toml: group[0]: rule[0].icmp_type: got 256 (allowed: an integer from 0 to 255).",
        ),
        (
            RULE + 'ethertype = "ipv4"\nprotocol = "icmp"\nicmp_code = 0\n',
            "p.toml: group[0]: rule[0]: has icmp_code 0 and no icmp_type. Give it an icmp_type.",
        ),
        (
            RULE + 'protocol = "tcp"\nicmp_type = 8\n',
            "p.toml: group[0]: rule[0].icmp_type: goes with tcp (allowed: protocol icmp or icmpv6).",
        ),
        (
            RULE + 'protocol = "icmp"\nicmp_type = 8\n',
            "rule[0].icmp_type: 8 is one thing in ICMP and another in ICMPv6 (allowed: ethertype ipv4 or ipv6). ",
        ),
        (
            RULE + 'protocol = "icmpv6"\nethertype = "ipv4"\n',
            "p.toml: group[0]: rule[0].protocol: icmpv6 is not in IPv4 (allowed: ethertype ipv6, or protocol icmp).",
        ),
        (
            RULE + 'remote_prefix = "fd00::/64"\nethertype = "ipv4"\n',
            "group[0]: rule[0].remote_prefix: fd00::/64 is not of the rule's family IPv4 (allowed: one family).",
        ),
        (
            RULE + 'remote_prefix = "10.0.0.1/24"\n',
            "p.toml: group[0]: rule[0].remote_prefix: '10.0.0.1/24' has bits beyond its length (allowed: 10.0.0.0/24).",
        ),
        (
            RULE + 'remote_prefix = "10.0.0/24"\n',
            "rule[0].remote_prefix: got '10.0.0/24' (allowed: a prefix such as 10.0.0.0/24 or fd00::/64, or one ",
        ),
        (
            RULE + 'remote_prefix = "fe80::1%eth0"\n',
            "rule[0].remote_prefix: got 'fe80::1%eth0' (allowed: a prefix such",
        ),
        (RULE + "remote_prefix = 10\n", "p.toml: group[0]: rule[0].remote_prefix: got 10 (allowed: a prefix such as "),
        (
            RULE + 'remote_prefix = "10.0.0.0/24"\nremote_group = "web"\n',
            "p.toml: group[0]: rule[0]: has remote_prefix and remote_group (allowed: one of them).",
        ),
        (
            GUEST + RULE + 'remote_group = "webb"\n',
            "p.toml: rule web[0].remote_group: unknown group 'webb' (allowed: web). Did you mean 'web'?",
        ),
        (
            GUEST + RULE + 'remote_address_group = "x"\n',
            "p.toml: rule web[0].remote_address_group: unknown address group 'x' (allowed: none).",
        ),
        (WEB + WEB + GUEST, "p.toml: two groups are called 'web'. Give each a name of its own."),
        (WEB + GUEST + GUEST, "p.toml: two guests are called 'vm1'. Give each a name of its own."),
        (
            GUEST + RULE + 'id = "web[1]"\n[[group.rule]]\ndirection = "egress"\n',
            "p.toml: two rules or ACL entries are called 'web[1]'. Give each a name of its own.",
        ),
        (
            GUEST + '[[address_group]]\nname = "a"\n[[address_group]]\nname = "a"\n',
            "p.toml: two address groups are called 'a'. Give each a name of its own.",
        ),
        (
            '[[address_group]]\nname = "a"\nprefixes = ["x"]\n',
            "p.toml: address_group[0].prefixes: got 'x' (allowed: a ",
        ),
        (GUEST, "p.toml: guest vm1.groups: unknown group 'web' (allowed: none)."),
        (
            '[[guest]]\nname = "a"\ngroups = "web"\n',
            "p.toml: guest[0].groups: got 'web' (allowed: an array of non-empty",
        ),
        (
            '[[guest]]\nname = "a"\nmac = "x"\n',
            "guest[0].mac: got 'x' (allowed: a unicast MAC such as 02:00:00:00:00:01)",
        ),
        (
            '[[guest]]\nname = "a"\nmac = "01:00:00:00:00:01"\n',
            "guest[0].mac: got '01:00:00:00:00:01' (allowed: a unica",
        ),
        (
            '[[guest]]\nname = "a"\nips = ["10.0.0.0/24"]\n',
            "guest[0].ips: got '10.0.0.0/24' (allowed: a unicast address",
        ),
        (
            '[[guest]]\nname = "a"\nips = ["0.0.0.0"]\n',
            "guest[0].ips: got '0.0.0.0' (allowed: a unicast address such as ",
        ),
        (
            '[[guest]]\nname = "a"\nips = ["fd00::1"]\n[[guest]]\nname = "b"\nips = ["fd00:0::1"]\n',
            "p.toml: guest b: has fd00::1, which guest a has too. Give each guest addresses of its own.",
        ),
        (
            TWO_GUESTS.format('network = "n"\nmac = "02:00:00:00:00:01"', 'network = "n"\nmac = "02-00-00-00-00-01"'),
            "p.toml: guest b: has 02:00:00:00:00:01, which guest a has too on network n. " + OWN,
        ),
        (
            '[[guest]]\nname = "a"\nallowed_address_pairs = [{ mac = "02:00:00:00:00:01" }]\n',
            "p.toml: guest[0]: allowed_address_pairs[0]: has no address (allowed: prefix or ip).",
        ),
        (
            '[[guest]]\nname = "a"\nallowed_address_pairs = [{ ip = "10.0.0.1", prefix = "10.0.0.0/8" }]\n',
            "p.toml: guest[0]: allowed_address_pairs[0]: has prefix and ip (allowed: prefix or ip).",
        ),
        (
            '[[guest]]\nname = "a"\nallowed_address_pairs = [{ ip = "10.0.0.0/8" }]\n',
            "p.toml: guest[0]: allowed_address_pairs[0].ip: got '10.0.0.0/8' (allowed: one address, or use prefix).",
        ),
        (
            WEB + '[[group]]\nname = "raw"\nstateful = false\n[[guest]]\nname = "a"\ngroups = ["web", "raw"]\n',
            "guest a.groups: group 'web' is stateful and group 'raw' is stateless (allowed: one kind on a port).",
        ),
        (
            ACL + 'dest = "x"\n',
            "p.toml: acl[0]: unknown key 'dest' (allowed: action, destination, direction, ethertype, ",
        ),
        (
            ACL.replace('"drop"', '"deny"'),
            "p.toml: acl[0].action: unknown value 'deny' (allowed: allow, allow-related, ",
        ),
        (
            ACL.replace("priority = 1", "priority = 32768"),
            "acl[0].priority: got 32768 (allowed: an integer from 0 to 32",
        ),
        (ACL.replace("priority = 1\n", ""), "p.toml: acl[0].priority: got None (allowed: an integer from 0 to 32767)."),
        (
            ACL + 'network = "n"\nports = ["vm1"]\n',
            "p.toml: acl[0]: has network and ports (allowed: one of them, or none for all guests).",
        ),
        (ACL + 'ports = ["vm2"]\n', "p.toml: acl a.ports: unknown guest 'vm2' (allowed: vm1). Did you mean 'vm1'?"),
        (
            WEB + GUEST + 'network = "net1"\n' + ACL.partition(WEB)[2] + 'network = "net2"\n',
            "p.toml: acl a.network: unknown network 'net2' (allowed: net1). Did you mean 'net1'?",
        ),
        (ACL + "port = 80\n", "p.toml: acl[0].port: there are no ports in any protocol (allowed: protocol tcp, udp, "),
        (
            ACL + 'protocol = "icmp"\nsource_port = 80\n',
            "p.toml: acl[0].source_port: there are no ports in icmp (allowed: ",
        ),
        (ACL + "source = [1]\n", "p.toml: acl[0].source: got [1] (allowed: an array of non-empty strings)."),
        (ACL + "source = 1\n", "p.toml: acl[0].source: got 1 (allowed: a prefix such as 10.0.0.0/24 or fd00::/64, or "),
        (
            ACL + 'source = "10.0.0.0/8"\ndestination = "fd00::/8"\n',
            "p.toml: acl[0].destination: no packet has such addresses (allowed: one family in all of it).",
        ),
        (
            ACL + 'ethertype = "ipv6"\nsource = ["fd00::/8", "10.0.0.0/8"]\n',
            "p.toml: acl[0].source: 10.0.0.0/8 is not of the rule's family IPv6 (allowed: one family).",
        ),
    ],
)
def test_a_wrong_policy_is_refused_with_place_value_and_what_is_allowed(text, message):
    """Whole messages, or their beginnings where they list many names."""
    got = refused(text)
    assert message in got
    if message.startswith("p.toml") and message.endswith((".", "?")):
        assert got == message


@pytest.mark.parametrize(
    "text",
    [
        GUEST + WEB + '[[group.rule]]\ndirection = "ingress"\nremote_group = "web"\n',
        GUEST + WEB,
        GUEST + RULE + 'protocol = "udp"\nport = "1-65535"\n',
        '[[guest]]\nname = "vm1"\n',
        '[[guest]]\nname = "vm1"\ngroups = []\n',
        TWO_GUESTS.format('network = "n"\nips = ["10.0.0.1"]', 'network = "m"\nips = ["10.0.0.1"]'),
        GUEST + RULE + 'remote_address_group = "a"\n[[address_group]]\nname = "a"\nprefixes = []\n',
    ],
)
def test_what_is_odd_but_has_a_meaning_is_accepted(text):
    """A group that is its own remote, empty groups, wide ranges, guests without groups, one address on two networks."""
    assert parse_policy(text, "p.toml").remarks == ()


def test_what_can_only_be_in_one_family_is_a_rule_of_that_family():
    """Prefixes and icmpv6 say the family where `ethertype` does not."""
    text = GUEST + RULE + 'remote_prefix = "fd00::/8"\n[[group.rule]]\ndirection = "egress"\nprotocol = "ipv6-icmp"\n'
    assert [rule.families for rule in parse_policy(text, "p").groups[0].rules] == [(6,), (6,)]


@pytest.mark.parametrize(
    ("acls", "remark"),
    [
        (
            ACL + '[[acl]]\nname = "b"\ndirection = "ingress"\npriority = 1\naction = "allow"\nprotocol = "tcp"\n',
            "ACL entries a and b have priority 1" + UNDEFINED,
        ),
        (
            ACL.replace("priority = 1", "priority = 1002")
            + 'protocol = "tcp"\nport = "80-90"\n'
            + RULE.replace(WEB, "")
            + 'protocol = "tcp"\nport = 85\n',
            "ACL entry a and rule web[0] have priority 1002" + UNDEFINED,
        ),
        (
            ACL.replace("priority = 1", "priority = 1001").replace("drop", "allow"),
            "ACL entry a and the default deny have priority 1001" + UNDEFINED,
        ),
    ],
)
def test_entries_whose_order_is_undefined_are_told(acls, remark):
    """OVN promises nothing about two matches of one priority."""
    if "[[group.rule]]" in acls:  # a rule belongs behind its group
        head, _, rule = acls.partition("[[group.rule]]")
        acls = head.replace(WEB, WEB + "[[group.rule]]" + rule)
    assert parse_policy(acls, "p").remarks == (remark,)


@pytest.mark.parametrize(
    "more",
    ['protocol = "udp"\n', 'ethertype = "ipv6"\n', 'protocol = "tcp"\nport = 2\n', 'source = "192.0.2.0/24"\n'],
)
def test_entries_that_no_packet_matches_both_are_not_told(more):
    """Other protocol, family, port, prefix."""
    first = ACL + 'protocol = "tcp"\nport = 1\nsource = "10.0.0.0/8"\n'
    other = '[[acl]]\nname = "b"\ndirection = "ingress"\npriority = 1\naction = "allow"\n'
    assert parse_policy(first + other + more, "p").remarks == ()
    assert parse_policy(first + other, "p").remarks


def test_a_lab_reads_its_own_keys_from_the_same_tables():
    """`read_policy` takes a loaded document and refuses only what nobody reads."""
    document = {"guest": [{"name": "vm1", "host": "hv1"}], "bypass": {"copy_of": "vm1"}}
    with pytest.raises(UsageError):
        read_policy(document, "lab.toml")
    policy = read_policy(document, "lab.toml", guest_keys=("host",), top_keys=("bypass",))
    assert [port.name for port in policy.ports] == ["vm1"]
    assert read_policy({}, "lab.toml") == Policy()


def test_the_page_shows_a_policy_that_is_one_and_names_every_key_and_command():
    """docs/policy.md is what a user goes by."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert parse_policy(example, "docs/policy.md").remarks == ()
    keys = set(re.findall(r"^(\w+) = ", WHOLE, re.MULTILINE)) | {*LAB_GUEST_KEYS, *LAB_TOP_KEYS}
    keys |= {"source_port", "destination", "ports", "remote_prefix", "schema", "id"}
    assert [key for key in sorted(keys) if not re.search(rf"`[^`]*\b{key}\b[^`]*`", PAGE)] == []
    assert [name for name in PROTOCOL_NAMES if not re.search(rf"\b{name}\b", PAGE)] == []
    assert [f"{command} > {name}" for name, command in COMMANDS.items() if f"{command} > {name}\n" not in PAGE] == []
