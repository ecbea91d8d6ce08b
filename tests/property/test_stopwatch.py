"""Laws of the stopwatch: whatever is lost, it names the moment of a change, and invents none."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.judge.stopwatch import Command, Fate, Stream, fates, judge_change, measured_loss, misses_needed

GAP = 100_000
DELAY = 30_000
BEFORE, AFTER = 300, 600
ALPHA = 1e-6


def sent(count, gap=GAP):
    return (np.arange(count, dtype=np.int64) + 1) * gap


def lossy(passes, loss, rng):
    """Which arrive of those that pass."""
    return passes & (rng.random(len(passes)) >= loss)


def stream(sent_ns, arrived):
    return Stream(sent_ns, np.where(arrived, sent_ns + DELAY, 0))


def judged(passes, command, loss, seed):
    rng = np.random.default_rng(seed)
    times = sent(len(passes))
    one = stream(times, lossy(passes, loss, rng))
    every = sent(len(passes) // 3, 3 * GAP)
    controls = stream(every, lossy(np.ones(len(every), np.bool_), loss, rng))
    bound = measured_loss(controls, (one,), command)
    needed = misses_needed(bound, len(passes), ALPHA)
    return one, needed, judge_change(one, fates(one, controls, needed, command.begin_ns), command)


@settings(max_examples=150)
@given(
    change=st.integers(BEFORE, BEFORE + AFTER // 2),
    took=st.integers(0, AFTER // 3),
    loss=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    opens=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_moment_of_a_change_is_told_within_the_packets_that_were_lost_around_it(change, took, loss, opens, seed):
    """The last old verdict is never told too late for what leaked, and no leak or block is told that was none."""
    numbers = np.arange(BEFORE + AFTER)
    passes = (numbers >= change) == opens
    command = Command(BEFORE * GAP, (BEFORE + took) * GAP)
    one, needed, found = judged(passes, command, loss, seed)
    assert needed > 0
    assert (found.old, found.new) == ((Fate.DROPPED, Fate.PASSED) if opens else (Fate.PASSED, Fate.DROPPED))
    truth_ns = change * GAP  # when the last packet with the old verdict was sent
    assert found.flaps == found.mixed == 0
    assert abs(found.last_old_ns - truth_ns) <= needed * GAP
    assert found.last_old_ns <= truth_ns if not opens else found.first_new_ns > truth_ns
    wrong = int(np.count_nonzero(one.sent_ns[one.sent_ns > command.end_ns] <= truth_ns))
    assert (found.leaked if opens else found.blocked) == 0
    assert abs((found.blocked if opens else found.leaked) - wrong) <= needed + 0.5 * wrong
    if loss == 0:
        assert found.last_old_ns == truth_ns
        assert (found.blocked if opens else found.leaked) == wrong


@settings(max_examples=150)
@given(
    loss=st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.4]),
    seed=st.integers(0, 2**32 - 1),
    passes=st.booleans(),
)
def test_where_nothing_changes_nothing_is_told(loss, seed, passes):
    """However much is lost at random."""
    command = Command(BEFORE * GAP, (BEFORE + 20) * GAP)
    _, _, found = judged(np.full(BEFORE + AFTER, passes), command, loss, seed)
    assert found.leaked == found.blocked == found.flaps == found.last_old_ns == 0
    assert not found.is_changed
    assert found.sent == BEFORE + AFTER
    assert found.passed + found.dropped <= found.sent
    assert sum(phase.packets for phase in found.phases) == found.passed + found.dropped


@settings(max_examples=200)
@given(letters=st.lists(st.booleans(), max_size=400), begin=st.integers(0, 450), took=st.integers(0, 100))
def test_any_row_of_arrivals_gives_a_verdict_that_adds_up(letters, begin, took):
    """No input breaks it; counts and phases agree."""
    one = stream(sent(len(letters)), np.array(letters, np.bool_))
    found = judge_change(one, fates(one, None, 4, begin * GAP), Command(begin * GAP, (begin + took) * GAP))
    assert found.passed == int(np.count_nonzero(one.arrived))
    assert found.passed + found.dropped <= found.sent == len(letters)
    assert sum(phase.packets for phase in found.phases) == found.passed + found.dropped
    assert found.leaked == 0 or found.blocked == 0
    if found.is_changed:
        assert found.first_new_ns > 0
        assert found.last_old_ns > 0
        assert found.interval_ns >= 0
        assert (found.mixed > 0) == (found.first_new_ns < found.last_old_ns)
