"""Readers of policies are total: any input is a policy, or a UsageError."""

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import UsageError
from netprobe.model.policy import Policy
from netprobe.plan.policy_file import parse_policy, read_policy
from netprobe.plan.policy_neutron import COMMANDS, parse_neutron

TITLES = (
    *("ID", "id", "Name", "name", "IP Protocol", "protocol", "Ethertype", "ether_type", "IP Range", "Port Range"),
    *("Direction", "direction", "Remote Security Group", "remote_group_id", "Remote Address Group", "Security Group"),
    *("security_group_rules", "rules", "stateful", "mac_address", "MAC Address", "Fixed IP Addresses", "fixed_ips"),
    *("security_group_ids", "security_groups", "allowed_address_pairs", "port_security_enabled", "network_id"),
    *("ip_address", "subnet_id", "port_range_min", "port_range_max", "remote_ip_prefix", "addresses", "device_owner"),
)
WORDS = (
    *("a", "b", "ingress", "egress", "IPv4", "IPv6", "tcp", "icmp", "58", "10.0.0.0/8", "fd00::1", "10.0.0.1", "::/0"),
    *("80:90", "90:80", "type=3:code=0", "type=", "fa:16:3e:00:00:01", "ip_address='10.0.0.1'", "a='b', a='c'", ""),
)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TITLES) | st.text(max_size=3), inner),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(TITLES), VALUES), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(COMMANDS)), ROWS | VALUES, max_size=5))
def test_any_json_of_an_export_is_a_policy_or_a_usage_error(files):
    """No traceback, whatever a file says."""
    with contextlib.suppress(UsageError):
        assert isinstance(parse_neutron({name: json.dumps(content) for name, content in files.items()}, "x"), Policy)


RULE_COLUMNS = {
    "ID": st.sampled_from("rs"),
    "Security Group": st.sampled_from("ab"),
    "Direction": st.sampled_from(("ingress", "egress", "in")),
    "Ethertype": st.sampled_from(("IPv4", "IPv6")),
    "IP Protocol": st.sampled_from((None, "tcp", "icmp", "ipv6-icmp", "58", "0", 6)),
    "IP Range": st.sampled_from((None, "", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::1/8")),
    "Port Range": st.sampled_from((None, "", "80:80", "0:65535", "type=3", "type=0:code=0", "type=256", "code=1")),
    "Remote Security Group": st.sampled_from((None, "a", "b", "")),
}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries(RULE_COLUMNS), max_size=4))
def test_any_rules_of_a_list_are_rules_of_their_groups_or_a_usage_error(rows):
    """Where they are accepted none is lost."""
    groups = [{"ID": "a", "Name": "x"}, {"ID": "b", "Name": "x"}]
    files = {"security-groups.json": groups, "security-group-rules.json": rows, "ports.json": []}
    try:
        policy = parse_neutron({name: json.dumps(content) for name, content in files.items()}, "x")
    except UsageError:
        return
    assert {rule.id for group in policy.groups for rule in group.rules} == {row["ID"] for row in rows}


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_any_text_of_an_export_is_a_policy_or_a_usage_error(groups, ports):
    """No traceback, whatever the files hold."""
    with contextlib.suppress(UsageError):
        parse_neutron({"security-groups.json": groups, "ports.json": ports}, "x")


KEYS = (
    *("group", "rule", "guest", "acl", "address_group", "name", "stateful", "id", "direction", "ethertype", "protocol"),
    *("port", "icmp_type", "icmp_code", "remote_prefix", "remote_group", "remote_address_group", "prefixes", "groups"),
    *("network", "mac", "ips", "port_security", "allowed_address_pairs", "prefix", "ip", "priority", "action", "ports"),
    *("source", "destination", "source_port", "schema", "bypass"),
)
TABLE = st.dictionaries(
    st.sampled_from(KEYS), VALUES | st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), max_size=2)
)
DOCUMENT = st.dictionaries(st.sampled_from(("group", "guest", "acl", "address_group")), st.lists(TABLE, max_size=2))


@settings(max_examples=300, deadline=None)
@given(DOCUMENT | TABLE)
def test_any_document_is_a_policy_or_a_usage_error(document):
    """Whatever keys and values a file has."""
    with contextlib.suppress(UsageError):
        assert isinstance(read_policy(document, "x"), Policy)


RULE = st.fixed_dictionaries(
    {"direction": st.sampled_from(("ingress", "egress"))},
    optional={
        "ethertype": st.sampled_from(("ipv4", "ipv6", "both")),
        "protocol": st.sampled_from(("tcp", "icmp", "icmpv6", "any", 0, 255, 132)),
        "port": st.sampled_from((80, "80", "1-65535", "9-8")),
        "icmp_type": st.integers(0, 256),
        "icmp_code": st.integers(0, 256),
        "remote_prefix": st.sampled_from(("10.0.0.0/8", "fd00::1", "0.0.0.0/0", "10.0.0.1/8")),
        "remote_group": st.sampled_from(("g", "h")),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RULE, max_size=4))
def test_any_rules_are_all_kept_or_refused(rules):
    """None is lost, and none has a family that its prefix or protocol is not in."""
    document = {"group": [{"name": "g", "rule": rules}], "guest": [{"name": "vm1", "groups": ["g"]}]}
    try:
        policy = read_policy(document, "x")
    except UsageError:
        return
    (group,) = policy.groups
    assert len(group.rules) == len(rules)
    for rule in group.rules:
        assert rule.families
        assert rule.remote_prefix is None or rule.families == (rule.remote_prefix.version,)
        assert rule.protocol != 58 or rule.families == (6,)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_a_policy_or_a_usage_error(text):
    """TOML or not."""
    with contextlib.suppress(UsageError):
        parse_policy(text, "x")
