"""Security groups as OVN port groups and ACLs: the text for each kind of rule, and names that OVN takes."""

import pytest

from netprobe.lab import acls, config, logical, topology

PAIR = config.load("pair")
ENDS = topology.endpoints(PAIR)

TINY = """
[[group]]
name = "web"
[[group.rule]]
direction = "{direction}"
{rule}
[[guest]]
name = "vm1"
host = "hv1"
network = "net1"
groups = ["web"]
"""


def compiled(rule: str, direction: str = "ingress") -> acls.CompiledAcls:
    lab = config.parse(TINY.format(rule=rule, direction=direction), where="x.toml", lab="pair")
    return acls.compile_acls(lab, topology.endpoints(lab))


@pytest.mark.parametrize(
    ("rule", "direction", "match"),
    [
        ("", "ingress", "outport == @sg_web && ip"),
        ("", "egress", "inport == @sg_web && ip"),
        ('ethertype = "ipv6"', "egress", "inport == @sg_web && ip6"),
        ('protocol = "icmp"', "ingress", "outport == @sg_web && (icmp4 || icmp6)"),
        ('protocol = "icmp"\nethertype = "ipv4"', "ingress", "outport == @sg_web && icmp4"),
        ('protocol = "tcp"\nport = 80', "ingress", "outport == @sg_web && tcp && tcp.dst == 80"),
        (
            'protocol = "udp"\nport = "5000-5009"\nethertype = "ipv4"',
            "ingress",
            "outport == @sg_web && ip4 && udp && 5000 <= udp.dst <= 5009",
        ),
        ('remote_prefix = "10.0.0.0/8"', "ingress", "outport == @sg_web && ip4 && ip4.src == 10.0.0.0/8"),
        ('remote_prefix = "fd00::/16"', "egress", "inport == @sg_web && ip6 && ip6.dst == fd00::/16"),
        ('remote_prefix = "0.0.0.0/0"', "ingress", "outport == @sg_web && ip4"),
        (
            'remote_group = "web"',
            "ingress",
            "outport == @sg_web && ip && (ip4.src == $sg_web_ip4 || ip6.src == $sg_web_ip6)",
        ),
        (
            'remote_group = "web"\nethertype = "ipv4"',
            "egress",
            "inport == @sg_web && ip4 && ip4.dst == $sg_web_ip4",
        ),
    ],
)
def test_a_rule_is_one_acl_that_allows(rule, direction, match):
    acl = compiled(rule, direction).acls[0]
    assert acl.match == match
    way = "to-lport" if direction == "ingress" else "from-lport"
    assert acl.words == [f"--name={acl.name}", "--label=1", "acl-add", "sg_web", way, "1002", match, "allow-related"]


def test_what_no_rule_allows_is_dropped_both_ways_at_every_port():
    found = acls.compile_acls(PAIR, ENDS)
    drops = [acl for acl in found.acls if acl.rule["kind"] == "default-deny"]
    assert [(acl.direction, acl.priority, acl.match) for acl in drops] == [
        ("ingress", 1001, "outport == @pg_all && ip"),
        ("egress", 1001, "inport == @pg_all && ip"),
    ]
    assert found.port_groups["pg_all"] == ENDS
    assert all(acl.words[-1] == "drop" for acl in drops)
    assert not any(word.startswith("--label") for acl in drops for word in acl.words)


def test_port_groups_have_the_groups_members_bypass_nics_too():
    members = acls.compile_acls(PAIR, ENDS).port_groups
    assert [end.name for end in members["sg_peers"]] == ["vm1", "vm3", "bypass1"]
    assert [end.name for end in members["sg_web"]] == ["vm2", "vm4", "ext1", "bypass2"]


def test_every_acl_has_a_name_of_its_own_that_says_the_rule():
    found = acls.compile_acls(PAIR, ENDS)
    names = [acl.name for acl in found.acls]
    assert len(set(names)) == len(names)
    assert "web: ingress tcp dport 80 from any" in names
    assert found.rules_json()["web: ingress tcp dport 80 from any"] == {
        "port": "",
        "group": "web",
        "direction": "ingress",
        "rule": "ingress tcp dport 80 from any",
        "kind": "security-group",
        "label": "6",
        "id": "web[1]",
    }
    labels = [acl.label for acl in found.acls if acl.label]
    assert labels == list(range(1, len(labels) + 1))


def test_names_are_cut_where_ovn_would_refuse_them_and_stay_apart():
    name = "g" * 70
    text = f'[[group]]\nname = "{name}"\n' + '[[group.rule]]\ndirection = "egress"\n' * 12
    text += f'[[guest]]\nname = "vm1"\nhost = "hv1"\nnetwork = "net1"\ngroups = ["{name}"]\n'
    lab = config.parse(text, where="x.toml", lab="pair")
    names = [acl.name for acl in acls.compile_acls(lab, topology.endpoints(lab)).acls if acl.label]
    assert len(set(names)) == len(names) == 12
    assert max(map(len, names)) == acls.NAME_MAX
    assert names[11].endswith(" #12")


def test_groups_whose_names_look_alike_to_ovn_stay_apart():
    text = '[[group]]\nname = "a b"\n[[group]]\nname = "a-b"\n'
    text += '[[guest]]\nname = "vm1"\nhost = "hv1"\nnetwork = "net1"\ngroups = ["a-b"]\n'
    lab = config.parse(text, where="x.toml", lab="pair")
    found = acls.compile_acls(lab, topology.endpoints(lab)).port_groups
    assert {name: [end.name for end in ends] for name, ends in found.items() if name != "pg_all"} == {
        "sg_a_b": [],
        "sg_a_b.1": ["vm1", "bypass1", "bypass2"],
    }


def test_the_transaction_has_ports_that_may_only_send_from_their_own_addresses_and_the_nat():
    words = logical.commands(PAIR.shape, ENDS, topology.bound_policy(PAIR, ENDS), acls.compile_acls(PAIR, ENDS))
    text = " ".join(words).split(" -- ")
    vm1 = ENDS[0]
    assert f"lsp-set-port-security {vm1.iface_id} {vm1.mac} 10.1.0.1 fd00:1::1" in text
    assert [line for line in text if "nat" in line.split()[0]] == [
        "lr-nat-add r1 snat 172.24.0.1 10.1.0.0/24",
        "lr-nat-add r1 snat 172.24.0.1 10.2.0.0/24",
        "lr-nat-add r1 dnat_and_snat 172.24.0.101 10.1.0.1",
    ]
    assert "lrp-set-gateway-chassis r1-ext hv1" in text
    assert "lsp-set-options ext-provider network_name=provider" in text
