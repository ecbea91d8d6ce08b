"""A policy as iptables: golden text for a tiny one, the order of decisions, and what cannot be said."""

import re
from pathlib import Path

import pytest
from support.policy_texts import forty

from netprobe.errors import UsageError
from netprobe.lab import config, iptables_rules, topology

TINY = """
[[address_group]]
name = "all of it"
prefixes = ["0.0.0.0/0", "10.9.0.0/16"]
[[group]]
name = "web"
[[group.rule]]
direction = "egress"
ethertype = "ipv4"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = "80-81"
ethertype = "ipv4"
[[group.rule]]
direction = "ingress"
protocol = "udp"
port = 53
remote_group = "web"
[[group.rule]]
direction = "ingress"
protocol = "udplite"
port = "5-6"
remote_address_group = "all of it"
[[acl]]
name = "first"
direction = "ingress"
priority = 2000
action = "reject"
protocol = "tcp"
port = 81
source = ["10.0.0.0/30", "fd00:10::/126"]
[[acl]]
name = "never asked"
direction = "ingress"
priority = 1001
action = "allow"
[[guest]]
name = "vm1"
groups = ["web"]
[[guest.allowed_address_pairs]]
prefix = "10.0.0.64/26"
mac = "fa:16:3e:00:00:aa"
[bypass]
copy_of = "vm1"
"""
GOLDEN = Path(__file__).parent / "data" / "lab_iptables_tiny.txt"


def compiled(text: str = TINY) -> iptables_rules.CompiledIptables:
    lab = config.parse(text, where="x.toml", lab="bridge")
    return iptables_rules.compile_iptables(lab, topology.endpoints(lab))


def chain(text: str, name: str) -> list[str]:
    return [line.removeprefix(f"-A {name} ") for line in text.splitlines() if line.startswith(f"-A {name} ")]


def comments(lines: list[str]) -> list[str]:
    return [re.search('--comment "([^"]*)"', line)[1] for line in lines]


def test_a_tiny_policy_compiles_to_these_rules():
    """The text was read rule by rule against Neutron's layout, and iptables-restore and ipset took it."""
    result = compiled()
    found = [result.ipsets, *(text for _, text in sorted(result.tables.items()))]
    assert "".join(found) == GOLDEN.read_text()


@pytest.mark.parametrize("text", [TINY, forty("bridge")])
def test_every_rule_has_a_comment_that_is_explained_and_every_explanation_a_rule(text):
    result = compiled(text)
    rules = [line for table in result.tables.values() for line in table.splitlines() if line.startswith("-A ")]
    assert set(comments(rules)) == set(result.rules)


@pytest.mark.parametrize("text", [TINY, forty("bridge")])
def test_no_rule_is_there_twice(text):
    for table in compiled(text).tables.values():
        rules = [re.sub(' -m comment --comment "[^"]*"', "", line) for line in table.splitlines() if line[:2] == "-A"]
        assert len(rules) == len(set(rules))


def test_answers_pass_before_invalid_is_dropped_before_acls_before_rules_before_the_default_deny():
    name = iptables_rules.chain("i", topology.endpoints(config.parse(TINY, where="x.toml", lab="bridge"))[0])
    assert comments(chain(compiled().tables[4], name)) == [
        "always vm1 ingress",
        "answers vm1 ingress",
        "conntrack-invalid vm1 ingress",
        "first",
        "web[1]",
        "web[2]",
        "web[3]",
        "default-deny vm1 ingress",
    ]


def test_what_the_default_deny_leaves_nothing_to_is_not_there():
    assert "never asked" not in compiled().rules


def test_a_prefix_of_length_0_is_two_halves_in_a_set():
    assert "add NIPv4ag-all_of_it 0.0.0.0/1\nadd NIPv4ag-all_of_it 128.0.0.0/1\n" in compiled().ipsets


def test_sets_whose_names_are_cut_alike_stay_apart():
    names = ["g" * 40 + end for end in "ab"]
    text = "".join(f'[[group]]\nname = "{name}"\n' for name in names)
    rules = "".join(f'[[group.rule]]\ndirection = "ingress"\nremote_group = "{name}"\n' for name in names)
    guests = f'[[guest]]\nname = "vm1"\ngroups = ["{names[0]}"]\n[[guest]]\nname = "vm2"\ngroups = ["{names[1]}"]\n'
    result = compiled(text + rules + guests)
    created = re.findall("create (\\S+) .* inet$", result.ipsets, re.MULTILINE)
    assert len(set(created)) == len(created) == 2
    assert max(map(len, created)) <= iptables_rules.SET_NAME_MAX


STATELESS = """
[[group]]
name = "fast"
stateful = false
[[group.rule]]
direction = "egress"
[[guest]]
name = "vm1"
groups = ["fast"]
"""


def test_a_port_of_stateless_groups_is_not_tracked_and_asks_nothing_of_conntrack():
    table = compiled(STATELESS).tables[4]
    raw = chain(table, "neutron-openvswi-PREROUTING")
    assert raw
    assert all(line.endswith("-j CT --notrack") for line in raw)
    assert "ctstate" not in table


SOME_STATELESS = """
[[acl]]
name = "dns"
direction = "egress"
priority = 1500
action = "allow-stateless"
protocol = "udp"
port = 53
[[group]]
name = "g"
[[guest]]
name = "vm1"
groups = ["g"]
"""


def test_allow_stateless_is_not_tracked_where_it_matches_and_the_rest_is():
    raw = chain(compiled(SOME_STATELESS).tables[4], "neutron-openvswi-PREROUTING")[:3]
    assert [line.partition(" -j ")[2] for line in raw] == ["CT --zone 4097", "CT --notrack", "CT --zone 4097"]
    assert raw[1].startswith("-m physdev --physdev-in tapvm1 -p udp -m udp --dport 53 ")


def test_a_port_without_port_security_has_no_chains_and_passes():
    result = compiled('[[guest]]\nname = "vm1"\nport_security = false\n')
    assert not chain(result.tables[4], "neutron-openvswi-PREROUTING")
    targets = {line.split(" -j ")[1] for line in chain(result.tables[4], "neutron-openvswi-FORWARD")}
    assert targets == {"ACCEPT"}


def test_protocol_0_is_refused_because_it_means_any_to_iptables():
    with pytest.raises(UsageError, match="is 0, which means any protocol"):
        compiled(STATELESS.replace('direction = "egress"', 'direction = "egress"\nprotocol = 0'))


def test_ids_are_comments_that_iptables_takes():
    text = STATELESS.replace('direction = "egress"', 'direction = "egress"\nid = "say \\"hi\\"\\nthere"')
    assert "say _hi__there" in compiled(text).rules
