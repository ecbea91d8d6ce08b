"""Results of runs as readings (model.metric_catalogue): segments, paths, states, counters, clocks. Pure.

Knows no database and no page: store.influx and show.exposition take what comes out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from netprobe.model.metric_catalogue import CLOCK, COUNTER, DELAY_BUCKET, PATH, RUN, SEGMENT, STATE
from netprobe.model.metrics import Reading, Value
from netprobe.model.results import Delay, LegResult, SegmentResult, SessionResult

STATE_CODES = {"reachable": 0, "degraded": 1, "unreachable": 2, "unobserved": 3}
END_TO_END = "end-to-end"
LE_DIGITS = 13
"""Of a bucket's upper edge in ns: 2.7 hours."""

Fields = dict[str, Value | None]


def bucket_edge_ns(low_ns: int) -> int:
    """The upper edge of the bucket that holds a delay: two buckets an octave, at 1 and 1.5 times a power of two."""
    octave = 1 << max(low_ns, 1).bit_length() - 1
    return octave * 3 // 2 if octave > 1 and low_ns < octave * 3 // 2 else octave * 2


def session_readings(results: Iterable[SessionResult], plan: str, t_ns: int) -> Iterator[Reading]:
    """Everything that a run says of its paths.

    Args:
        results: of the run.
        plan: its name.
        t_ns: the time to give them: the end of the run or window.
    """
    for result in results:
        tags = {
            "plan": plan,
            "path": result.name,
            "src": result.src,
            "dst": result.dst,
            "vantage": result.vantage,
            "proto": str(result.type_p.get("proto", "")),
        }
        if result.epoch is not None:
            tags["epoch"] = str(result.epoch["number"])
        legs = {"forward": result.forward, "return": result.returned}
        for name, leg in legs.items():
            if leg is not None:
                yield from _leg_readings(result, leg, {**tags, "leg": name}, t_ns)


def _leg_readings(result: SessionResult, leg: LegResult, tags: dict[str, str], t_ns: int) -> Iterator[Reading]:
    yield PATH.reading(
        t_ns,
        tags,
        planned_probes=leg.planned,
        unsent_probes=leg.unsent,
        held_back_probes=_held_back(result) if tags["leg"] == "forward" else None,
        received_probes=leg.delivered,
        lost_probes=leg.lost,
        unobserved_probes=leg.unobserved,
        pending_probes=leg.pending,
        late_probes=leg.late,
        tmax_ns=round(result.tmax_ms * 1e6),
        forged_records=result.forged,
        overflowed_points=len(result.overflowed),
        remarked=int(result.remarked_at is not None),
        last_seen=leg.last_seen,
        first_missing=leg.first_missing,
        lost_in=f"{leg.last_seen}..{leg.first_missing}" if leg.first_missing else None,
        **_reason(result if tags["leg"] == "forward" else None),
        **_figures(leg.end_to_end),
    )
    yield from _bucket_readings(leg.end_to_end, {**tags, "segment": END_TO_END}, t_ns)
    for i, segment in enumerate(leg.segments):
        yield SEGMENT.reading(
            t_ns,
            {**tags, "segment": segment.id, "kind": segment.kind, "hop": f"{i:02d}"},
            sent_probes=segment.sent,
            received_probes=segment.received,
            lost_probes=segment.lost,
            undecided_probes=segment.undecided,
            owpdv_p50_ns=segment.pdv.p50 if segment.pdv else None,
            owpdv_p99_ns=segment.pdv.p99 if segment.pdv else None,
            owpdv_max_ns=segment.pdv.max if segment.pdv else None,
            reordered_probes=segment.reordered,
            duplicated_probes=segment.duplicated,
            negative_probes=segment.negative,
            stamp=segment.stamp,
            clock_problem=segment.clock_problem,
            **_figures(segment),
        )
        yield from _bucket_readings(segment, {**tags, "segment": segment.id}, t_ns)


def _governor(result: SessionResult) -> Mapping[str, Any]:
    return result.governor or {}


def _held_back(result: SessionResult) -> int:
    """Of the session; each of its epochs says the same."""
    return int(_governor(result).get("held_back", 0))


def _reason(result: SessionResult | None) -> Fields:
    reason: Mapping[str, Any] = (result.reason if result is not None else None) or {}
    return {"reason": reason.get("code"), "reason_detail": reason.get("detail")}


