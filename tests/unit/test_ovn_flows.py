"""From OVN's rules to what people wrote: traces and rows of OVN 23.03.1 on two chassis, recorded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ovn_rows import ROWS, FakeDatabases

from netprobe.errors import HostNotReadyError
from netprobe.host.ovn_flows import OvnRuleBook
from netprobe.judge.counter_pattern import PatternResult, PatternVerdict
from netprobe.judge.ofproto_trace import Trace, TracePass, TraceStep, parse_trace
from netprobe.judge.ovn_flows import (
    OvnDecision,
    OvnKind,
    datapath_key,
    earlier_steps,
    find_flow,
    find_north,
    logical_tables,
    ovn_step,
    owner_of,
    port_key,
    row_map,
    row_uuid,
)
from netprobe.judge.reason import Evidence, ReasonCode, explain
from netprobe.model.topology import OvnPlaces

DATA = Path(__file__).parent / "data"
BRIDGE = "br-int"


def trace_text(name):
    return (DATA / f"trace_ovn_{name}.txt").read_text()


def trace(name):
    return parse_trace(trace_text(name))


def book(client):
    return OvnRuleBook(OvnPlaces("unix:/nb", "unix:/sb"), client=client)


def decide(name, client=None):
    return book(client or FakeDatabases()).decide(trace(name), BRIDGE)


@pytest.mark.parametrize(
    ("name", "code", "rule"),
    [
        ("far_acl", "acl", 'ACL "no-9999" (uuid a27edfc8…), to-lport, priority 1004, drop, on hv2'),
        ("far_deny", "acl", "ACL of port group web (uuid 5e7ee591…), to-lport, priority 1000, drop, on hv2"),
        ("far_reject", "acl", 'ACL "reject-81" (uuid 2f547780…), to-lport, priority 1004, reject, on hv2'),
        ("near_acl", "acl", 'ACL "no-smtp" (uuid 8a290a3b…), from-lport, priority 1002, drop, on hv2'),
        ("port_security", "port-security", "port security of v1, stage ls_in_apply_port_sec, on hv2"),
        ("out_port_security", "port-security", "port security of v2, stage ls_out_apply_port_sec, on hv2"),
        ("no_route", "router", "router r1: stage lr_in_ip_routing, priority 0, on hv2"),
        (
            "discard",
            "router",
            "router r1: stage lr_in_ip_routing, priority 49, route (uuid 95d2e2d0…), discard, on hv2",
        ),
        (
            "policy",
            "router",
            "router r1: stage lr_in_policy, priority 500, routing policy (uuid deab0092…), priority 500, drop, on hv2",
        ),
        ("arp_request", "router", "router r1: stage lr_in_arp_request, priority 100, on hv2"),
        ("unknown_mac", "no-destination", "switch net1: stage ls_in_l2_unknown, priority 50, on hv2"),
        ("invalid", "conntrack-invalid", "switch net1: stage ls_out_acl, priority 65532, on hv2"),
        ("meter", "rate-limit", "QoS rule of switch net1 (uuid d8a55d75…), from-lport, priority 900, on hv2"),
        ("unbound", "table-miss", "OVN's physical table 40 (local output), on hv2"),
    ],
)
def test_each_drop_is_traced_back_to_what_people_wrote(name, code, rule):
    """The ACL, port security, router stage, route, policy, QoS rule or table that decided, and on which chassis."""
    found = trace(name)
    reason = explain(found, {}, ovn=decide(name), chassis="hv2", expected_port="" if name == "meter" else "tapv2")
    assert (reason.code.value, reason.rule, reason.chassis) == (code, rule, "hv2")
    assert reason.evidence is Evidence.PREDICTED
    assert reason.detail
    assert found.unread_lines == 0


def test_the_detail_says_whose_acl_it_is_and_what_it_matches():
    reason = explain(trace("far_acl"), {}, ovn=decide("far_acl"))
    assert reason.detail == (
        "an ACL of port group web drops it: outport == @web && tcp.dst == 9999 (stage ls_out_acl of net1)"
    )
    assert "ovn-controller answers" in explain(trace("far_reject"), {}, ovn=decide("far_reject")).detail


@pytest.mark.parametrize("name", ["into_tunnel", "far_allow", "snat", "provider"])
def test_what_ovn_forwards_is_nobodys_fault(name):
    """No row is asked for, and what was lost was lost outside the rules."""
    client = FakeDatabases()
    decision = decide(name, client)
    assert decision is None
    assert client.commands == []
    assert explain(trace(name), {}, ovn=decision).code is ReasonCode.LINK_LOSS


def test_a_drop_behind_a_bridge_that_floods_is_the_drop_and_not_the_flood():
    """What comes from a provider network is flooded to the bridge itself, too; OVN's rule decided all the same."""
    found = trace("provider_far")
    assert found.ports == ("br-und",)
    step = ovn_step(found, BRIDGE)
    assert (step.bridge, step.table) == (BRIDGE, 46)
    reason = explain(found, {}, ovn=OvnDecision(step), expected_port="tapext1", chassis="hv2")
    assert (reason.code, reason.table) == (ReasonCode.RULE_DROP, 46)


