"""Simulated clocks: 1,000 seeded runs, each with its own offset, skew, wander, queues and perhaps a step.

Two hosts, ours and the other, exchange packets 10 to 20 times a second over a network whose two directions have
different delays and queues with heavy tails (Pareto 1.5, up to 5 ms). Exchanges are lost, repeated and overtake each
other. The truth is known to the simulation alone; all times are ns since the run began.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from netprobe.collect.clock_rows import UNBOUNDED_NS
from netprobe.collect.clocks import ClockAssumptions, ClockEstimator

US, MS, S = 10**3, 10**6, 10**9
START = 1_800_000_000 * S + 123_456_789
RUN = 16 * S
BATCH = S // 2
ASSUMED = ClockAssumptions()
RUNS, CHUNK = 1_000, 50


class World:
    """Both clocks and the network between them."""

    def __init__(self, seed):
        rng = self.rng = np.random.default_rng(seed)
        self.offset = int(rng.integers(-S, S))
        self.skew_ppm = rng.uniform(-200, 200)
        self.wander_ppm, self.period = rng.uniform(0, ASSUMED.max_wander_ppm), rng.uniform(2, 40) * S
        self.step_at = rng.uniform(4, 12) * S if rng.random() < 0.6 else np.inf
        self.step = int(np.exp(rng.uniform(np.log(2 * MS), np.log(S)))) * int(rng.choice([-1, 1]))
        self.who_steps = str(rng.choice(["ours", "other"]))
        self.base = rng.integers(20 * US, 300 * US, 2)
        self.queue = np.exp(rng.uniform(np.log(US), np.log(500 * US), 2))
        self.rate = rng.uniform(10, 20)

    def ours(self, t):
        """What our clock shows at the instants `t`."""
        return START + np.round(t).astype(np.int64) + self._jump("ours", t)

    def other(self, t):
        """What the other clock shows; its skew swings around one value by at most `wander_ppm`."""
        swing = self.wander_ppm * self.period / (2 * np.pi) * (1 - np.cos(2 * np.pi * t / self.period))
        run = np.round((self.skew_ppm * t + swing) * 1e-6).astype(np.int64)
        return START + np.round(t).astype(np.int64) + self.offset + run + self._jump("other", t)

    def _jump(self, who, t):
        return np.where(t >= self.step_at, self.step, 0) if who == self.who_steps else 0

    def _crossing(self, way, count):
        queued = np.minimum(self.queue[way] * self.rng.pareto(1.5, count), 5 * MS)
        return self.base[way] + self.rng.exponential(10 * US, count) + queued

    def exchanges(self):
        """(when each answer came, T1 to T4) in order of arrival, and the smallest round trip of any that came."""
        count = int(self.rate * RUN / S)
        sent = np.sort(self.rng.uniform(0, RUN, count))
        came = sent + self._crossing(0, count)
        left = came + self.rng.exponential(100 * US, count)
        back = left + self._crossing(1, count)
        half = ASSUMED.stamp_error_ns // 2
        exact = self.ours(sent), self.other(came), self.other(left), self.ours(back)
        stamps = [stamp + self.rng.integers(-half, half + 1, count) for stamp in exact]
        kept = np.flatnonzero(self.rng.random(count) > 0.03)
        repeated = kept[self.rng.random(len(kept)) < 0.01]
        rows, arrived = np.concatenate([kept, repeated]), np.concatenate([back[kept], back[repeated] + 3 * MS])
        order = np.argsort(arrived, kind="stable")
        return arrived[order], [s[rows[order]] for s in stamps], float((back - sent - (left - came))[kept].min())


@dataclass
class Outcome:
    """What one run showed."""

    world: World
    flagged_at: list
    steps: list
    contained: np.ndarray
    contained_live: np.ndarray
    width: np.ndarray
    min_round_trip: float


def run(seed):
    """Feed the exchanges in batches of half a second; ask meanwhile for the present, and at the end for all times."""
    world, clock = World(seed), ClockEstimator(ASSUMED)
    arrived, stamps, min_round_trip = world.exchanges()
    flagged_at, live = [], []
    for end in range(BATCH, RUN + 2 * BATCH, BATCH):
        batch = (arrived >= end - BATCH) & (arrived < end)
        flagged_at += [end] * len(clock.add(*(s[batch] for s in stamps)))
        is_exempt = world.step_at <= end and not flagged_at
        if end % S == 0 and not is_exempt:
            live.append(holds(world, clock, np.array([end - 1.0]))[0][0])
    contained, width = holds(world, clock, np.linspace(0, RUN - 1, 300))
    return Outcome(world, flagged_at, list(clock.steps), contained, np.array(live), width, min_round_trip)


def holds(world, clock, t):
    """Whether the interval contains the truth at each instant, and how wide it is."""
    shown = world.other(t)
    truth = shown - world.ours(t)
    low, high = clock.bounds(shown)
    return (low <= truth) & (truth <= high), np.where(high == UNBOUNDED_NS, np.inf, (high - low).astype(float))


@pytest.mark.parametrize("first", range(0, RUNS, CHUNK))
def test_the_interval_contains_the_truth_and_steps_are_flagged(first):
    """Always contained, at the end and live; every step flagged within 1 s, and nothing else; narrow on the median."""
    tightness = []
    for seed in range(first, first + CHUNK):
        seen = run(seed)
        world = seen.world
        assert seen.contained.all(), f"seed {seed}: the truth is outside"
        assert seen.contained_live.all(), f"seed {seed}: the truth was outside live"
        if world.step_at < np.inf:
            assert len(seen.steps) == 1, f"seed {seed}: {len(seen.steps)} steps were flagged, there was one"
            assert 0 < seen.flagged_at[0] - world.step_at <= S, f"seed {seed}: flagged too late"
            around = [int(world.other(np.array([world.step_at + side]))[0]) for side in (-1, 1)]
            doubt = seen.steps[0].doubt
            assert all(any(a <= t <= b for a, b in doubt) for t in around), f"seed {seed}: the step was elsewhere"
        else:
            assert not seen.steps, f"seed {seed}: a step was flagged, there was none"
        # An instant is judged by what came up to half_window_s before it, and by what came as long after it.
        width, least = np.median(seen.width), seen.min_round_trip + 2 * ASSUMED.stamp_error_ns
        drift = abs(world.skew_ppm) * 1e-6 * ASSUMED.half_window_s * S
        assert width <= 1.2 * (least + drift), f"seed {seed}: median width {width:.0f} ns"
        tightness.append(width / least)
    assert np.median(tightness) <= 1.2  # so it is not the drift that makes room
