"""Pacing on a virtual clock: due times are met, a late sender does not burst, a stop is noticed."""

import itertools

import pytest

from netprobe.inject.pacer import (
    BURST_FRAMES,
    BURST_PAUSE_NS,
    HELD,
    MAX_SLEEP_NS,
    SPIN_NS,
    is_held,
    pace,
    wait_until,
)


class VirtualClock:
    """Reading it costs 50 ns, a sleep ends 60 us late, and sends cost what the test says."""

    def __init__(self, *, send_ns=2_000, late_ns=60_000):
        self.now_ns = 0
        self.send_ns = send_ns
        self.late_ns = late_ns
        self.sleeps_s = []
        self.sent = []

    def clock(self):
        self.now_ns += 50
        return self.now_ns

    def sleep(self, seconds):
        self.sleeps_s.append(seconds)
        self.now_ns += round(seconds * 1e9) + self.late_ns

    def send(self, i):
        self.sent.append((i, self.now_ns))
        self.now_ns += self.send_ns
        return self.now_ns

    def pace(self, due_ns, **kwargs):
        kwargs.setdefault("send", self.send)
        return pace(due_ns, clock=self.clock, sleep=self.sleep, **kwargs)


def test_every_probe_goes_at_its_due_time_within_the_cost_of_reading_the_clock():
    world = VirtualClock()
    due_ns = [1_000_000 + i * 200_000 for i in range(500)]
    paced = world.pace(due_ns)
    assert [i for i, _ in world.sent] == list(range(500))
    assert all(0 <= at - due <= 200 for (_, at), due in zip(world.sent, due_ns, strict=True))
    assert paced.stats.max_ns <= 200
    assert (paced.stats.planned, paced.stats.unsent, paced.stats.pauses) == (500, 0, 0)


def test_the_times_returned_are_what_send_said():
    world = VirtualClock()
    paced = world.pace([5_000, 6_000, 400_000])
    assert list(paced.times_ns) == [at + world.send_ns for _, at in world.sent]


def test_sleep_never_goes_into_the_last_100_us_by_plan():
    world = VirtualClock(late_ns=0)
    assert wait_until(10_000_000, clock=world.clock, sleep=world.sleep)
    assert world.sleeps_s == [pytest.approx((10_000_000 - SPIN_NS) / 1e9, abs=1e-7)]


def test_a_late_sender_never_sends_more_than_64_without_a_pause_of_a_millisecond():
    world = VirtualClock()
    paced = world.pace([0] * 1_000)
    run, longest, previous = 0, 0, None
    for _, at in world.sent:
        paused = previous is not None and at - previous >= BURST_PAUSE_NS
        run = 1 if previous is None or paused else run + 1
        longest = max(longest, run)
        previous = at
    assert longest == BURST_FRAMES == 64
    assert paced.stats.unsent == 0
    assert paced.stats.pauses == 1_000 // 64


def test_waiting_a_little_now_and_then_does_not_allow_longer_bursts():
    """Bursts of 60 due at once, with a wait of 20 us between: idle time pays for one or two frames more, no more."""
    world = VirtualClock(send_ns=100)
    world.pace([burst * 20_000 for burst in range(50) for _ in range(60)])
    starts = [at for _, at in world.sent]
    for i in range(len(starts) - 130):
        assert starts[i + 130] - starts[i] >= BURST_PAUSE_NS


def test_a_stall_in_a_steady_schedule_is_caught_up_without_a_burst():
    world = VirtualClock()

    def send(i):
        if i == 100:
            world.now_ns += 50_000_000
        return world.send(i)

    paced = world.pace([i * 100_000 for i in range(2_000)], send=send)
    assert paced.stats.unsent == 0
    assert paced.stats.pauses >= 500 // 64
    assert paced.stats.p50_ns < 1_000


