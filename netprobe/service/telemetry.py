"""What programs tell of themselves as readings: runs, windows, runs over several hosts, agents, a collector. No I/O.

What a result says is show.run_metrics'; here is only where it comes from, and at what time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from netprobe.collect.clock_rows import UNBOUNDED_NS
from netprobe.collect.clocks import ClockEstimator
from netprobe.model.metric_catalogue import AGENT, COLLECTOR
from netprobe.model.metrics import Reading
from netprobe.service.run import RunOutcome
from netprobe.service.spread_run import SpreadRun
from netprobe.service.watch_plan import WindowReport
from netprobe.show.run_metrics import clock_reading, counter_readings, run_reading, session_readings, state_readings


def outcome_readings(outcome: RunOutcome, plan: str, command: str, now_ns: int) -> Iterator[Reading]:
    """A run in one process.

    Args:
        outcome: of it.
        plan: its name.
        command: `run` or `trace`.
        now_ns: when the result was there, CLOCK_REALTIME.
    """
    results = outcome.results
    yield from session_readings(results, plan, now_ns)
    yield from counter_readings(results, plan, now_ns)
    tags = {"plan": plan, "command": command}
    yield run_reading(results, tags, now_ns, duration_ns=now_ns - outcome.started_ns, stopped=outcome.stopped)


def window_readings(report: WindowReport) -> Iterator[Reading]:
    """A window of a watch, at the time of its last probe."""
    plan, t_ns = report.plan.name, report.end_ns
    outcome = report.outcome
    results = outcome.results if outcome is not None else ()
    document = report.to_json()
    document["sessions"] = [{**row.to_json(), "change": row.change_json()} for row in report.rows]
    yield from state_readings(document, plan, results)
    yield from session_readings(results, plan, t_ns)
    yield from counter_readings(results, plan, t_ns)
    yield run_reading(
        results,
        {"plan": plan, "command": "watch"},
        t_ns,
        duration_ns=report.end_ns - report.start_ns,
        gap_ns=report.gap_ns,
        stopped=report.error or (outcome.stopped if outcome is not None else ""),
    )


def spread_readings(run: SpreadRun) -> Iterator[Reading]:
    """A run over several hosts, at the time when its last probe was due: the same however often it is settled."""
    plan = run.plan.name
    t_ns = max(run.went_ns, run.started_ns) + max((one.plan.duration_ns for one in run.prepared), default=0)
    yield from session_readings(run.results, plan, t_ns)
    yield from counter_readings(run.results, plan, t_ns)
    tags = {"plan": plan, "command": "run"}
    yield run_reading(run.results, tags, t_ns, duration_ns=t_ns - run.started_ns, stopped=run.stop)
    seen: set[tuple[str, str]] = set()
    for clocks in run.clocks.values():
        for peer, offsets in clocks.offsets.items():
            if (clocks.reference, peer) not in seen and isinstance(offsets, ClockEstimator):
                seen.add((clocks.reference, peer))
                yield clock_reading(
                    {"plan": plan, "host": clocks.reference, "peer": peer},
                    t_ns,
                    offset_ns=_last_offset(offsets),
                    steps=len(offsets.steps),
                )


def _last_offset(offsets: ClockEstimator) -> tuple[int, int] | None:
    """The bounds of the offset at the last exchange, None where nothing is known there."""
    _, theirs = offsets.pairs()
    if not len(theirs):
        return None
    low, high = offsets.bounds(np.array([int(theirs.max())]))
    return (int(low[0]), int(high[0])) if high[0] < UNBOUNDED_NS else None


def collector_readings(status: Mapping[str, Any], now_ns: int) -> Iterator[Reading]:
    """A collector and its agents.

    Of an agent that has only just dialled in nothing is told until it has said where it is: under another name it would
    go on being connected when it is long gone.

    Args:
        status: the collector's own (service.collector.Collector.status).
        now_ns: CLOCK_REALTIME.
    """
    for agent in status["agents"]:
        if not agent["host"] and not agent["trouble"]:
            continue
        yield AGENT.reading(
            now_ns,
            {"agent": agent["name"], "host": agent["host"]},
            connected=1,
            connected_ns=now_ns - agent["since_ns"],
            guests=len(agent["guests"]),
            trouble=agent["trouble"],
        )
    for agent in status["away"]:
        yield AGENT.reading(now_ns, {"agent": agent["name"], "host": agent["host"]}, connected=0)
    counters = dict(status["counters"])
    counters["runs"] = len(status["runs"])
    counters["runs_under_way"] = sum(not run["over"] for run in status["runs"])
    for name, count in sorted(counters.items()):
        yield COLLECTOR.reading(now_ns, {"counter": name}, events=count)
