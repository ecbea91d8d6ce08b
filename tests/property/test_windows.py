"""Windows give what the whole session gives at once, whatever the windows, the batches and the disorder."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.collect import live
from netprobe.collect.arrivals import tabulate
from netprobe.collect.ledger import Fate, settle
from netprobe.collect.results import leg_result
from netprobe.collect.segments import LegTables, end_to_end, known_copies, segment_results
from netprobe.collect.session import BlindWindow, LegOutcome
from netprobe.collect.window_book import WindowBook
from netprobe.collect.windows import Windows
from netprobe.model.points import Direction, Point, PointKind, Stamp, Stop
from netprobe.model.records import NO_TIME, HopBatch, HopRecord

TMAX_NS = 200


def path(stops, ringless=()):
    stamps = [Stamp.SENDER if not i else Stamp.MIRROR if i in ringless else Stamp.KERNEL_RX for i in range(stops)]
    return [Stop(Point(f"p{i}", PointKind.BACKEND, "h"), Direction.IN, stamp) for i, stamp in enumerate(stamps)]


class World:
    """A session with loss, copies, reordering, late arrivals, unsent probes, blind times; drawn from a seed."""

    def __init__(self, seed, *, most=40):
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.count, stops = int(rng.integers(1, most)), int(rng.integers(2, 6))
        self.stops = path(stops, {stops - 1} if rng.random() < 0.2 else ())
        self.unwatched = frozenset(f"p{i}" for i in range(1, stops) if rng.random() < 0.1)
        gaps = rng.choice([0, 1, 7, 40], self.count)
        self.sent = np.where(rng.random(self.count) < 0.9, 1_000 + np.cumsum(gaps), 0)
        self.stamped = rng.random(self.count) < 0.9
        spread = int(rng.choice([1, 30, 150]))
        rows = [r for seq in np.flatnonzero(self.sent).tolist() for r in self._hops(seq, stops, spread)]
        rng.shuffle(rows)
        self.rows = sorted(rows, key=lambda r: r.t_ns)  # arrival order at each point is that of time
        for i in range(len(self.rows) - 1):
            if rng.random() < 0.1:  # but stamps are not always in order of arrival
                self.rows[i], self.rows[i + 1] = self.rows[i + 1], self.rows[i]
        self.blind = []
        for i in range(1, stops):
            start = int(rng.integers(900, 2_000))
            if rng.random() < 0.2:
                self.blind.append(BlindWindow(i, start, start + int(rng.integers(0, 400))))
        self.now = int(rng.integers(1_000, 3_000)) if rng.random() < 0.3 else 10_000

    def _hops(self, seq, stops, spread):
        rng, t = self.rng, int(self.sent[seq])
        for stop in range(1, stops):
            if rng.random() < 0.05:
                return
            t += int(rng.integers(0, spread)) + (TMAX_NS if rng.random() < 0.03 else 0)
            for copy in range(int(rng.choice([1, 1, 1, 1, 1, 0, 2, 3]))):
                after = int(rng.choice([0, 5, TMAX_NS])) if copy else 0
                yield HopRecord(t + after, 1, seq, stop, 0, 0)

    def batch(self):
        """The whole session at once, by the tables of collect.arrivals, and a result that knows the same time."""
        rows = [r for r in self.rows if r.t_ns < self.now]
        sent = np.where(self.sent < self.now, self.sent, 0)
        deadline = np.where(sent > 0, sent + TMAX_NS, 0)
        arrivals = tabulate(HopBatch.of(rows), [(i, 0) for i in range(len(self.stops))], deadline)
        arrivals.first_ns[0] = np.where(self.stamped & (sent > 0), sent, NO_TIME)
        arrivals.number[0] = np.where(self.stamped & (sent > 0), np.arange(self.count), -1)
        blind = np.zeros(arrivals.seen.shape, bool)
        for i, stop in enumerate(self.stops):
            blind[i] = not stop.is_observed_by_ring or stop.point.id in self.unwatched
            for w in self.blind:
                earlier = np.maximum(arrivals.first_ns[:i].max(axis=0, initial=0), np.where(sent > 0, sent, -1))
                if w.point == i:
                    blind[i] |= (w.end_ns >= earlier) & (w.start_ns <= deadline)
        ledger = settle(arrivals, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=self.now)
        copies = known_copies(self.stops, arrivals, np.ones(self.count, np.int64))
        leg = LegTables(self.stops, arrivals, ledger, copies, None, self.unwatched)
        outcome = LegOutcome(tuple(self.stops), arrivals, ledger, segment_results(leg), end_to_end(leg))
        return leg_result(outcome)

    def windows(self, **settings_):
        span = 1 << int(self.rng.integers(0, 4))
        return Windows(
            self.stops,
            range(len(self.stops)),
            count=self.count,
            tmax_ns=TMAX_NS,
            unwatched=self.unwatched,
            **{"span": span, "max_live": 4 * self.count + 2 * span, **settings_},
        )

    def play(self, windows, *, advances=True):
        """Tell everything in pieces of any size, in time for each watermark."""
        closed, told, taken, clock = [], 0, 0, 900
        for window in self.blind:
            windows.blind(window)
        latest = np.maximum.accumulate([r.t_ns for r in self.rows]) if self.rows else np.empty(0)
        while clock < self.now:
            clock = min(clock + int(self.rng.integers(1, 120)), self.now)
            while told < self.count and self.sent[told] < clock:
                end = min(told + int(self.rng.integers(1, 5)), self.count)
                ready = np.flatnonzero(self.sent[told:end] >= clock)
                end = told + int(ready[0]) if len(ready) else end
                if self.rng.random() < 0.5:
                    taken = self._feed(windows, taken, latest, clock)
                windows.sent(told, self.sent[told:end], self.stamped[told:end])
                told = end
            taken = self._feed(windows, taken, latest, clock)
            if advances:
                closed += windows.advance(clock)
        return closed + windows.finish(self.now)

    def _feed(self, windows, taken, latest, clock):
        """All records that are older than the clock, and those that came before them."""
        end = int(np.searchsorted(latest, clock))
        while end < len(self.rows) and any(r.t_ns < clock for r in self.rows[end:]):
            end += 1
        end = max(end, taken)
        while taken < end:
            cut = min(end, taken + int(self.rng.integers(1, 20)))
            windows.feed(HopBatch.of(r for r in self.rows[taken:cut] if r.t_ns < self.now))
            taken = cut
        return end


def comparable(result, *, is_total=False):
    """Without what totals do not have: the exact interval of a median, delays of a span where probes were lost."""
    rows = []
    for row in (*result.segments, result.end_to_end):
        delay = row.delay and replace(row.delay, p50_interval_95=None)
        rows.append(replace(row, delay=delay))
    neighbours = {(f"p{i}", f"p{i + 1}") for i in range(9)}
    whole = rows.pop()
    if is_total:
        rows = [r if (r.first, r.second) in neighbours else replace(r, delay=None, pdv=None, negative=0) for r in rows]
    return replace(result, segments=tuple(rows), end_to_end=whole)


@settings(derandomize=True, max_examples=120)
@given(st.integers(0, 2**32))
def test_windows_agree_with_the_whole_session_at_once(seed):
    """Fates, spans, missed, late, copies, reordering and histograms, to the last probe."""
    world = World(seed)
    windows = world.windows()
    closed = world.play(windows)
    got, expected = windows.totals.result(), world.batch()
    assert comparable(got, is_total=True) == comparable(expected, is_total=True)
    assert not {k: v for k, v in windows.counters.items() if v and k != "after_close"}
    for row, other in zip(got.segments, expected.segments, strict=True):
        if row.delay and row.delay.p50_interval_95 and other.delay:
            for ours, exact in zip(row.delay.p50_interval_95, other.delay.p50_interval_95, strict=True):
                assert ours == exact or abs(ours - exact) <= max(1, 0.01 * exact)
    for name in ("planned", "unsent", "delivered", "lost", "unobserved", "pending"):
        rest = got.unsent if name in {"planned", "unsent"} else 0  # windows that never began are in the totals alone
        total = sum(getattr(one.result, name) for one in closed)
        assert getattr(got, name) - rest <= total <= getattr(got, name)


@settings(derandomize=True, max_examples=40)
@given(st.integers(0, 2**32))
def test_one_window_that_holds_all_is_the_whole_session(seed):
    """Its result is the batch result, with the exact interval of the median."""
    world = World(seed, most=16)
    closed = world.play(world.windows(span=16, max_live=32), advances=False)
    assert [one.result for one in closed] in ([world.batch()], [])


@settings(derandomize=True, max_examples=60)
@given(st.integers(0, 2**32), st.booleans())
def test_what_finds_no_room_is_unobserved_and_never_lost(seed, advances):
    """The equation holds, nothing is planned twice, and no loss is stated that the whole session does not have."""
    world = World(seed)
    windows = world.windows(span=4, max_live=8)
    closed = world.play(windows, advances=advances)
    got, full = windows.totals.result(), world.batch()
    assert got.planned == full.planned == world.count
    assert got.planned == got.unsent + got.delivered + got.lost + got.unobserved + got.pending
    assert (got.unsent, got.lost <= full.lost, got.delivered <= full.delivered) == (full.unsent, True, True)
    for one in closed:
        if one.is_shed:
            assert (one.result.lost, one.result.delivered) == (0, 0)
    assert got.unobserved >= sum(one.result.unobserved for one in closed if one.is_shed)


@settings(derandomize=True, max_examples=40)
@given(st.integers(0, 2**32))
def test_closed_windows_hold_their_records_when_asked(seed):
    """All records of a window, in order, once."""
    world = World(seed)
    windows = world.windows(keeps_hops=True)
    for one in world.play(windows):
        rows = [r for r in world.rows if one.first <= r.seq < one.end and r.t_ns < world.now]
        kept = [one.hops.row(i) for i in range(len(one.hops))]
        assert kept == rows[: len(kept)]  # what came after closing is not among them
        assert len(rows) - len(kept) <= windows.counters["after_close"]


def test_numbers_of_records_are_made_anew_before_they_overflow(monkeypatch):
    """With room for few numbers all is as with many."""
    for seed in range(15):
        plain, tight = World(seed), World(seed)
        one, two = plain.windows(), tight.windows()
        plain.play(one)
        with monkeypatch.context() as patched:
            patched.setattr(live, "MAX_NUMBER", 40)
            tight.play(two)
        assert one.totals.result() == two.totals.result()


def test_a_window_closes_when_its_last_deadline_is_past_and_gives_its_room_back():
    """Not a nanosecond later; a window that found no room before stays shed, the next one has it."""
    windows = Windows(path(2), range(2), count=10, tmax_ns=TMAX_NS, span=2, max_live=4)
    for seq in range(6):
        windows.sent(seq, np.array([100 + seq]))
        windows.feed(HopBatch.of([HopRecord(150, 1, seq, 1, 0, 0)] * 2))
    assert windows.counters["shed"] == 4
    assert windows.live == 6
    assert windows.advance(101 + TMAX_NS) == []
    (first,) = windows.advance(102 + TMAX_NS)
    assert (first.first, first.end, first.from_ns, first.until_ns, first.is_shed) == (0, 2, 100, 101, False)
    windows.sent(6, np.array([500, 501, 502, 503]))
    windows.feed(HopBatch.of([HopRecord(510, 1, 6, 1, 0, 0)]))
    closed = windows.advance(10_000)
    assert [(one.is_shed, one.result.unobserved) for one in closed] == [(False, 0), (True, 2), (False, 0), (True, 2)]


def test_copies_beyond_the_bound_change_no_fate():
    """A loop makes thousands of copies: they are counted as shed, and the first arrival stands."""
    stops = path(3)
    windows = Windows(stops, range(3), count=2, tmax_ns=TMAX_NS, span=1, max_live=4)
    windows.sent(0, np.array([10, 20]))
    rows = [HopRecord(30 + i % 7, 1, 0, 1, 0, 0) for i in range(100)]
    for i in range(0, 100, 5):
        windows.feed(HopBatch.of(rows[i : i + 5]))
    windows.feed(HopBatch.of([HopRecord(40, 1, 0, 2, 0, 0)]))
    (first, _) = windows.finish(10_000)
    assert first.result.delivered == 1
    assert first.result.segments[0].delay.max == 20
    assert windows.counters["copies_shed"] > 80


def test_a_probe_that_was_seen_was_sent_whatever_its_sender_said():
    """Its waiting time begins when it was first seen; of others a lost sender leaves nothing known."""
    windows = Windows(path(3), range(3), count=6, tmax_ns=TMAX_NS, span=2, max_live=6)
    windows.sent(0, np.array([0, 0]))
    windows.feed(HopBatch.of([HopRecord(1_000, 1, 0, 1, 0, 0), HopRecord(1_000, 1, 2, 1, 0, 0)]))
    assert windows.advance(1_100) == []
    (closed,) = windows.advance(1_201)
    assert (closed.result.unsent, closed.result.lost) == (1, 1)
    windows.finish(5_000, is_sender_lost=True)
    assert windows.totals.fates == {
        Fate.UNSENT: 1, Fate.LOST: 2, Fate.UNOBSERVED: 3, Fate.DELIVERED: 0, Fate.PENDING: 0,
    }  # fmt: skip


def test_strange_records_are_counted_apart():
    """Off the path, never planned, without a time; what the sender's own point sees is no forgery."""
    windows = Windows(path(3), range(3), count=2, tmax_ns=TMAX_NS, span=2, max_live=4)
    strange = [(1, 0, 7, 0), (1, 0, 1, 1), (1, 9, 1, 0), (NO_TIME, 0, 1, 0), (1, 0, 0, 0)]
    windows.feed(HopBatch.of(HopRecord(t, 1, seq, point, direction, 0) for t, seq, point, direction in strange))
    assert windows.counters == {"forged": 3, "untimed": 1}


