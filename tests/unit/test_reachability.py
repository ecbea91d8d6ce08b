"""A path's state from window to window: what each change needs, when it began, and that it does not flap."""

from dataclasses import replace

import numpy as np
import pytest

from netprobe.judge.reachability import Limits, PathState, State, WindowFacts, advance, exceeding
from netprobe.judge.sequential import Verdict
from netprobe.model.results import Delay

LIMITS = Limits(max_loss=0.01, max_p99_ns=5_000_000, factor=2.0, alpha=0.001, beta=0.001)
SECOND = 1_000_000_000


def window(number, delivered=100, lost=0, undecided=0, **more):
    """Window `number` of 10 s each; every arrival is heard at its end."""
    start = number * 10 * SECOND
    end = start + 9 * SECOND
    heard = end if delivered else None
    where = {"last_seen": "vm1.backend", "first_missing": "vm2.backend"} if lost else {}
    facts = WindowFacts(start, end, delivered + lost + undecided, delivered, lost, undecided, heard_ns=heard, **where)
    return replace(facts, **more)


def delay(p50=1_000_000, p90=1_000_000, p99=1_000_000, most=1_000_000, samples=100):
    return Delay(500_000, p50, p90, p99, most, samples, None)


def play(windows, limits=LIMITS, path=None):
    """The state after windows, and all changes on the way."""
    path = path or PathState.start(limits, 0)
    changes = []
    for facts in windows:
        path, change = advance(path, facts)
        changes += [change] if change else []
    return path, changes


def test_a_path_is_reachable_once_a_test_says_so():
    """It begins unobserved; the change names the test and its samples."""
    path, (change,) = play([window(0)])
    assert (change.before, change.after) == (State.UNOBSERVED, State.REACHABLE)
    assert change.tests == {"reach": 100}
    assert (path.state, path.since_ns) == (State.REACHABLE, 0)


def test_an_outage_is_dated_by_the_last_arrival_and_says_where():
    """Three windows fine, then nothing arrives: unreachable since the last probe was heard."""
    path, changes = play([window(i) for i in range(3)] + [window(3, 0, 100)])
    change = changes[-1]
    assert (change.before, change.after) == (State.REACHABLE, State.UNREACHABLE)
    assert change.since_ns == 2 * 10 * SECOND + 9 * SECOND
    assert (change.last_seen, change.first_missing) == ("vm1.backend", "vm2.backend")
    assert change.tests == {"reach": 100}
    path, (back,) = play([window(4)], path=path)
    assert (back.before, back.after, back.since_ns) == (
        State.UNREACHABLE,
        State.REACHABLE,
        3 * 10 * SECOND + 9 * SECOND,
    )
    assert back.last_seen is back.first_missing is None


def test_a_few_lost_probes_are_no_outage():
    """Five lost of five decide nothing; the state stays until the test has enough."""
    path, _ = play([window(0)])
    path, changes = play([window(1, 0, 5)], path=path)
    assert (path.state, changes) == (State.REACHABLE, [])
    path, changes = play([window(2, 0, 5), window(3, 0, 5)], path=path)
    assert [c.after for c in changes] == [State.UNREACHABLE]


def test_loss_beyond_the_limit_degrades_and_takes_a_test_to_recover():
    """20 % lost where 1 % is allowed; a single good window after it is not enough."""
    path, changes = play([window(0, delay=delay()), window(1, 80, 20)])
    assert [c.after for c in changes] == [State.REACHABLE, State.DEGRADED]
    assert changes[-1].tests == {"loss": 200}  # the loss test had not decided after the first window
    path, changes = play([window(2)], path=path)
    assert (path.state, changes) == (State.DEGRADED, [])
    path, changes = play([window(i, 1000) for i in range(3, 6)], path=path)
    assert [c.after for c in changes] == [State.REACHABLE]
    assert "loss" in changes[0].tests


def test_a_slow_path_is_degraded_by_its_quantiles():
    """More than a tenth beyond max_p99 shows at once; somewhat more than 1 % takes windows, for only p99 tells."""
    very_slow = delay(p90=9_000_000, p99=9_000_000, most=9_000_000, samples=1000)
    _, changes = play([window(0, 1000, delay=very_slow)])
    assert [(c.after, c.tests) for c in changes] == [(State.DEGRADED, {"p99": 1000})]
    slow = delay(p99=9_000_000, most=9_000_000, samples=1000)
    path, changes = play([window(i, 1000, delay=slow) for i in range(12)])
    assert [c.after for c in changes] == [State.REACHABLE, State.DEGRADED]
    assert changes[1].tests["p99"] > 1000
    assert changes[1].since_ns == 0
    assert path.state is State.DEGRADED


