"""The join against a model in plain words: one record at a time, whatever the order, the copies and the blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.collect import arrivals
from netprobe.collect.arrivals import tabulate
from netprobe.collect.reordering import Passings, reordered
from netprobe.model.records import NO_TIME, HopBatch, HopRecord

STOPS, COUNT = 3, 6
TIMES = st.one_of(st.integers(1, 12), st.just(NO_TIME))
RECORDS = st.lists(
    st.builds(
        HopRecord,
        t_ns=TIMES,
        session=st.just(1),
        seq=st.integers(0, COUNT),  # the last one was never planned
        point=st.integers(0, STOPS),  # the last one is not on the path
        direction=st.integers(0, 1),
        leg=st.just(0),
    ),
    max_size=40,
)


def model(records, deadlines, late):
    """Cells as in Arrivals, by (stop, seq); arrival order of first arrivals, by stop; and how many are forged."""
    cells, forged = {}, 0
    for number, (r, is_late) in enumerate(zip(records, late, strict=True)):
        if r.point >= STOPS or r.direction != r.point % 2 or r.seq >= COUNT:
            forged += 1
            continue
        cell = cells.setdefault((r.point, r.seq), {"times": [], "seen": False, "late": False})
        if is_late if is_late is not None else r.t_ns > deadlines[r.seq]:
            cell["late"] = True
            continue
        cell["seen"] = True
        if r.t_ns != NO_TIME:
            cell["times"].append((r.t_ns, number))
    firsts = sorted((*min(c["times"]), stop, seq) for (stop, seq), c in cells.items() if c["times"])
    return cells, {stop: [seq for _, _, s, seq in firsts if s == stop] for stop in range(STOPS)}, forged


def check(records, deadlines, late=None):
    marks = late if late is not None else [None] * len(records)
    cells, orders, forged = model(records, deadlines, marks)
    stops = [(i, i % 2) for i in range(STOPS)]
    flags = None if late is None else np.array(late, np.bool_)
    got = tabulate(HopBatch.of(records), stops, np.array(deadlines, np.int64), flags)
    assert got.forged == forged
    for stop in range(STOPS):
        for seq in range(COUNT):
            cell = cells.get((stop, seq), {"times": [], "seen": False, "late": False})
            times = [t for t, _ in cell["times"]]
            at = (stop, seq)
            assert got.first_ns[at] == min(times, default=NO_TIME)
            assert got.last_ns[at] == max(times, default=NO_TIME)
            assert got.copies[at] == len(times)
            assert (got.seen[at], got.late[at]) == (cell["seen"], cell["late"])
            assert (got.number[at] >= 0) == bool(times)
        came = [seq for seq in np.lexsort((got.number[stop], got.first_ns[stop])) if got.number[stop, seq] >= 0]
        assert came == orders[stop]


@pytest.fixture(autouse=True, params=[3, 1 << 14])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(arrivals, "BLOCK", request.param)


@settings(derandomize=True, max_examples=100)
@given(RECORDS, st.lists(st.integers(0, 12), min_size=COUNT, max_size=COUNT))
def test_the_join_is_that_of_the_plain_model(records, deadlines):
    """First arrival wins, ties by order of arrival; copies, late, forged and untimed records are told apart."""
    check(records, deadlines)


@settings(derandomize=True, max_examples=100)
@given(RECORDS.flatmap(lambda r: st.tuples(st.just(r), st.lists(st.booleans(), min_size=len(r), max_size=len(r)))))
def test_what_other_clocks_say_is_late_is_late(given_records):
    """With a mask no deadline is looked at."""
    records, late = given_records
    check(records, [0] * COUNT, late)


TIE = st.tuples(st.integers(0, 5), st.integers(0, 5))


@settings(derandomize=True, max_examples=150)
@given(st.lists(TIE, max_size=20), st.randoms(use_true_random=False))
def test_reordered_is_what_a_later_one_overtook(times, rng):
    """RFC 4737: probe by probe, at equal times by order of arrival."""
    first, second = list(range(len(times))), list(range(len(times)))
    rng.shuffle(first)
    rng.shuffle(second)
    columns = [[t for t, _ in times], first, [t for _, t in times], second]
    got = reordered(Passings(*(np.array(c, np.int64) for c in columns)))
    places = list(zip(*columns, strict=True))
    expected = [any(o[:2] > p[:2] and o[2:] < p[2:] for o in places) for p in places]
    assert got.tolist() == expected