def _figures(segment: SegmentResult) -> Fields:
    """Loss and delay of a segment, or of a whole leg."""
    found: Fields = {"owloss_ratio": segment.loss_ratio}
    if segment.sent:  # of nothing there is no share
        found["owloss_low_ratio"], found["owloss_high_ratio"] = segment.loss_interval_95
    if segment.delay is not None or segment.clock_error_ns is not None:
        found["owdelay_error_ns"] = segment.clock_error_ns or 0
    bounds, delay = segment.delay_bounds, segment.delay
    if bounds is not None:  # also where no delay is stated, since two clocks are further apart than it is long
        found["owdelay_p50_low_ns"], found["owdelay_p50_high_ns"] = bounds.p50
        found["owdelay_p99_low_ns"], found["owdelay_p99_high_ns"] = bounds.p99
    elif delay is not None:
        found["owdelay_p50_low_ns"], found["owdelay_p50_high_ns"] = delay.p50_interval_95 or (None, None)
        found["owdelay_p99_low_ns"], found["owdelay_p99_high_ns"] = delay.p99_interval_95 or (None, None)
    if delay is None:
        return found
    return found | {
        "owdelay_min_ns": delay.min,
        "owdelay_p50_ns": delay.p50,
        "owdelay_p90_ns": delay.p90,
        "owdelay_p99_ns": delay.p99,
        "owdelay_max_ns": delay.max,
        "owdelay_samples": delay.samples,
    }


def _bucket_readings(segment: SegmentResult, tags: dict[str, str], t_ns: int) -> Iterator[Reading]:
    for edge_ns, count in delay_buckets(segment.delay).items():
        yield DELAY_BUCKET.reading(t_ns, tags | {"le_ns": f"{edge_ns:0{LE_DIGITS}d}"}, delays=count)


def delay_buckets(delay: Delay | None) -> dict[int, int]:
    """How many delays lie in each bucket that is not empty, by its upper edge in ns, ascending."""
    found: dict[int, int] = {}
    for low_ns, count in delay.histogram if delay is not None else ():
        edge_ns = bucket_edge_ns(low_ns)
        found[edge_ns] = found.get(edge_ns, 0) + count
    return found


def run_reading(
    results: Sequence[SessionResult],
    tags: dict[str, str],
    t_ns: int,
    *,
    duration_ns: int,
    stopped: str,
    gap_ns: int | None = None,
) -> Reading:
    """A run as a whole.

    Args:
        results: of the run; none where it could not be run.
        tags: `plan` and `command`.
        t_ns: as for its paths.
        duration_ns: from its beginning until its result.
        gap_ns: for how long nobody had looked before it.
        stopped: why it ended early, or could not be run.
    """
    legs = [result.forward for result in results]
    return RUN.reading(
        t_ns,
        tags,
        sessions=len({result.name for result in results}),
        planned_probes=sum(leg.planned for leg in legs),
        unsent_probes=sum(leg.unsent for leg in legs),
        held_back_probes=sum({result.name: _held_back(result) for result in results}.values()),
        governor_lowest_ratio=min((_governor(result).get("lowest_share", 1.0) for result in results), default=None),
        lost_probes=sum(leg.lost for leg in legs),
        unobserved_probes=sum(leg.unobserved for leg in legs),
        duration_ns=duration_ns,
        gap_ns=gap_ns,
        pacing_p99_ns=max((r.pacing.p99_ns for r in results if r.pacing), default=None),
        overflowed_points=len({point for result in results for point in result.overflowed}),
        failed=int(bool(stopped)),
        stopped=stopped,
    )


def counter_readings(results: Iterable[SessionResult], plan: str, t_ns: int) -> Iterator[Reading]:
    """What was shed, refused or odd: of each counter the largest of any path, since paths share points."""
    most: dict[str, int] = {}
    for result in results:
        for name, count in result.counters.items():
            most[name] = max(most.get(name, 0), count)
    for name, count in sorted(most.items()):
        yield COUNTER.reading(t_ns, {"plan": plan, "counter": name}, events=count)


def state_readings(window: Mapping[str, Any], plan: str, results: Sequence[SessionResult]) -> Iterator[Reading]:
    """The states of paths that are watched.

    Args:
        window: the `window` document of docs/watch.md; its sessions may have a `change`.
        plan: its name.
        results: of the window's run, for what the document does not repeat; none where it could not be run.
    """
    by_name = {result.name: result for result in results}
    for row in window["sessions"]:
        result = by_name.get(row["name"])
        tags = {"plan": plan, "path": row["name"], "src": row["src"], "dst": row["dst"]}
        if result is not None:
            tags |= {"vantage": result.vantage, "proto": str(result.type_p.get("proto", ""))}
        change = row.get("change")
        why = (change or {}).get("reason") or (result.reason if result is not None else None) or {}
        yield STATE.reading(
            window["end_ns"],
            tags,
            state_code=STATE_CODES[row["state"]],
            since_ns=row["since_ns"],
            changed=int(change is not None),
            lost_probes=row["lost"],
            undecided_probes=row["undecided"],
            state=row["state"],
            last_seen=row["last_seen"],
            first_missing=row["first_missing"],
            reason=str(why.get("code") or ""),
        )


def clock_reading(tags: dict[str, str], t_ns: int, *, offset_ns: tuple[int, int] | None, steps: int) -> Reading:
    """What is known of another host's clock; without an offset where nothing is."""
    low, high = offset_ns or (None, None)
    return CLOCK.reading(t_ns, tags, offset_low_ns=low, offset_high_ns=high, steps=steps)
