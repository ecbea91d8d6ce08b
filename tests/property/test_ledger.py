"""Laws of the ledger over random paths, fates, blind points, arrival orders and batch boundaries."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.collect.arrivals import tabulate
from netprobe.collect.ledger import Fate, settle
from netprobe.collect.segments import LegTables, end_to_end, known_copies, segment_results
from netprobe.model.points import Direction, Point, PointKind, Stamp, Stop
from netprobe.model.records import HopBatch, HopRecord

TMAX_NS = 1_000


@st.composite
def worlds(draw):
    """A path of 2 to 6 stops and up to 12 probes, each with its own fate, plus everything that can confuse."""
    stops = draw(st.integers(2, 6))
    count = draw(st.integers(1, 12))
    blind = draw(st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=stops, max_size=stops))
    probes = []
    for seq in range(count):
        sent = draw(st.integers(0, 5)) * 100  # 0 = unsent
        reach = draw(st.integers(0, stops - 1))
        hops = []
        t_ns = sent
        for stop in range(1, reach + 1):
            t_ns += draw(st.integers(0, 450))
            hops += [(stop, t_ns + 7 * copy) for copy in range(draw(st.sampled_from([1, 1, 1, 0, 2, 3])))]
        probes.append((seq, sent, hops))
    now = draw(st.integers(0, 3_000))
    order = draw(st.randoms(use_true_random=False))
    return stops, count, np.array(blind), probes, now, order


def reference(stops, blind, probes, now):
    """The ledger in plain words: one probe at a time."""
    fates = {}
    for seq, sent, hops in probes:
        if not sent:
            fates[seq] = (Fate.UNSENT, -1, -1)
            continue
        in_time = {stop for stop, t in hops if t <= sent + TMAX_NS}
        last = max(in_time | {0})
        looking = [s for s in range(last + 1, stops) if not blind[s][seq]]
        if last == stops - 1:
            fates[seq] = (Fate.DELIVERED, last, -1)
        elif sent + TMAX_NS > now:
            fates[seq] = (Fate.PENDING, last, -1)
        elif looking:
            fates[seq] = (Fate.LOST, last, looking[0])
        else:
            fates[seq] = (Fate.UNOBSERVED, last, -1)
    return fates


def records(probes, order):
    rows = [HopRecord(t, 9, seq, stop, 0, 0) for seq, _, hops in probes for stop, t in hops]
    order.shuffle(rows)
    return rows


def table(rows, stops, sent):
    deadline = np.where(sent > 0, sent + TMAX_NS, 0)
    return tabulate(HopBatch.of(rows), [(i, 0) for i in range(stops)], deadline), deadline


def path(stops):
    return [
        Stop(Point(f"p{i}", PointKind.BACKEND, "h"), Direction.IN, Stamp.KERNEL_RX if i else Stamp.SENDER)
        for i in range(stops)
    ]


def leg(stops, arrivals, ledger):
    """What segments are made from; one copy of each probe starts."""
    places = path(stops)
    return LegTables(places, arrivals, ledger, known_copies(places, arrivals, np.ones(len(ledger.fate), np.int64)))


@settings(deadline=None, derandomize=True, max_examples=400)
@given(worlds())
def test_every_probe_has_exactly_one_fate_and_it_is_the_references(world):
    """Planned = unsent + delivered + lost + unobserved + pending, probe by probe, against a plain model."""
    stops, count, blind, probes, now, order = world
    sent = np.array([p[1] for p in probes], np.int64)
    arrivals, deadline = table(records(probes, order), stops, sent)
    ledger = settle(arrivals, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    got = {i: (Fate(ledger.fate[i]), ledger.last_stop[i], ledger.first_missing[i]) for i in range(count)}
    assert got == reference(stops, blind, probes, now)
    assert sum(ledger.count(f) for f in Fate) == ledger.planned == count
    spans = Counter((a, b) for fate, a, b in got.values() if fate is Fate.LOST)
    assert {(a, b): n for a, b, n in ledger.lost_spans()} == dict(spans)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(worlds(), st.randoms(use_true_random=False))
def test_batch_boundaries_and_order_change_nothing(world, again):
    """The result depends on the set of records, not on how or in which order they came."""
    stops, _, blind, probes, now, order = world
    sent = np.array([p[1] for p in probes], np.int64)
    first, deadline = table(records(probes, order), stops, sent)
    second, _ = table(records(probes, again), stops, sent)
    assert (first.first_ns == second.first_ns).all()
    assert (first.copies == second.copies).all()
    assert (first.seen == second.seen).all()
    one = settle(first, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    two = settle(second, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    assert (one.fate == two.fate).all()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(worlds())
def test_segments_account_for_every_probe(world):
    """Lost over all rows is the ledger's lost; sent, received, lost and undecided close in every row."""
    stops, _, blind, probes, now, order = world
    sent = np.array([p[1] for p in probes], np.int64)
    arrivals, deadline = table(records(probes, order), stops, sent)
    ledger = settle(arrivals, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    tables = leg(stops, arrivals, ledger)
    rows = segment_results(tables)
    assert sum(r.lost for r in rows) == ledger.count(Fate.LOST)
    assert all(r.sent == r.received + r.lost + r.undecided for r in rows)
    assert all(r.undecided >= 0 for r in rows)
    for row in rows:
        # Whatever became of the undecided ones, the interval covers it.
        for lost in (row.lost, row.lost + row.undecided):
            if row.sent:
                assert row.loss_interval_95[0] <= lost / row.sent <= row.loss_interval_95[1]
    whole = end_to_end(tables)
    assert whole.lost == ledger.count(Fate.LOST)
    assert whole.received == ledger.count(Fate.DELIVERED)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(worlds(), st.integers(1, 3))
def test_duplicates_change_only_the_duplicate_counter(world, copies):
    """More copies at the last stop add duplicates there and change no fate."""
    stops, _, blind, probes, now, order = world
    sent = np.array([p[1] for p in probes], np.int64)
    rows = [r for r in records(probes, order) if r.t_ns <= sent[r.seq] + TMAX_NS or not sent[r.seq]]
    last = [r for r in rows if r.point == stops - 1]
    plain, deadline = table(rows, stops, sent)
    more, _ = table(rows + last * copies, stops, sent)
    before = settle(plain, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    after = settle(more, started=sent > 0, blind=blind, deadline_ns=deadline, now_ns=now)
    assert (before.fate == after.fate).all()
    counts = [segment_results(leg(stops, a, one)) for a, one in ((plain, before), (more, after))]
    quiet, doubled = ({row.id: row.duplicated for row in rows} for rows in counts)
    final = f"p{stops - 2}..p{stops - 1}"
    assert {k: n for k, n in quiet.items() if k != final} == {k: n for k, n in doubled.items() if k != final}
    assert doubled[final] >= quiet[final]
    assert (more.first_ns == plain.first_ns).all()


def test_a_record_off_the_path_or_out_of_range_is_forged_not_a_hop():
    """Wrong point, wrong direction and a seq that was never planned are counted apart."""
    rows = [HopRecord(10, 1, 0, 1, 0, 0), HopRecord(10, 1, 0, 1, 1, 0), HopRecord(10, 1, 0, 7, 0, 0)]
    rows.append(HopRecord(10, 1, 99, 1, 0, 0))
    arrivals = tabulate(HopBatch.of(rows), [(0, 0), (1, 0)], np.array([100]))
    assert arrivals.forged == 3
    assert arrivals.copies.tolist() == [[0], [1]]


def test_a_late_arrival_is_lost_and_told_apart():
    """A record after the deadline is no arrival; the probe counts as lost and as late. A blind point proves nothing."""
    arrivals = tabulate(HopBatch.of([HopRecord(5_000, 1, 0, 1, 0, 0)]), [(0, 0), (1, 0)], np.array([1_000]))
    for is_blind, fate, late in ((False, Fate.LOST, 1), (True, Fate.UNOBSERVED, 0)):
        ledger = settle(
            arrivals,
            started=np.array([True]),
            blind=np.full((2, 1), is_blind),
            deadline_ns=np.array([1_000]),
            now_ns=9_000,
        )
        assert (ledger.count(fate), ledger.late) == (1, late)
