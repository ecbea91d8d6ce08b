"""Mutants of what is enforced: each is one change, the choice is fair and repeatable, and rows can be brought back."""

from dataclasses import replace

import pytest
from mutation.flow_mutants import flow_mutants, parse_flow
from mutation.iptables_mutants import Rules, iptables_mutants
from mutation.mutants import COMPILED, POLICY, Mutant, shuffled
from mutation.ovn_mutants import changes, ovn_mutants, parse_commands
from mutation.policy_mutants import policy_mutants
from mutation.replay_packets import conversations
from support.policy_texts import forty

from netprobe.lab import config, logical
from netprobe.lab.acls import compile_acls
from netprobe.lab.flows import compile_flows
from netprobe.lab.iptables_rules import compile_iptables
from netprobe.lab.topology import bound_policy, endpoints


def bound(lab):
    loaded = config.parse(forty(lab), where="forty", lab=lab)
    ends = endpoints(loaded)
    return loaded, ends, bound_policy(loaded, ends)


@pytest.fixture(scope="module")
def flows():
    loaded, ends, _ = bound("single")
    return compile_flows(loaded, ends, 1).flows


@pytest.fixture(scope="module")
def rules():
    loaded, ends, _ = bound("bridge")
    compiled = compile_iptables(loaded, ends)
    return Rules((compiled.tables[4], compiled.tables[6]), compiled.ipsets, ())


@pytest.fixture(scope="module")
def rows():
    loaded, ends, policy = bound("pair")
    return parse_commands(logical.commands(loaded.shape, ends, policy, compile_acls(loaded, ends)))


def test_every_mutant_of_a_policy_is_another_policy():
    _, _, policy = bound("single")
    mutants = list(policy_mutants(policy))
    assert len(mutants) > 300
    assert all(mutant.policy != policy for mutant in mutants)
    wanted = {"deleted", "direction", "port", "prefix", "protocol", "action", "priority", "group", "state", "remote"}
    assert wanted <= {mutant.kind for mutant in mutants}


def test_flows_are_read_and_written_alike(flows):
    assert [parse_flow(text).text() for text in flows] == [*flows]


def test_a_mutant_of_flows_differs_in_one_of_them(flows):
    mutants = list(flow_mutants(flows, (71, 72, 81, 82), {72: "resubmit(,73)"}, {}, {}))
    assert len(mutants) > 2000
    for mutant in mutants[::50]:
        assert len(set(flows) - set(mutant.state)) == 1
        assert len(set(mutant.state) - set(flows)) <= 1


def test_a_mutant_of_iptables_is_one_line_or_its_place(rules):
    mutants = list(iptables_mutants(rules, {"tapvm1": "vm1", "tapvm2": "vm2"}))
    assert len(mutants) > 500
    for mutant in mutants[::20]:
        before = [line for text in (*rules.tables, rules.sets) for line in text.splitlines()]
        after = [line for text in (*mutant.state.tables, mutant.state.sets) for line in text.splitlines()]
        assert before != after
        assert abs(len(before) - len(after)) <= 1
        assert len(set(before) - set(after)) <= 1


def test_rows_are_brought_to_a_mutant_and_back_by_what_differs_alone(rows):
    assert changes(rows, rows) == ([], [])
    mutants = list(ovn_mutants(rows, {port: port for ports in rows.groups.values() for port in ports}))
    assert len(mutants) > 300
    for mutant in mutants[::10]:
        assert all(0 < sum(map(len, changes(*way))) <= 2 for way in ((rows, mutant.state), (mutant.state, rows)))


def test_an_order_is_the_same_again_and_begins_with_some_of_each_level_and_sort():
    many = [Mutant(f"{level} {n}", level, f"sort {n % 7}", n) for level in (POLICY, COMPILED) for n in range(700)]
    first = shuffled(many, 5)[:28]
    assert first == shuffled(many, 5)[:28]
    assert first != shuffled(many, 6)[:28]
    assert {(mutant.level, mutant.kind) for mutant in first} == {(m.level, m.kind) for m in many}


def test_packets_for_survivors_are_many_and_the_same_again():
    _, _, policy = bound("single")
    policy = replace(policy, ports=tuple(port for port in policy.ports if port.name != "bypass"))
    scenarios = conversations(policy, 10_000, 1)
    assert sum(len(scenario.steps) for scenario in scenarios) >= 10_000
    assert scenarios == conversations(policy, 10_000, 1)
    assert len({(scenario.src, scenario.dst, scenario.steps) for scenario in scenarios}) == len(scenarios)
    assert {(s.src, s.dst) for s in scenarios} == {
        (a.name, b.name) for a in policy.ports for b in policy.ports if a != b
    }