@pytest.mark.parametrize(("p99", "error", "after"), [(9, 5, []), (9, 3, ["degraded"]), (3, 1, []), (3, 3, [])])
def test_what_two_clocks_may_have_made_decides_nothing(p99, error, after):
    """Limit 5 ms; p90 and p99 of 9 or 3 ms that may be off by so much: bad only if it is even then, fine likewise."""
    ns = p99 * 1_000_000
    facts = {"delay": delay(p90=ns, p99=ns, most=ns, samples=1000), "clock_error_ns": error * 1_000_000}
    path, changes = play([window(i, 1000, **facts) for i in range(3)])
    assert [c.after.value for c in changes[1:] or changes if c.after is State.DEGRADED] == after
    expected = Verdict.BAD if after else Verdict.FINE if p99 + error <= 5 else Verdict.OPEN
    assert path.running["p99"].verdict is expected


def test_without_thresholds_there_is_only_reachable_and_not():
    """30 % lost is reachable where nobody said how much is too much."""
    path, changes = play([window(0, 70, 30)], limits=replace(LIMITS, max_loss=None, max_p99_ns=None))
    assert [c.after for c in changes] == [State.REACHABLE]
    assert list(path.running) == ["reach"]


@pytest.mark.parametrize("facts", [window(1, 0, 0, 100), WindowFacts.nothing(10 * SECOND, 19 * SECOND)])
def test_a_window_of_which_nobody_can_say_is_unobserved_and_never_an_outage(facts):
    """No test is needed to say that nobody looked; and what comes after it must be proved anew."""
    path, changes = play([window(0), facts])
    assert [c.after for c in changes] == [State.REACHABLE, State.UNOBSERVED]
    assert changes[-1].tests == {}
    assert path.running["reach"].verdict is Verdict.OPEN
    _, changes = play([window(2)], path=path)
    assert [c.after for c in changes] == [State.REACHABLE]


def test_undecided_probes_make_no_outage_and_no_recovery():
    """One lost for certain, 99 unknown: neither."""
    path, _ = play([window(0)])
    path, changes = play([window(1, 0, 1, 99)], path=path)
    assert (path.state, changes) == (State.REACHABLE, [])
    path, _ = play([window(2, 0, 100)], path=path)
    path, changes = play([window(3, 1, 0, 99)], path=path)
    assert (path.state, changes) == (State.UNREACHABLE, [])


def test_thresholds_start_anew_after_an_outage():
    """What was lost while the path was away is not held against it when it is back."""
    path, changes = play([window(0), window(1, 0, 100), window(2, 30, 70), window(3)])
    assert [c.after for c in changes] == [State.REACHABLE, State.UNREACHABLE, State.REACHABLE]
    assert path.running["loss"].samples == 100


@pytest.mark.parametrize("share", [0.01, 0.012, 0.015, 0.02])
def test_a_path_at_its_limit_does_not_flap(share):
    """1,000 windows of 100 probes at and around the limit: state changes stay rarer than one in 20 windows."""
    rng = np.random.default_rng(7)
    lost = rng.binomial(100, share, 1000).tolist()
    _, changes = play([window(i, 100 - n, n) for i, n in enumerate(lost)])
    assert len(changes) <= 50


def test_false_alarms_of_a_path_at_its_limit_stay_below_alpha():
    """At exactly max_loss, the worst case that is fine: at most alpha of the tests that were decided say bad."""
    limits = replace(LIMITS, alpha=0.05, max_p99_ns=None)
    rng = np.random.default_rng(11)
    path = PathState.start(limits, 0)
    verdicts = []
    for i, n in enumerate(rng.binomial(100, 0.01, 6000).tolist()):
        before = path.running["loss"]
        path, _ = advance(path, window(i, 100 - n, n))
        if path.running["loss"].since_ns != before.since_ns:
            verdicts.append(path.running["loss"].verdict)
    assert len(verdicts) > 200
    assert verdicts.count(Verdict.BAD) <= 0.05 * len(verdicts)


@pytest.mark.parametrize("seed", range(20))
def test_the_number_beyond_a_limit_lies_where_the_quantiles_say(seed):
    """Against the delays themselves, with lost ones as infinite."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        lost, samples = int(rng.integers(0, 30)), int(rng.integers(1, 300))
        delays = np.sort(rng.integers(1, 100, samples))
        limit = int(rng.integers(0, 101))
        everything = [*delays.tolist(), *[None] * lost]
        total = len(everything)
        quantiles = [everything[-(-total * q // 100) - 1] for q in (50, 90, 99)]
        low, high = exceeding(Delay(int(delays[0]), *quantiles, int(delays[-1]), samples, None), lost, limit)
        assert low <= int((delays > limit).sum()) + lost <= high
        assert low >= lost + int(delays[-1] > limit)
