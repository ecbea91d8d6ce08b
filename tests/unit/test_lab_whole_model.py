"""What a policy can say beyond groups of TCP and UDP, as flows and as ACLs: one example for each thing."""

import pytest
from support.policy_texts import forty

from netprobe.errors import UsageError
from netprobe.lab import acls, config, flows, logical, topology

BASE = """
[[group]]
name = "g"
[[group.rule]]
direction = "ingress"
{rule}
[[guest]]
name = "vm1"
groups = ["g"]
{rest}
[bypass]
copy_of = "vm1"
"""


def flow_lines(rule: str = "", rest: str = "", text: str = BASE) -> list[str]:
    lab = config.parse(text.format(rule=rule, rest=rest), where="x.toml")
    return [*flows.compile_flows(lab, topology.endpoints(lab), zone=1).flows]


def with_table(lines: list[str], table: int) -> list[str]:
    return [line.partition(",")[2] for line in lines if f",table={table}," in line]


def acl_of(rule: str = "", rest: str = "", text: str = BASE) -> acls.CompiledAcls:
    lab = config.parse(text.format(rule=rule, rest=rest), where="x.toml", lab="pair")
    return acls.compile_acls(lab, topology.endpoints(lab))


def commands(text: str) -> list[str]:
    lab = config.parse(text, where="x.toml", lab="pair")
    ends = topology.endpoints(lab)
    words = logical.commands(lab.shape, ends, topology.bound_policy(lab, ends), acls.compile_acls(lab, ends))
    return " ".join(words).split(" -- ")


@pytest.mark.parametrize(
    ("rule", "flow", "acl"),
    [
        ('protocol = 47\nethertype = "ipv4"', "ip,nw_proto=47,", "ip4 && ip.proto == 47"),
        ("protocol = 112", "ipv6,nw_proto=112,", "ip && ip.proto == 112"),
        ('protocol = "sctp"\nport = 9\nethertype = "ipv6"', "sctp6,tp_dst=9,", "ip6 && sctp && sctp.dst == 9"),
        (
            'protocol = "icmp"\nicmp_type = 8\nicmp_code = 0\nethertype = "ipv4"',
            "icmp,icmp_type=8,icmp_code=0,",
            "icmp4 && icmp4.type == 8 && icmp4.code == 0",
        ),
        ('protocol = "icmpv6"\nicmp_type = 128', "icmp6,icmp_type=128,", "icmp6 && icmp6.type == 128"),
    ],
)
def test_protocols_and_icmp(rule, flow, acl):
    assert any(flow in line for line in with_table(flow_lines(rule), 82))
    assert acl_of(rule).acls[0].match == f"outport == @sg_g && {acl}"


@pytest.mark.parametrize("compile_", [flow_lines, acl_of])
def test_ports_that_a_backend_cannot_match_are_refused(compile_):
    with pytest.raises(UsageError, match=r"rule g\[0\]\.port: .*cannot match ports of udplite.*tcp, udp, sctp"):
        compile_('protocol = "udplite"\nport = 9')


ADDRESS_GROUP = '[[address_group]]\nname = "a-b"\nprefixes = ["10.9.0.0/16", "fd00:9::/32"]\n'


def test_an_address_group_is_a_flow_for_each_prefix_and_an_address_set():
    rule = 'remote_address_group = "a-b"'
    assert sum("nw_src=10.9.0.0/16" in line for line in with_table(flow_lines(rule, ADDRESS_GROUP), 82)) == 2 * 2
    found = acl_of(rule, ADDRESS_GROUP)
    assert found.acls[0].match.endswith("(ip4.src == $ag_a_b_ip4 || ip6.src == $ag_a_b_ip6)")
    assert {name: [str(p) for p in prefixes] for name, prefixes in found.address_sets.items()} == {
        "ag_a_b_ip4": ["10.9.0.0/16"],
        "ag_a_b_ip6": ["fd00:9::/32"],
    }


PAIR = '[[guest.allowed_address_pairs]]\nprefix = "10.0.0.64/26"\n'
OTHER_MAC = f'{PAIR}mac = "fa:16:3e:00:00:aa"\n'


