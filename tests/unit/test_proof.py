"""What arrivals and misses prove of a step, and how sure that is."""

from ipaddress import ip_address

import numpy as np
import pytest

from netprobe.errors import UsageError
from netprobe.judge.proof import LEAST_LOSS, Outcome, Proofs, StepRef, loss_bound
from netprobe.model.packets import Check, ConnState, Decision, EnforcementPoint, Packet, Scenario, Stage, Step

ALIVE = np.ones((2, 3), np.bool_)
PACKET = Packet("fa:16:3e:00:00:01", "fa:16:3e:00:00:02", ip_address("10.0.0.1"), ip_address("10.0.0.2"), 17, None, 53)
YES = Decision((Check(EnforcementPoint("b", Stage.INGRESS), True, "r", "r"),))


def scenario(number: int, steps: int = 1, src: str = "a", dst: str = "b") -> Scenario:
    made = tuple(Step(i % 2 == 0, PACKET, ConnState.NEW, YES) for i in range(steps))
    return Scenario(number, f"s{number}", src, dst, made, frozenset())


def proofs(*scenarios: Scenario, alpha: float = 1e-3) -> Proofs:
    return Proofs(scenarios, ("a", "b", "c"), alpha=alpha)


def controls(made: Proofs, n: int, missed: int = 0, sender: int = 0, receiver: int = 1) -> None:
    arrived = np.arange(n) >= missed
    made.feed_controls(np.full(n, sender), np.full(n, receiver), arrived)


def steps(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_steps_are_numbered_through_all_scenarios():
    made = proofs(scenario(0, 3), scenario(1), scenario(2, 2))
    assert len(made) == 6
    assert [made.ref(i) for i in (0, 2, 3, 5)] == [StepRef(0, 0), StepRef(0, 2), StepRef(1, 0), StepRef(2, 1)]
    assert all(made.index(made.ref(i).scenario, made.ref(i).step) == i for i in range(6))
    assert (made.sender.tolist(), made.receiver.tolist()) == ([0, 1, 0, 0, 0, 1], [1, 0, 1, 1, 1, 0])


def test_one_arrival_proves_that_a_packet_passes():
    made = proofs(scenario(0), scenario(1))
    made.feed(steps(0, 1), np.array([True, False]), ALIVE)
    assert made.outcomes() == [Outcome.PASSED, Outcome.OPEN]


def test_misses_prove_a_drop_as_soon_as_loss_alone_would_make_them_too_unlikely():
    """On a path that loses up to 0.7 %, two misses are still thinkable among a thousand steps, three are not."""
    made = proofs(scenario(0), scenario(1))
    controls(made, 1000)
    outcomes = []
    for _ in range(4):
        made.feed(steps(0), np.array([False]), ALIVE)
        outcomes.append(made.outcomes()[0])
    needed = made.misses_needed()
    assert needed == 2
    assert outcomes == [Outcome.OPEN] * (needed - 1) + [Outcome.DROPPED] * (5 - needed)


def test_a_lossy_path_needs_more_misses():
    made = proofs(scenario(0))
    controls(made, 1000, missed=200)
    assert made.misses_needed() > 4
    for _ in range(made.misses_needed() - 1):
        made.feed(steps(0), np.array([False]), ALIVE)
    assert made.outcomes() == [Outcome.OPEN]


def test_a_path_that_loses_more_than_half_proves_no_drop_ever():
    made = proofs(scenario(0))
    controls(made, 100, missed=60)
    for _ in range(500):
        made.feed(steps(0), np.array([False]), ALIVE)
    assert made.outcomes() == [Outcome.OPEN]
    assert made.misses_needed() == 0


def test_where_nothing_at_all_came_through_a_miss_says_nothing():
    made = proofs(scenario(0), scenario(1))
    controls(made, 1000)
    dead = ALIVE.copy()
    dead[1, 1] = False
    for _ in range(10):
        made.feed(steps(0, 1), np.array([False, True]), dead)
    assert made.outcomes() == [Outcome.OPEN, Outcome.PASSED]
    assert made.sent.tolist() == [0, 10]


def test_a_port_that_loses_more_than_the_others_is_judged_by_its_own_loss():
    made = proofs(scenario(0), scenario(1, src="a", dst="c"))
    controls(made, 2000, receiver=1)
    controls(made, 200, missed=60, receiver=2)
    common, each = made.loss()
    assert each[2].upper > 0.3 > common.upper
    assert each[1].upper == common.upper
    for _ in range(3):
        made.feed(steps(0, 1), np.array([False, False]), ALIVE)
    assert made.outcomes() == [Outcome.DROPPED, Outcome.OPEN]


def test_without_any_control_nothing_is_called_dropped():
    made = proofs(scenario(0))
    for _ in range(50):
        made.feed(steps(0), np.array([False]), ALIVE)
    assert made.outcomes() == [Outcome.OPEN]


def test_packets_that_passed_late_passed():
    made = proofs(scenario(0))
    controls(made, 1000)
    for _ in range(5):
        made.feed(steps(0), np.array([False]), ALIVE)
    made.late(steps(0))
    assert made.outcomes() == [Outcome.PASSED]


def test_seeded_runs_on_a_lossy_path_call_nothing_dropped_that_passes():
    """1,000 steps that pass, 5 % loss, 100 runs: with alpha 1e-3 for all together, none is called dropped."""
    random = np.random.default_rng(7)
    many = [scenario(i) for i in range(1000)]
    for _ in range(100):
        made = proofs(*many)
        controls(made, 300, missed=int(random.binomial(300, 0.05)))
        for _round in range(12):
            outcomes = made.outcomes()
            assert Outcome.DROPPED not in outcomes
            left = np.array([i for i, outcome in enumerate(outcomes) if outcome is Outcome.OPEN], np.int64)
            made.feed(left, random.random(len(left)) >= 0.05, ALIVE)


def test_the_bound_of_a_loss_is_exact_and_never_too_sure():
    assert loss_bound(0, 0).upper == 1.0
    assert loss_bound(10, 10).upper == 1.0
    assert loss_bound(100, 0).upper == pytest.approx(1 - 1e-3 ** (1 / 100))
    assert loss_bound(10**6, 0).upper == LEAST_LOSS


def test_alpha_is_a_probability():
    with pytest.raises(UsageError, match="--alpha: got 0"):
        proofs(scenario(0), alpha=0)
