"""The join of hop records in polars, in the forms that came out fastest of six; which is best depends on the data.

Tried as well: the streaming engine, which is no faster; one self-join on (seq, point + 1), and sort + shift, which both
cost more than twice as much.
"""

from itertools import pairwise

import polars as pl

Answer = list[tuple[int, int, int]]


def _firsts(frame: pl.LazyFrame, *, faults: bool) -> pl.LazyFrame:
    """First arrival wins, and copies are counted; without faults there is nothing to do."""
    if faults:
        return frame.group_by("seq").agg(pl.col("t").min(), pl.len().alias("n"))
    return frame.with_columns(n=pl.lit(1, dtype=pl.UInt32))


def _joined(first: pl.LazyFrame, second: pl.LazyFrame) -> pl.LazyFrame:
    joined = first.join(second, on="seq")
    return joined.select(pl.len().alias("both"), (pl.col("t_right") - pl.col("t")).sum().alias("delay"))


def together(frame: pl.DataFrame, points: int, *, faults: bool) -> Answer:
    """A join a segment, all in one query, whose common parts polars finds."""
    of = [frame.lazy().filter(pl.col("point") == k).select("seq", "t") for k in range(points)]
    firsts = [_firsts(one, faults=faults) for one in of]
    joins = [_joined(firsts[k], firsts[k + 1]) for k in range(points - 1)]
    counts = [one.select(pl.col("n").sum()) for one in firsts[1:]]
    done = pl.collect_all(joins + counts)
    rows = zip(done[: points - 1], done[points - 1 :], strict=True)
    return [(joined["both"][0], joined["delay"][0], count["n"][0]) for joined, count in rows]


def one_by_one(frame: pl.DataFrame, points: int, *, faults: bool) -> Answer:
    """A join a segment, each point's first arrivals made once."""
    of = [frame.lazy().filter(pl.col("point") == k).select("seq", "t") for k in range(points)]
    firsts = [_firsts(one, faults=faults).collect() for one in of]
    answer = []
    for first, second in pairwise(firsts):
        joined = _joined(first.lazy(), second.lazy()).collect()
        answer.append((joined["both"][0], joined["delay"][0], second["n"].sum()))
    return answer


def pivot(frame: pl.DataFrame, points: int, *, faults: bool) -> Answer:  # noqa: ARG001  min() is right either way
    """One group a probe, with a column a point."""
    times = [pl.col("t").filter(pl.col("point") == k).min().alias(str(k)) for k in range(points)]
    delays = [pl.col(str(k + 1)) - pl.col(str(k)) for k in range(points - 1)]
    wide = frame.lazy().group_by("seq").agg(times)
    both = [delay.is_not_null().sum().alias(f"both{k}") for k, delay in enumerate(delays)]
    figures = wide.select([delay.sum().alias(f"delay{k}") for k, delay in enumerate(delays)] + both)
    counts = frame.lazy().group_by("point").agg(pl.len().alias("n"))
    row, count = pl.collect_all([figures, counts])
    copies = dict(count.iter_rows())
    return [(row[f"both{k}"][0], row[f"delay{k}"][0], copies[k + 1]) for k in range(points - 1)]


FORMS = (together, one_by_one, pivot)