def test_an_allowed_pair_may_be_sent_from_and_counts_as_a_member():
    lines = flow_lines('remote_group = "g"', PAIR)
    assert any("nw_src=10.0.0.64/26,actions=ct(" in line for line in with_table(lines, 71))
    assert any("arp_spa=10.0.0.64/26,actions=resubmit(,94)" in line for line in with_table(lines, 71))
    assert any("nw_src=10.0.0.64/26" in line for line in with_table(lines, 82))
    found = acl_of('remote_group = "g"', PAIR)
    assert "$as_sg_g_ip4" in found.acls[0].match  # the set that OVN makes of the port group has no pairs
    assert "10.0.0.64/26" in map(str, found.address_sets["as_sg_g_ip4"])


def test_an_allowed_pair_with_another_mac_is_reached_by_it():
    lines = flow_lines("", OTHER_MAC)
    assert any("dl_dst=fa:16:3e:00:00:aa,actions=load" in line for line in with_table(lines, 73))
    assert any("dl_dst=fa:16:3e:00:00:aa,actions=output:1" in line for line in with_table(lines, 94))
    assert any("dl_src=fa:16:3e:00:00:aa,nw_src=10.0.0.64/26" in line for line in with_table(lines, 71))
    text = BASE.format(rule="", rest=OTHER_MAC)
    vm1 = next(line for line in commands(text) if line.startswith("lsp-set-port-security"))
    assert vm1.endswith(" fa:16:3e:00:00:01 10.1.0.1 fd00:1::1 fa:16:3e:00:00:aa 10.0.0.64/26")


OPEN = (
    '[[group]]\nname = "g"\n[[guest]]\nname = "vm1"\nport_security = false\n[[guest]]\nname = "vm2"\ngroups = ["g"]\n'
)


def test_without_port_security_a_port_goes_past_its_own_tables_into_those_of_others():
    lines = flow_lines(text=OPEN)
    assert any("in_port=1,actions=load:0x1->" in line and line.endswith("resubmit(,73)") for line in lines)
    assert not any("reg5=0x1," in line for table in (71, 72, 81, 82) for line in with_table(lines, table))


def test_without_port_security_ovn_drops_nothing_there():
    found = acl_of(text=OPEN)
    assert [end.name for end in found.port_groups["pg_all"]] == ["vm2", "bypass2"]
    lines = commands(OPEN)
    (own,) = [line for line in lines if line.startswith("lsp-set-addresses") and " 10.1.0.1 " in line]
    assert own.endswith(" unknown")
    guarded = [line for line in lines if line.startswith("lsp-set-port-security")]
    assert len(guarded) == 2
    assert not any(" 10.1.0.1 " in line for line in guarded)


ACLS = """
[[acl]]
name = "{name}"
direction = "ingress"
priority = {priority}
action = "{action}"
protocol = "tcp"
source_port = 5
source = ["10.0.0.0/30", "10.0.0.8/30"]
"""


def test_acls_stand_above_the_rules_of_groups_in_their_order_and_a_drop_before_its_equal():
    rest = "".join(
        ACLS.format(name=name, priority=priority, action=action)
        for name, priority, action in (("low", 1100, "drop"), ("top", 32767, "allow"), ("equal", 32767, "reject"))
    )
    lab = config.parse(BASE.format(rule="", rest=rest), where="x.toml")
    result = flows.compile_flows(lab, topology.endpoints(lab), zone=1)
    of = {info.id: f"cookie={cookie:#x}," for cookie, info in result.rules.items() if info.port == "vm1"}
    priorities = {
        name: {int(line.split("priority=")[1].split(",")[0]) for line in result.flows if line.startswith(of[name])}
        for name in ("low", "top", "equal", "g[0]")
    }
    order = [priority for name in ("equal", "top", "low", "g[0]") for priority in priorities[name]]
    assert len(order) == 4
    assert order == sorted(order, reverse=True)


def test_an_acl_is_an_acl_of_its_ports_with_its_action():
    acl = next(
        acl
        for acl in acl_of(rest=ACLS.format(name="no way", priority=1100, action="reject")).acls
        if acl.priority == 1100
    )
    assert (acl.action.value, acl.port_group, acl.label) == ("reject", "acl_no_way", 0)
    assert acl.match == (
        "outport == @acl_no_way && ip4 && tcp && tcp.src == 5 && (ip4.src == 10.0.0.0/30 || ip4.src == 10.0.0.8/30)"
    )
    assert (acl.rule["id"], acl.rule["kind"]) == ("no way", "network-acl")