def test_a_stop_ends_the_sends_and_the_rest_is_unsent():
    world = VirtualClock()
    paced = world.pace([i * 1_000_000 for i in range(100)], stopped=lambda: len(world.sent) >= 30)
    assert len(world.sent) == 30
    assert paced.stats.unsent == 70
    assert [bool(t) for t in paced.times_ns] == [True] * 30 + [False] * 70


def test_a_stop_is_noticed_during_a_long_wait():
    world = VirtualClock()
    paced = world.pace([3600 * 10**9], stopped=lambda: world.now_ns > 10**9)
    assert paced.stats.unsent == 1
    assert world.now_ns < 10**9 + 2 * MAX_SLEEP_NS


def test_what_could_not_be_sent_is_unsent_and_not_in_the_percentiles():
    world = VirtualClock()
    paced = world.pace([0, 1_000_000, 2_000_000], send=lambda i: 0 if i == 1 else world.send(i))
    assert paced.stats.unsent == 1
    assert paced.times_ns[1] == 0


def test_percentiles_are_nearest_rank():
    """Each probe is late by its own number of ms when its turn comes; the burst guard has no say in 50 frames."""
    world = VirtualClock()
    world.now_ns = 10**9
    stats = world.pace([10**9 - late_ms * 1_000_000 for late_ms in range(1, 51)], send=lambda _: 1).stats
    assert stats.p50_ns == pytest.approx(25_000_000, abs=10_000)
    assert stats.p99_ns == stats.max_ns == pytest.approx(50_000_000, abs=10_000)


def test_nothing_planned_gives_empty_figures():
    stats = VirtualClock().pace([]).stats
    assert (stats.planned, stats.unsent, stats.p50_ns, stats.p99_ns, stats.max_ns) == (0, 0, 0, 0, 0)


def test_what_is_held_back_is_spread_evenly_and_half_is_a_part_of_all():
    for share in (0.5, 0.25, 0.125):
        kept = [i for i in range(4096) if not is_held(i, share)]
        assert len(kept) == pytest.approx(4096 * share, rel=0.01)
        gaps = [b - a for a, b in itertools.pairwise(kept)]
        assert max(gaps) <= 2.7 / share
        assert not any(is_held(i, 2 * share) for i in kept)
    assert not any(is_held(i, 1.0) for i in range(4096))
    assert all(is_held(i, 0.0) for i in range(4096))


def test_a_sender_that_backs_off_sends_a_part_in_time_and_tells_the_rest_as_held():
    """All for 100 ms, a quarter for 100 ms, none for 100 ms, all again: as the share is when each probe is due."""
    world = VirtualClock()
    due_ns = [1_000_000 * i for i in range(1, 401)]

    def share():
        return (1.0, 0.25, 0.0, 1.0)[min(world.now_ns // 100_000_000, 3)]

    paced = world.pace(due_ns, share=share)
    sent = [sum(t > 0 for t in paced.times_ns[at : at + 100]) for at in range(0, 400, 100)]
    assert sent[0] == 100
    assert sent[1] == pytest.approx(25, abs=2)
    assert sent[2] <= 1
    assert sent[3] >= 99
    assert set(paced.times_ns) & {0, HELD} == {HELD}
    assert paced.stats.unsent == sum(t == HELD for t in paced.times_ns)
    assert paced.stats.max_ns <= 200


def test_what_is_held_back_costs_no_spinning():
    world = VirtualClock(late_ns=0)
    readings = []
    clock = world.clock
    world.clock = lambda: readings.append(1) or clock()
    world.pace([1_000_000 * i for i in range(1, 101)], share=lambda: 0.0)
    assert not world.sent
    assert len(readings) < 100 * 5


def test_a_sender_that_holds_all_back_notices_a_stop():
    world = VirtualClock()
    paced = world.pace(
        [1_000_000 * i for i in range(1, 101)], share=lambda: 0.0, stopped=lambda: world.now_ns > 50_000_000
    )
    assert 45 <= sum(t == HELD for t in paced.times_ns) <= 55
    assert paced.stats.unsent == 100
