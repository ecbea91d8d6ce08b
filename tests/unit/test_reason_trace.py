"""Traces of Open vSwitch 3.1.0 and what they mean: verdict, deciding rule, reason and its evidence."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from netprobe.judge.conntrack import CtState, FiveTuple, parse_dump
from netprobe.judge.counter_pattern import PatternResult, PatternVerdict
from netprobe.judge.ofproto_trace import Verdict, five_tuple, parse_trace, probe_flow
from netprobe.judge.reason import (
    KINDS,
    NEUTRON_TABLES,
    Evidence,
    Reason,
    ReasonCode,
    deciding_step,
    explain,
    unknown_reason,
)
from netprobe.judge.rewriting import next_states
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP

DATA = Path(__file__).parent / "data"
DENY = 0x1AB0000000022005
RULES = {
    f"{DENY:#x}": {
        "port": "vm2",
        "group": "web",
        "direction": "ingress",
        "rule": "no rule allows it",
        "kind": "default-deny",
    }
}


def trace(name):
    return parse_trace((DATA / f"trace_{name}.txt").read_text())


def test_a_drop_behind_conntrack_is_read_table_by_table():
    found = trace("default_deny")
    assert found.unread_lines == 0
    assert found.verdict is Verdict.DROPPED
    assert found.ports == ()
    assert [(one.ct_state, one.zone) for one in found.passes] == [("", None), ("trk|new", 644)]
    assert [step.table for step in found.steps] == [0, 60, 71, 72, 73, 81, 82, 93]
    assert found.passes[0].datapath == "ct(zone=644),recirc(0x4a)"
    last = found.steps[-2]
    assert (last.bridge, last.match, last.priority, last.cookie) == ("br-int", "ct_state=-est,reg5=0x2", 40, DENY)
    assert last.actions == ("resubmit(,93)",)


def test_the_deciding_rule_is_the_one_that_sent_the_packet_to_the_common_drop_table():
    assert trace("default_deny").deciding().table == 82
    assert trace("anti_spoofing").deciding().table == 71
    assert trace("invalid").deciding().match == "ct_state=+inv+trk"


def test_a_catch_all_decides_when_its_cookie_names_a_rule_that_does():
    text = " 0. priority 0, cookie 0x5\n    resubmit(,93)\n93. priority 0\n    drop\n"
    found = parse_trace(
        f'Flow: x\n\nbridge("b")\n----\n 0. in_port=1, priority 9\n    goto_table:1\n{text}Datapath actions: drop\n'
    )
    assert deciding_step(found, {}).match == "in_port=1"
    assert deciding_step(found, {"0x5": {"kind": "default-deny"}}).cookie == 5
    assert deciding_step(found, {"0x5": {"kind": "plumbing"}}).match == "in_port=1"


@pytest.mark.parametrize(
    ("name", "verdict", "ports"),
    [
        ("forwarded", Verdict.FORWARDED, ("tapb",)),
        ("flood", Verdict.FORWARDED, ("br-int", "tapb", "tapc")),
        ("clone", Verdict.FORWARDED, ("tapb", "tapc")),
        ("meter", Verdict.FORWARDED, ("tapb",)),
        ("controller", Verdict.CONTROLLER, ()),
        ("table_miss", Verdict.DROPPED, ()),
        ("no_port", Verdict.DROPPED, ()),
    ],
)
def test_the_verdict_is_that_of_the_datapath_actions(name, verdict, ports):
    assert (trace(name).verdict, trace(name).ports) == (verdict, ports)


def test_a_tunnel_counts_as_the_port_that_the_tunnel_leaves_by():
    push = "tnl_push(tnl_port(5),header(size=50,type=4,eth(dst=aa,src=bb,dl_type=0x0800)),out_port(und0))"
    found = parse_trace(f"Flow: x\n 0. priority 0\nDatapath actions: clone({push},drop),set(eth(src=1)),ct(zone=3),7\n")
    assert found.ports == ("7", "und0")


@pytest.mark.parametrize(
    ("name", "code", "table"),
    [
        ("default_deny", ReasonCode.SECURITY_GROUP, 82),
        ("anti_spoofing", ReasonCode.ANTI_SPOOFING, 71),
        ("invalid", ReasonCode.CONNTRACK_INVALID, 72),
        ("table_miss", ReasonCode.TABLE_MISS, 60),
        ("no_port", ReasonCode.PORT_DOWN, 0),
        ("controller", ReasonCode.CONTROLLER, 0),
        ("meter", ReasonCode.RATE_LIMIT, 0),
        ("forwarded", ReasonCode.LINK_LOSS, None),
        ("flood", ReasonCode.LINK_LOSS, None),
    ],
)
def test_each_kind_of_loss_has_its_own_code(name, code, table):
    reason = explain(trace(name), RULES, expected_port="tapb", tables=NEUTRON_TABLES)
    assert (reason.code, reason.table, reason.evidence) == (code, table, Evidence.PREDICTED)
    assert reason.detail


def test_a_drop_that_no_map_and_no_layout_explains_is_blamed_on_its_rule_alone():
    reason = explain(trace("anti_spoofing"), {})
    assert (reason.code, reason.table, reason.priority, reason.rule) == (ReasonCode.RULE_DROP, 71, 10, "")


def test_a_packet_that_goes_to_another_port_is_forwarded_elsewhere():
    reason = explain(trace("forwarded"), {}, expected_port="tapc")
    assert (reason.code, reason.table) == (ReasonCode.FORWARDED_ELSEWHERE, 82)
    moved = parse_trace("Flow: x\n 0. dl_dst=1, priority 5, cookie 0x9\n    output:tapb\nDatapath actions: tapb\n")
    reason = explain(moved, {}, expected_port="tapc")
    assert (reason.code, reason.cookie) == (ReasonCode.FORWARDED_ELSEWHERE, 9)


def test_a_mirrors_copy_is_no_delivery():
    deny = " 0. dl_dst=1, priority 5, cookie 0x9\n    resubmit(,93)\n93. priority 0\n    drop\n"
    reason = explain(parse_trace(f"Flow: x\n{deny}Datapath actions: mirror0\n"), {}, expected_port="tapb")
    assert (reason.code, reason.cookie) == (ReasonCode.RULE_DROP, 9)


def test_a_bridge_that_knows_no_way_says_no_destination():
    text = "Flow: x\n 0. reg6=1, priority 5\n    resubmit(,94)\n94. priority 1\n    NORMAL\n     -> no other port\n"
    reason = explain(parse_trace(f"{text}Datapath actions: drop\n"), {})
    assert (reason.code, reason.table, reason.detail) == (ReasonCode.NO_DESTINATION, 94, "no other port")


def test_only_catch_alls_mean_that_no_rule_knew_the_packet():
    text = (
        " 0. priority 0\n    resubmit(,60)\n60. priority 0, cookie 0x8\n    resubmit(,93)\n93. priority 0\n    drop\n"
    )
    reason = explain(
        parse_trace(f"Flow: x\n{text}Datapath actions: drop\n"), {"0x8": {"kind": "plumbing", "rule": "no guest's"}}
    )
    assert (reason.code, reason.table, reason.rule) == (ReasonCode.TABLE_MISS, 60, "no guest's")


def test_what_cannot_be_read_is_unknown_and_never_a_timeout():
    for text in ("", "garbage", "Flow: x\n 0. priority 0\n"):
        assert explain(parse_trace(text), {}).code is ReasonCode.UNKNOWN
    assert "timeout" not in {code.value for code in ReasonCode}


def test_the_reason_as_json_names_the_rule_as_the_user_wrote_it():
    reason = explain(trace("default_deny"), RULES, expected_port="tapb")
    assert reason.to_json() == {
        "code": "security-group",
        "table": 82,
        "cookie": "0x1ab0000000022005",
        "priority": 40,
        "match": "ct_state=-est,reg5=0x2",
        "rule": "vm2 [web]: no rule allows it",
        "chassis": None,
        "evidence": "predicted",
        "detail": "a security group's rule or default deny in table 82 drops it",
    }


def pattern(verdict, p_value=1e-5):
    return PatternResult(verdict, p_value, (1, 2), (1, 2))


def test_only_a_confirmed_pattern_makes_the_reason_measured():
    found = trace("default_deny")
    measured = explain(found, RULES, pattern(PatternVerdict.CONFIRMED))
    assert (measured.code, measured.evidence) == (ReasonCode.SECURITY_GROUP, Evidence.COUNTER_PATTERN)
    drowned = explain(found, RULES, pattern(PatternVerdict.UNDECIDED))
    assert (drowned.code, drowned.evidence) == (ReasonCode.SECURITY_GROUP, Evidence.PREDICTED)


def test_a_pattern_that_missed_the_rule_takes_the_prediction_back():
    reason = explain(trace("default_deny"), RULES, pattern(PatternVerdict.NOT_HIT))
    assert (reason.code, reason.table) == (ReasonCode.UNKNOWN, None)
    assert "security-group in table 82" in reason.detail


def test_a_pattern_on_a_rule_with_a_meter_does_not_prove_that_the_meter_dropped():
    reason = explain(trace("meter"), RULES, pattern(PatternVerdict.CONFIRMED), expected_port="tapb")
    assert (reason.code, reason.evidence) == (ReasonCode.RATE_LIMIT, Evidence.PREDICTED)


def test_a_packet_in_is_evidence_of_its_own():
    assert explain(trace("default_deny"), RULES, evidence=Evidence.PACKET_IN).evidence is Evidence.PACKET_IN


def test_the_page_for_people_lists_every_code_every_evidence_and_every_kind():
    page = (Path(__file__).parents[2] / "docs" / "reasons.md").read_text()
    for name in [*(c.value for c in ReasonCode), *(e.value for e in Evidence), *KINDS]:
        assert f"`{name}`" in page, name


def test_unknown_names_no_rule():
    assert unknown_reason("x") == Reason(ReasonCode.UNKNOWN, Evidence.PREDICTED, "x")
    assert unknown_reason("x").to_json()["cookie"] is None


def session(protocol, family=4, flow=Flow.SAME, src_ports=()):
    kind = TypeP(protocol, family, 200, 3, 61000, 443, flow)
    ips = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    macs = bytes.fromhex("fa163e000001"), bytes.fromhex("fa163e000002")
    return ProbeSession(0xABCD0077, bytes(16), kind, *macs, *map(ip_address, ips), 2, src_ports)


@pytest.mark.parametrize(
    ("made", "flow", "tuple_"),
    [
        (
            session(Protocol.TCP, flow=Flow.NEW_PER_PROBE, src_ports=(61005, 61006)),
            (
                "tcp,dl_src=fa:16:3e:00:00:01,dl_dst=fa:16:3e:00:00:02,nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_tos=12,nw_ttl=64,"
                "tcp_src=61006,tcp_dst=443,tcp_flags=syn"
            ),
            FiveTuple(6, ip_address("10.0.0.1"), ip_address("10.0.0.2"), 61006, 443),
        ),
        (
            session(Protocol.UDP, 6),
            (
                "udp6,dl_src=fa:16:3e:00:00:01,dl_dst=fa:16:3e:00:00:02,ipv6_src=fd00::1,ipv6_dst=fd00::2,nw_tos=12,nw_ttl=64,"
                "udp_src=61000,udp_dst=443"
            ),
            FiveTuple(17, ip_address("fd00::1"), ip_address("fd00::2"), 61000, 443),
        ),
        (
            session(Protocol.ICMP, 6),
            (
                "icmp6,dl_src=fa:16:3e:00:00:01,dl_dst=fa:16:3e:00:00:02,ipv6_src=fd00::1,ipv6_dst=fd00::2,nw_tos=12,nw_ttl=64,"
                "icmpv6_type=128,icmpv6_code=0"
            ),
            FiveTuple(58, ip_address("fd00::1"), ip_address("fd00::2"), 0x77, 0, 128),
        ),
    ],
)
def test_a_probe_is_asked_about_with_its_own_headers(made, flow, tuple_):
    assert probe_flow(made, 1, 4) == f"in_port=4,{flow}"
    assert five_tuple(made, 1) == tuple_


def test_the_states_come_from_the_entries_of_each_zone():
    there, back = "src=10.0.0.1,dst=10.0.0.2,sport=61005,dport=443", "src=10.0.0.2,dst=10.0.0.1,sport=443,dport=61005"
    text = f"tcp,orig=({there}),reply=({back})"
    made = five_tuple(session(Protocol.TCP, flow=Flow.NEW_PER_PROBE, src_ports=(61005, 61006)), 0)
    up = f"{text},zone=644,protoinfo=(state=ESTABLISHED)"
    assert next_states(trace("default_deny"), made, parse_dump(up).entries) == (CtState.INVALID,)
    assert next_states(trace("default_deny"), made, parse_dump(up.replace("644", "645")).entries) == (CtState.NEW,)
    assert next_states(trace("table_miss"), made, ()) == ()