def test_what_nobody_wrote_has_an_id_too():
    ids = {info["id"] for info in acl_of().rules_json().values()}
    assert {"g[0]", "default-deny ingress", "default-deny egress", "anti-spoofing vm1 egress"} <= ids


STATELESS = """
[[group]]
name = "fast"
stateful = false
[[group.rule]]
direction = "ingress"
protocol = "udp"
port = 5
[[group]]
name = "slow"
[[guest]]
name = "vm1"
groups = ["fast"]
[[guest]]
name = "vm2"
groups = ["slow"]
[bypass]
copy_of = "vm2"
"""


def test_a_stateless_port_asks_about_each_packet_and_keeps_what_others_track():
    lines = flow_lines(text=STATELESS)
    own = [line for table in (71, 72, 81, 82) for line in with_table(lines, table) if "reg5=0x1" in line]
    assert not any("ct(table" in line or "+inv" in line or "+rpl" in line for line in own)
    commit = "ct(commit,zone=NXM_NX_REG6[0..15])"
    assert [line for line in own if "tp_dst=5" in line and "udp," in line] == [
        f"table=82,priority=76,ct_state=+new+trk,udp,tp_dst=5,reg5=0x1,actions={commit},output:1,resubmit(,92)",
        "table=82,priority=76,ct_state=-new,udp,tp_dst=5,reg5=0x1,actions=output:1",
    ]


def test_answers_to_a_stateless_port_are_asked_about_there():
    answers = [line for line in with_table(flow_lines(text=STATELESS), 72) if "+est-rel+rpl" in line]
    assert answers
    assert all(line.endswith("resubmit(,73)") for line in answers)


def test_a_stateless_group_is_allow_stateless():
    acl = acl_of(text=STATELESS).acls[0]
    assert (acl.action.value, acl.label) == ("allow-stateless", 0)


def test_allow_stateless_goes_past_conntrack_with_the_ports_own_addresses():
    acl = '[[acl]]\nname = "dns"\ndirection = "egress"\npriority = 1500\naction = "allow-stateless"\n'
    lines = flow_lines(rest=f'{acl}protocol = "udp"\nport = 53\n')
    past = [line for line in with_table(lines, 71) if "priority=66" in line and "in_port=1," in line]
    assert [line.split("priority=66,")[1] for line in past] == [
        "udp,nw_src=10.0.0.1,tp_dst=53,reg5=0x1,in_port=1,dl_src=fa:16:3e:00:00:01,actions=resubmit(,72)",
        "udp6,ipv6_src=fd00:10::1,tp_dst=53,reg5=0x1,in_port=1,dl_src=fa:16:3e:00:00:01,actions=resubmit(,72)",
    ]


@pytest.mark.parametrize("lab", ["single", "pair", "bridge"])
def test_the_forty_rules_are_forty_and_each_has_a_rule_in_each_lab(lab):
    from netprobe.lab.build import rules_of  # noqa: PLC0415

    found = config.parse(forty(lab), where="forty.toml", lab=lab)
    ids = [rule.id for group in found.groups for rule in group.rules]
    assert len(ids) == 40
    assert set(ids) | {acl.id for acl in found.policy.acls} <= {info["id"] for info in rules_of(found).values()}


def test_a_guest_of_the_pair_is_somewhere_without_being_told():
    lab = config.parse(forty("pair"), where="forty.toml", lab="pair")
    assert [(guest.host, guest.network) for guest in lab.guests] == [
        ("hv1", "net1"),
        ("hv2", "net1"),
        ("hv1", "net1"),
        ("hv2", "net1"),
        ("hv1", "net1"),
    ]
    assert [bypass.copy_of for bypass in lab.bypasses] == ["vm5", "vm5"]


def test_addresses_that_the_lab_does_not_give_are_refused():
    lab = config.parse('[[guest]]\nname = "vm1"\nips = ["10.0.0.9"]\n', where="x.toml")
    with pytest.raises(UsageError, match=r"has 10\.0\.0\.9, and the lab gives it fa:16:3e:00:00:01, 10\.0\.0\.1"):
        topology.bound_policy(lab, topology.endpoints(lab))
