"""The join: hop records to first arrivals and delays a segment, in CPU time, beside polars' best form of the same.

Ours begins at the packed rows, as rings and agents deliver them, and makes the tables that the ledger needs. Polars
begins at ready columns, and makes the segments' figures alone. Both answers are compared, so neither may do less.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.harness import Bench, Figure, MissingToolError, at_least, at_most, benchmark, compare, measure, pinned
from netprobe.collect.arrivals import tabulate
from netprobe.model.records import HOP_DTYPE, HopBatch

POINTS = 10
BLOCK = 1_000  # records of one point that come together, as from a ring
SMALL, LARGE = 10_000, 1_000_000  # probes: 10^5 and 10^7 records
Answer = list[tuple[int, int, int]]
"""Of each segment: probes that both points saw, the sum of their delays in ns, and records at the second point."""


@dataclass(frozen=True)
class Records:
    """Hop records of `count` probes at POINTS points."""

    count: int
    hops: HopBatch


def draw(count: int, *, faults: bool, shuffled: bool = False, seed: int = 1) -> Records:
    """Records as rings deliver them, or in no order; with faults 1 % a hop are lost, 3 % come twice, some overtake."""
    rng = np.random.default_rng(seed)
    alive, behind = np.ones(count, bool), np.zeros(count, np.int64)
    columns = []
    for point in range(POINTS):
        if faults and point:
            alive &= rng.random(count) >= 0.01
            behind[rng.random(count) < 0.005] += 40_000
        seq = np.flatnonzero(alive)
        if faults and point:
            seq = np.concatenate([seq, seq[rng.random(len(seq)) < 0.03]])
        t_ns = 10**18 + seq * 4_000 + point * 50_000 + behind[seq] + rng.integers(0, 1_000, len(seq))
        by_time = np.argsort(t_ns, kind="stable")
        columns.append(
            (seq[by_time], np.full(len(seq), point), t_ns[by_time], np.arange(len(seq)) // BLOCK * POINTS + point)
        )
    seq, point, t_ns, turn = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = rng.permutation(len(seq)) if shuffled else np.argsort(turn.astype(np.uint16), kind="stable")
    rows = np.zeros(len(seq), HOP_DTYPE)
    rows["t_ns"], rows["seq"], rows["point"] = t_ns[order], seq[order], point[order]
    return Records(count, HopBatch(rows))


def ours(records: Records) -> Answer:
    arrivals = tabulate(records.hops, [(point, 0) for point in range(POINTS)], np.full(records.count, 2**62))
    again = np.bincount(arrivals.again.cell // records.count, minlength=POINTS)
    answer = []
    for k in range(POINTS - 1):
        first, second = arrivals.first_ns[k], arrivals.first_ns[k + 1]
        both = arrivals.seen[k] & arrivals.seen[k + 1]
        delay = second - first
        total = int(delay.sum() if both.all() else delay[both].sum())
        copies = int(np.count_nonzero(arrivals.seen[k + 1]) + again[k + 1])
        answer.append((int(np.count_nonzero(both)), total, copies))
    return answer


def rate(function: Callable[[], object], records: int, times: int = 1) -> float:
    """Records a second of CPU time."""
    began = time.process_time()
    for _ in range(times):
        function()
    return records * times / (time.process_time() - began)


def join(bench: Bench, *, faults: bool, target: float) -> Figure:
    with pinned(bench.cpus[0]):  # before polars starts its threads: one costs the least CPU time
        return joined(bench, faults=faults, target=target)


def joined(bench: Bench, *, faults: bool, target: float) -> Figure:
    try:
        import polars as pl  # noqa: PLC0415  a part of a second, for those who need it

        from bench.peers.polars_join import FORMS  # noqa: PLC0415
    except ImportError as error:
        raise MissingToolError("polars", "the dev extra of netprobe") from error
    large, small = draw(bench.rounds(LARGE, LARGE // 50), faults=faults), draw(SMALL, faults=faults)
    shuffled = draw(large.count, faults=faults, shuffled=True)
    count = len(large.hops)

    def frame(records: Records) -> pl.DataFrame:
        hops = records.hops
        return pl.DataFrame({"seq": hops.seq, "point": hops.point.astype("u1"), "t": hops.t_ns})

    table, loose = frame(large), frame(shuffled)

    def arms(own: Records, peer: pl.DataFrame) -> dict[str, Callable[[], float]]:
        forms = {form.__name__: partial(form, peer, POINTS, faults=faults) for form in FORMS}
        return {name: partial(rate, form, count) for name, form in {"own": partial(ours, own), **forms}.items()}

    answer = ours(large)
    differing = [form.__name__ for form in FORMS if form(table, POINTS, faults=faults) != answer]
    few = partial(rate, partial(ours, small), len(small.hops), bench.rounds(50))
    slices = bench.alternate({**arms(large, table), "small": few}, rounds=5)
    disorder = bench.alternate(arms(shuffled, loose), rounds=2, warm_up=False)
    best, best_in_disorder = (
        [max(turn) for turn in zip(*(of[form.__name__] for form in FORMS), strict=True)] for of in (slices, disorder)
    )
    unit = "records/CPU-s"
    return measure(
        slices["own"],
        unit=unit,
        target=at_least(target),
        peer=f"polars {pl.__version__}",
        peer_values=best,
        note=f"polars: in each turn the best of {', '.join(form.__name__ for form in FORMS)}",
        broken=f"polars' answer differs: {', '.join(differing)}" if differing else "",
    ).also(
        compare(slices["own"], best, unit=unit, peer="polars", target=at_least(3.0), label="times polars"),
        compare(
            slices["small"],
            slices["own"],
            unit=unit,
            peer=f"{count:.0e} records",
            target=at_most(2.0),
            label=f"{len(small.hops):.0e} records",
            note="how much slower a record is when there are a hundred times as many",
        ),
        compare(
            disorder["own"],
            best_in_disorder,
            unit=unit,
            peer="polars",
            target=None,
            label="in no order",
            note="no ring delivers this",
        ),
    )


@benchmark("join_faults")
def join_faults(bench: Bench) -> Figure:
    return join(bench, faults=True, target=12e6)


@benchmark("join_clean")
def join_clean(bench: Bench) -> Figure:
    return join(bench, faults=False, target=30e6)
