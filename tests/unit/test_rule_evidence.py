"""Which rule really decided: what a rule's counter says makes the answer stronger, or takes it back."""

from dataclasses import replace

import pytest
import trio
from support.state_files import OLD

from netprobe.errors import HostNotReadyError, NoAnswerError
from netprobe.host.iptables_counters import probe_iptables_rule, read_counter
from netprobe.judge.counter_pattern import PatternVerdict, make_pattern
from netprobe.judge.iptables_rules import parse_rules
from netprobe.model.model_answers import ModelAnswer
from netprobe.service import rule_evidence
from netprobe.service.discovery import topology_of
from netprobe.service.rule_evidence import prove as prove_awaited
from netprobe.service.rule_evidence import prove_rule

TOPOLOGY = topology_of(OLD)
ANSWER = ModelAnswer(False, host="hv1", place="chain into, rule 2", chain="into", match="-p tcp --dport 81")


class Firewall:
    """Counts what `send` sends in one of its rules, and now and then a tenant's packet."""

    def __init__(self, hits=2, tenants=0):
        self.hits, self.tenants = hits, tenants
        self.counts = {1: 0, 2: 0}
        self.first = "-A into -p tcp --dport 80 -j RETURN"

    def text(self, _netns, _family):
        self.counts[2] += self.tenants
        return (
            "*filter\n:FORWARD ACCEPT [0:0]\n:into - [0:0]\n"
            f"[{self.counts[1]}:0] {self.first}\n[{self.counts[2]}:0] -A into -p tcp --dport 81 -j DROP\nCOMMIT\n"
        )

    def send(self, count):
        if self.hits:
            self.counts[self.hits] += count
        return count


def prove(monkeypatch, wall, answer=ANSWER, send=None):
    monkeypatch.setattr(rule_evidence, "read_rules", wall.text)
    monkeypatch.setattr(
        rule_evidence, "read_counter", lambda netns, family, rule: read_counter(netns, family, rule, wall.text)
    )
    monkeypatch.setattr(
        rule_evidence,
        "probe_iptables_rule",
        lambda *words: probe_iptables_rule(*words, read=wall.text),
    )
    return prove_rule(answer, 4, TOPOLOGY, send or wall.send)


@pytest.mark.parametrize("tenants", [0, 3])
def test_a_counter_that_follows_our_bursts_is_evidence(monkeypatch, tenants):
    answer = prove(monkeypatch, Firewall(tenants=tenants))
    assert answer.evidence == "counter-pattern"
    assert "p = " in answer.detail


def test_a_counter_that_missed_our_bursts_says_that_model_and_reality_disagree(monkeypatch):
    answer = prove(monkeypatch, Firewall(hits=1))
    assert answer.evidence == "predicted"
    assert "model and reality disagree" in answer.detail


def test_tenants_alone_never_confirm_a_rule(monkeypatch):
    assert prove(monkeypatch, Firewall(hits=0, tenants=40)).evidence == "predicted"


@pytest.mark.parametrize(
    "answer",
    [
        replace(ANSWER, place="chain into, its policy"),
        replace(ANSWER, place="chain into, rule 9"),
        replace(ANSWER, match="-p udp"),
        replace(ANSWER, chain="", place="table 71"),
    ],
)
def test_a_rule_without_a_counter_of_its_own_stays_a_prediction_and_says_so(monkeypatch, answer):
    found = prove(monkeypatch, Firewall(), answer)
    assert (found.evidence, "no counter of its own" in found.detail) == ("predicted", True)


def test_a_rule_that_changes_meanwhile_is_not_proved(monkeypatch):
    wall = Firewall()

    def send(count):
        wall.first = "-A into -p tcp --dport 82 -j RETURN\n[0:0] -A into -p udp -j RETURN"
        return wall.send(count)

    found = prove(monkeypatch, wall, send=send)
    assert (found.evidence, "is not the rule that it was" in found.detail) == ("predicted", True)


@pytest.mark.parametrize("error", [HostNotReadyError("switch", "is gone"), NoAnswerError("run", "was stopped")])
def test_sending_that_fails_leaves_the_answer_a_prediction(monkeypatch, error):
    def send(_count):
        raise error

    found = prove(monkeypatch, Firewall(), send=send)
    assert (found.evidence, found.is_allowed) == ("predicted", False)
    assert error.problem in found.detail


def test_an_unknown_host_or_an_answer_without_a_verdict_is_left_as_it_is(monkeypatch):
    assert "no host 'hv9'" in prove(monkeypatch, Firewall(), replace(ANSWER, host="hv9")).detail
    silent = ModelAnswer(None, detail="no switch")
    assert prove(monkeypatch, Firewall(), silent) == silent


def test_counters_are_read_from_the_rules_own_place():
    wall = Firewall()
    rule = parse_rules(wall.text("", 4)).chain("filter", "into").rules[1]
    assert probe_iptables_rule("", 4, rule, make_pattern(1), wall.send, read=wall.text).verdict is (
        PatternVerdict.CONFIRMED
    )


def test_sending_may_be_awaited_in_the_callers_own_loop(monkeypatch):
    wall = Firewall()
    monkeypatch.setattr(rule_evidence, "prove_rule", lambda answer, _family, _topology, send: (answer, send(3)))

    async def send(count):
        await trio.lowlevel.checkpoint()
        return wall.send(count)

    assert trio.run(prove_awaited, ANSWER, 4, TOPOLOGY, send) == (ANSWER, 3)
    assert wall.counts[2] == 3