def test_a_table_behind_another_bridge_belongs_to_the_bridge_that_its_depth_says():
    """OVS prints the underlay's bridge inside the table that outputs to the tunnel, and then goes on."""
    steps = [(step.bridge, step.table) for step in trace("into_tunnel").steps]
    assert steps[-3:] == [(BRIDGE, 39), ("br-und", 0), (BRIDGE, 40)]
    assert trace("into_tunnel").steps[-3].actions[-1] == "resubmit(,40)"
    # Behind conntrack it prints the bridge that the packet came in by, and goes on in the one that tracked it.
    assert {step.bridge for step in trace("provider_far").passes[1].steps} == {BRIDGE}


def test_a_tunnel_without_a_neighbour_is_down_and_no_rule_of_ovns_is_blamed():
    reason = explain(trace("no_neighbour"), {}, ovn=decide("no_neighbour"), chassis="hv1")
    assert (reason.code, reason.table, reason.chassis) == (ReasonCode.NO_DESTINATION, 39, "hv1")
    assert "172.30.0.2" in reason.detail


def test_a_rule_whose_logical_flow_is_gone_is_named_by_its_table():
    reason = explain(trace("far_deny"), {}, ovn=decide("far_deny", FakeDatabases({})))
    assert (reason.code, reason.table, reason.cookie) == (ReasonCode.RULE_DROP, 46, 0x92B508C2)
    assert "table 46" in reason.rule


def test_the_databases_are_asked_for_few_rows_and_only_to_read():
    """By stage and priority, or by key: never for a whole table of logical flows or ACLs."""
    client = FakeDatabases()
    decide("far_acl", client)
    for command in client.commands:
        assert command[0] == "ovsdb-client"
        assert "query" in command  # carried out and undone by the server
        for query in json.loads(command[-1])[1:]:
            assert query["op"] == "select"
            assert query["where"], query
    remotes = [command[command.index("query") + 1] for command in client.commands]
    assert set(remotes) == {"unix:/sb", "unix:/nb"}


def test_a_connections_label_names_the_acl_that_admitted_it():
    rows = {"ACL": [{**ROWS["ACL"][0], "label": 77, "name": "web"}]}
    assert book(FakeDatabases(rows)).admitted_by(77).title.startswith('ACL "web" (uuid ')
    assert book(FakeDatabases(rows)).admitted_by(78) is None
    twice = {"ACL": rows["ACL"] * 2}
    assert book(FakeDatabases(twice)).admitted_by(77) is None  # nobody says that labels are unique


def test_of_a_stage_that_only_carries_out_the_acl_that_was_evaluated_before_is_named():
    """OVN 23.06 and newer: the verdict is formed in `…_acl_eval` and carried out in `…_acl_action`."""
    rows = {table: list(found) for table, found in ROWS.items()}
    evaluated = {
        "_uuid": ["uuid", "11111111-0000-0000-0000-000000000000"], "pipeline": "egress", "table_id": 4,
        "priority": 2004, "match": "reg8[18] == 1", "actions": "reg8[17] = 1; next;",
        "external_ids": ["map", [["stage-name", "ls_out_acl_eval"], ["stage-hint", "a27edfc8"]]],
    }  # fmt: skip
    carried_out = evaluated | {
        "_uuid": ["uuid", "22222222-0000-0000-0000-000000000000"], "table_id": 5, "priority": 1000,
        "match": "reg8[17] == 1", "actions": "drop;", "external_ids": ["map", [["stage-name", "ls_out_acl_action"]]],
    }  # fmt: skip
    rows["Logical_Flow"] = [evaluated, carried_out]
    steps = (
        TraceStep(BRIDGE, 46, "metadata=0x2", 2004, 0x11111111, ("resubmit(,47)",)),
        TraceStep(BRIDGE, 47, "metadata=0x2", 1000, 0x22222222, ("drop",)),
    )
    found = Trace((TracePass(steps, datapath="drop"),))
    decision = book(FakeDatabases(rows)).decide(found, BRIDGE)
    assert decision.kind is OvnKind.ACL
    assert decision.step.cookie == 0x11111111
    assert decision.title == 'ACL "no-9999" (uuid a27edfc8…), to-lport, priority 1004, drop'


