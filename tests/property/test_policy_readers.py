"""Readers of policies are total: any input is a policy, or a UsageError."""

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import UsageError
from netprobe.model.policy import Policy
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
