"""Security groups as flows: golden text for a tiny policy, and what must hold of any."""

import re
from pathlib import Path

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config, flow_table, flows, topology

TINY = """
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
port = "5000-5002"
remote_group = "web"
[[guest]]
name = "vm1"
groups = ["web"]
"""
GOLDEN = Path(__file__).parent / "data" / "lab_flows_tiny.txt"


def compiled(text: str | None = None) -> flows.CompiledFlows:
    lab = config.load("single") if text is None else config.parse(text, where="x.toml")
    return flows.compile_flows(lab, topology.endpoints(lab), zone=1)


def fields(flow: str) -> tuple[int, int, int, str, str]:
    match = re.fullmatch(r"cookie=(0x[0-9a-f]+),table=(\d+),priority=(\d+),?(.*?),?actions=(.*)", flow)
    assert match, flow
    return int(match[1], 16), int(match[2]), int(match[3]), match[4], match[5]


def test_a_tiny_policy_compiles_to_these_flows():
    """The text was read flow by flow against Neutron's layout, and OVS took it."""
    assert [*compiled(TINY).flows] == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("text", [None, TINY])
def test_every_flow_has_a_cookie_that_is_explained_and_every_explanation_a_flow(text):
    result = compiled(text)
    assert {fields(flow)[0] for flow in result.flows} == set(result.rules)


@pytest.mark.parametrize("text", [None, TINY])
def test_no_two_flows_share_a_match(text):
    matches = [fields(flow)[1:4] for flow in compiled(text).flows]
    assert len(matches) == len(set(matches))


def test_a_cookie_means_one_port_direction_and_rule():
    meanings = [(i.port, i.group, i.direction, i.rule, i.kind) for i in compiled().rules.values()]
    assert len(meanings) == len(set(meanings))


def test_cookies_look_in_the_state_file_as_ovs_prints_them():
    for cookie in compiled().rules_json():
        assert re.fullmatch(r"0x1ab0[0-9a-f]{12}", cookie)


def test_every_port_has_its_own_spoofing_invalid_and_default_drop_in_each_direction():
    kinds = [(i.port, i.direction, i.kind) for i in compiled().rules.values()]
    for port in ("vm1", "vm2", "vm3", "bypass"):
        assert kinds.count((port, "egress", "anti-spoofing")) == 1
        for direction in ("egress", "ingress"):
            for kind in ("default-deny", "conntrack-invalid", "revoked"):
                assert kinds.count((port, direction, kind)) == 1


def test_a_drop_is_decided_where_its_rule_is_and_done_in_table_93():
    rules = compiled().rules
    for flow in compiled().flows:
        cookie, table, _, _, actions = fields(flow)
        if rules[cookie].kind in ("anti-spoofing", "default-deny", "conntrack-invalid", "revoked"):
            assert actions.endswith("resubmit(,93)")
        if actions == "drop":
            assert table in (92, 93)


def test_a_rule_that_two_groups_share_is_attributed_to_the_first():
    text = TINY.replace('groups = ["web"]', 'groups = ["web", "more"]')
    more = """
[[group]]
name = "more"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = "80-81"
ethertype = "ipv4"
"""
    result = compiled(text + more)
    owners = {result.rules[fields(flow)[0]].group for flow in result.flows if "tp_dst=0x50/0xfffe" in flow}
    assert owners == {"web"}


def test_remote_groups_are_their_members_addresses_with_the_bypass_nic():
    lines = [flow for flow in compiled(TINY).flows if "tp_dst=0x1388/0xfffe" in flow and ",reg5=0x1," in flow]
    for address in ("nw_src=10.0.0.1,", "nw_src=10.0.0.100,", "ipv6_src=fd00:10::1,", "ipv6_src=fd00:10::100,"):
        assert any(address in line for line in lines)


def test_more_rules_than_cookies_can_number_are_refused():
    rule = '[[group.rule]]\ndirection = "ingress"\nprotocol = "tcp"\nport = {}\n'
    rules = "".join(rule.format(port) for port in range(1, flow_table.RULES_MAX + 1))
    text = f'[[group]]\nname = "g"\n{rules}[[guest]]\nname = "vm1"\ngroups = ["g"]\n'
    with pytest.raises(UsageError, match="more than"):
        compiled(text)
