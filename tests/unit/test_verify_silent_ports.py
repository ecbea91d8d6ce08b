"""A port that nothing passes at all is found out, though each single packet of it may have been lost."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address

import trio

from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.proof import Proofs
from netprobe.model.policy import TCP, Group, GroupRule, Policy, PolicyPort, Way
from netprobe.plan.covering import cover
from netprobe.service.verify_attempts import CONTROL, Attempts
from netprobe.service.verify_rounds import SILENT_ROUNDS, Arrival, RoundLimits, Rounds
from netprobe.wire.policy_frames import PolicyMark

OPEN = Group("open", (GroupRule("out", Way.EGRESS, (4,)), GroupRule("in", Way.INGRESS, (4,), TCP, (80, 80))))
PORTS = tuple(
    PolicyPort(f"vm{n}", "", f"02:00:00:00:00:{n:02x}", (IPv4Address(f"10.0.0.{n}"),), ("open",)) for n in (1, 2, 3)
)
POLICY = Policy((OPEN,), PORTS)


@dataclass
class FakeWire:
    """Lets pass what the policy allows, unless its sender or receiver is cut off."""

    rounds: Rounds | None = None
    pps: int = 2_000
    dead_senders: frozenset = frozenset()
    dead_receivers: frozenset = frozenset()
    dead_controls: frozenset = frozenset()
    found: list = field(default_factory=list)

    async def send(self, sent):
        for one in sent:
            is_cut = one.sender in self.dead_senders or one.receiver in self.dead_receivers
            is_cut |= one.step == CONTROL and one.sender in self.dead_controls
            if self.rounds._should_pass(one) and not is_cut:
                self.found.append(Arrival(one.seq, one.receiver, realtime_ns()))
        return [realtime_ns() for _ in sent]

    async def arrivals(self):
        found, self.found = self.found, []
        return found

    async def confirm(self):
        return frozenset(range(len(PORTS)))

    async def forget(self):
        return ""

    def write_down(self, sent):
        pass


def rounds_after(rounds, **dead):
    mark = PolicyMark(session=1, key=bytes(16), dscp=3, ip_id=7, flow_label=7)
    scenarios = cover(POLICY, Evaluator(POLICY)).scenarios
    proofs = Proofs(scenarios, [port.name for port in PORTS], alpha=1e-3)
    wire = FakeWire(**dead)
    limits = RoundLimits(tmax_ns=1_000_000, rounds=rounds, seed=1, at_once=1000)
    made = Rounds(scenarios, PORTS, proofs, Attempts(mark, 0), wire, limits, StopRequest())
    wire.rounds = made
    trio.run(made.run, lambda _: None)
    return made


def silent_after(rounds, **dead):
    return rounds_after(rounds, **dead).silent()


def test_where_all_is_well_no_port_is_silent():
    assert silent_after(SILENT_ROUNDS) == []


def test_a_port_whose_frames_come_nowhere_is_silent_as_a_sender():
    assert silent_after(SILENT_ROUNDS, dead_senders=frozenset({1})) == [("vm2", True)]


def test_a_port_that_nothing_comes_to_is_silent_as_a_receiver_and_its_senders_are_not():
    assert silent_after(SILENT_ROUNDS, dead_receivers=frozenset({2})) == [("vm3", False)]


def test_a_port_that_is_cut_off_both_ways_is_silent_both_ways():
    dead = frozenset({0})
    assert silent_after(SILENT_ROUNDS, dead_senders=dead, dead_receivers=dead) == [("vm1", True), ("vm1", False)]


def test_a_few_rounds_prove_nothing():
    assert silent_after(SILENT_ROUNDS - 1, dead_senders=frozenset({1})) == []


def unheard_after(rounds, **dead):
    return rounds_after(rounds, **dead).unheard()


def test_a_port_whose_neighbours_answers_alone_are_dropped_is_found():
    assert unheard_after(SILENT_ROUNDS, dead_controls=frozenset({1})) == [("vm2", "vm3")]
    assert silent_after(SILENT_ROUNDS, dead_controls=frozenset({1})) == []


def test_where_all_is_well_every_neighbour_is_heard():
    assert unheard_after(SILENT_ROUNDS) == []


def test_where_nothing_arrives_anywhere_it_is_over_after_a_few_rounds_and_said():
    """No port is told apart from the others then: none is silent by itself."""
    everybody = frozenset(range(len(PORTS)))
    made = rounds_after(SILENT_ROUNDS + 5, dead_senders=everybody)
    assert (made.made, made.is_deaf, made.silent()) == (SILENT_ROUNDS, True, [])


def test_where_one_port_is_heard_nobody_is_deaf():
    made = rounds_after(SILENT_ROUNDS + 5, dead_senders=frozenset({0, 1}), dead_receivers=frozenset({0}))
    assert not made.is_deaf
    assert made.made > SILENT_ROUNDS