def test_an_acl_of_neutrons_goes_by_the_rule_of_its_security_group():
    """Neutron gives ACLs no names, only external ids."""
    row = {**ROWS["ACL"][0], "name": ["set", []]}
    row["external_ids"] = ["map", [["neutron:security_group_rule_id", "9f0d"]]]
    flow = find_flow(ROWS["Logical_Flow"], 0xF990AD05)
    found = find_north([{**row, "_uuid": ["uuid", f"{flow.hint}-0000"]}], flow)
    assert '"9f0d"' in found.title


@pytest.mark.parametrize(("name", "has_counter"), [("far_deny", True), ("arp_request", False), ("unbound", False)])
def test_only_a_rule_with_a_cookie_of_its_own_that_asks_nobody_is_tested(name, has_counter):
    """A burst at the rule that asks for a next hop's MAC would be a burst of broadcasts."""
    assert decide(name).has_counter is has_counter


def test_a_pattern_on_the_acls_counter_makes_the_reason_measured_and_one_that_missed_takes_it_back():
    decision = decide("far_deny")
    hit = PatternResult(PatternVerdict.CONFIRMED, 1e-5, (1, 2), (1, 2))
    reason = explain(trace("far_deny"), {}, hit, ovn=decision, chassis="hv2")
    assert (reason.code, reason.evidence) == (ReasonCode.ACL, Evidence.COUNTER_PATTERN)
    missed = PatternResult(PatternVerdict.NOT_HIT, 1.0, (1, 2), (0, 0))
    reason = explain(trace("far_deny"), {}, missed, ovn=decision, chassis="hv2")
    assert (reason.code, reason.chassis) == (ReasonCode.UNKNOWN, None)
    assert "table 46 on hv2" in reason.detail


def test_a_table_stands_for_the_stage_of_one_pipeline_or_of_none():
    assert logical_tables(TraceStep(BRIDGE, 46, "", 1, 1, ())) == (("egress", 4),)
    assert logical_tables(TraceStep(BRIDGE, 16, "", 1, 1, ())) == (("ingress", 8),)
    assert logical_tables(TraceStep(BRIDGE, 0, "", 1, 1, ())) == ()
    assert datapath_key(TraceStep(BRIDGE, 46, "ip,reg15=0x3,metadata=0x2", 1, 1, ())) == 2
    assert datapath_key(TraceStep(BRIDGE, 40, "", 0, 0, ())) is None


@pytest.mark.parametrize("said", ["", "{", "[]", '[{"error":"x"}]', '[{"rows":3},{"rows":[]}]', "[" * 100_000])
def test_an_answer_that_is_none_is_an_error_that_says_so(said):
    with pytest.raises(HostNotReadyError, match="OVN_Southbound at unix:/sb"):
        book(lambda _command: said).decide(trace("far_deny"), BRIDGE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["map", "uuid", "set"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(ROWS["ACL"][0])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_rows_of_any_shape_are_read_without_an_error(value):
    """Total: OVSDB's answers are outside bytes."""
    flow = find_flow(ROWS["Logical_Flow"], 0xF990AD05)
    row_uuid(value)
    row_map(value, "external_ids")
    find_flow([value], 0x1234)
    find_north([value], flow)
    whole = {**value, "_uuid": ["uuid", flow.hint]} if isinstance(value, dict) else {"_uuid": ["uuid", flow.hint]}
    assert find_north([whole], flow).title
    owner_of([value], [value])


LINES = [line for name in ("snat", "provider_far", "no_neighbour") for line in trace_text(name).splitlines()]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=60).map("\n".join))
def test_traces_of_any_shape_are_read_without_an_error(said):
    """Total: lines of real traces in any order, and lines of nothing known."""
    found = parse_trace(said)
    step = ovn_step(found, BRIDGE)
    assert step is None or step.bridge == BRIDGE
    for one in found.steps:
        assert earlier_steps(found, one) is not None
        port_key(found, one, "egress")
        logical_tables(one)
    reason = explain(found, {}, ovn=OvnDecision(step) if step else None, expected_port="tapv2")
    assert reason.detail