@pytest.mark.parametrize("case", [{"span": 3}, {"max_live": 7, "span": 4}])
def test_a_bound_that_cannot_be_is_refused(case):
    with pytest.raises(Exception, match="windows"):
        Windows(path(2), range(2), count=9, tmax_ns=1, **case)


def test_the_sender_tells_in_order():
    windows = Windows(path(2), range(2), count=4, tmax_ns=1, span=2, max_live=4)
    windows.sent(0, np.array([1, 2]))
    for first, times in ((0, [1]), (3, [1]), (2, [1, 2, 3])):
        with pytest.raises(Exception, match="were told"):
            windows.sent(first, np.array(times))


@settings(derandomize=True, max_examples=10)
@given(st.integers(0, 2**32))
def test_a_batch_of_many_sessions_is_many_batches_of_one(seed):
    """Each session's windows get its records in order; of a session that nobody knows they are counted."""
    worlds = {number: World(seed + number) for number in (1, 2, 9)}
    alone, book = {}, WindowBook({(number, 0): world.windows() for number, world in worlds.items()})
    rows = []
    for number, world in worlds.items():
        alone[number] = World(seed + number).windows()
        for windows in (alone[number], book.windows[number, 0]):
            windows.sent(0, world.sent, world.stamped)
        mine = [replace(r, session=number) for r in world.rows]
        alone[number].feed(HopBatch.of(mine))
        rows += mine
    rows = [*sorted(rows, key=lambda r: r.point), HopRecord(1, 7, 0, 1, 0, 0), HopRecord(1, 1, 0, 1, 0, 1)]
    book.feed(HopBatch.of(rows))
    book.advance(1_500)
    book.finish(10_000)
    assert book.strange == 2
    for number, windows in alone.items():
        windows.finish(10_000)
        assert windows.totals.result() == book.windows[number, 0].totals.result()
