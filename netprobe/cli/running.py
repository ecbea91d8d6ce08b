"""What `trace`, `run` and `watch` share: run a plan, keep the result, compare, print, and turn it into an exit code."""

import argparse
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.cli.readings import send, sink_config
from netprobe.errors import NetprobeError, unknown_name
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import stop_on_signals
from netprobe.judge.changes import changes_between
from netprobe.model.results import Json, SegmentResult, SessionResult
from netprobe.plan.fields import parse_ratio
from netprobe.plan.mesh import CompiledPlan, compile_plan
from netprobe.plan.plans import RunPlan
from netprobe.service.discovery import state_path
from netprobe.service.run import RunOutcome, run_plan
from netprobe.service.spreading import FlowVerdict, flow_verdicts
from netprobe.service.stream_keeping import StreamKeep
from netprobe.service.telemetry import outcome_readings
from netprobe.service.viewing import view_topology
from netprobe.service.vrings import VringWish
from netprobe.show.many import print_result
from netprobe.show.progress import run_table
from netprobe.show.tables import console
from netprobe.store.duckdb_file import DEFAULT_PATH, Store, open_store
from netprobe.store.tables import StoredRun, StoredSession

FINE, NO, NO_ANSWER, INTERRUPTED = 0, 1, 4, 130
DocumentOf = Callable[[RunOutcome, str], Json]


def _segments_of(session: Mapping[str, Any]) -> list[SegmentResult]:
    """Segments of both legs of a stored session.

    Raises:
        KeyError, TypeError, ValueError: it is none that this version wrote.
    """
    legs = [session, *([session["return"]] if session["return"] else [])]
    return [SegmentResult.from_json(s) for leg in legs for s in leg["segments"]]


def _compared(result: SessionResult, store: Store) -> SessionResult:
    """The result with what changed since the last one of the same path and Type-P, on either leg."""
    earlier = store.last_session(result)
    if earlier is None:
        return replace(result, notes=(*result.notes, "there is no earlier result of this path to compare with"))
    try:
        before = _segments_of(earlier)
    except (KeyError, TypeError, ValueError) as error:
        return replace(result, notes=(*result.notes, f"the earlier result cannot be read: {error!r}"))
    now = [*result.forward.segments, *(result.returned.segments if result.returned else ())]
    return replace(result, changes=tuple(c.to_json() for c in changes_between(before, now)))


def _stream_keep(args: argparse.Namespace) -> StreamKeep | None:
    """Where the windows of a stream go while it runs."""
    if args.no_store:
        return None
    path = Path(args.store) if args.store else DEFAULT_PATH
    return StreamKeep(path, str(uuid.uuid4()), hops=getattr(args, "keep_hops", False))


def head_of(run_id: str, started_ns: int, stopped: str) -> Json:
    """What every result begins with (docs/json.md)."""
    return {
        "run": run_id,
        "started": datetime.fromtimestamp(started_ns / 1e9, UTC).isoformat(),
        "stopped": stopped or None,
    }


def _flows_json(verdicts: Sequence[FlowVerdict]) -> Json:
    return {
        "flows": [row.to_json() for verdict in verdicts for row in verdict.rows],
        "flow_groups": [verdict.to_json() for verdict in verdicts],
    }


def _trace_document(outcome: RunOutcome, verdicts: Sequence[FlowVerdict], head: Json) -> Json:
    """Of one session; of flows, and of a guest that moved meanwhile, with all `sessions`."""
    results = outcome.results
    sessions = [r.to_json() for r in results]
    if verdicts:
        ends: Json = {"src": results[0].src, "dst": results[0].dst, "vantage": results[0].vantage}
        return {**ends, **_flows_json(verdicts), **head, "sessions": sessions}
    return {**sessions[0], **head, **({"sessions": sessions} if len(sessions) > 1 else {})}


def run_document(compiled: CompiledPlan, outcome: RunOutcome, verdicts: Sequence[FlowVerdict], head: Json) -> Json:
    """Of a plan."""
    return {
        **head,
        "plan": compiled.plan.name,
        "seed": compiled.plan.seed,
        "mesh": [report.to_json() for report in compiled.meshes],
        **_flows_json(verdicts),
        "sessions": [r.to_json() for r in outcome.results],
    }


def keep_outcome(
    args: argparse.Namespace,
    outcome: RunOutcome,
    document_of: DocumentOf,
    *,
    states: Mapping[str, tuple[str, int]] | None = None,
    changes: Sequence[Json] = (),
) -> Json:
    """Compare and store as asked. A store that fails loses no result: it is printed, and says that it is not stored.

    Args:
        args: with `command`, `store`, `no_store`, and `compare` where that can be asked for.
        outcome: of the run.
        document_of: the document of an outcome and the run's UUID.
        states: of a watch: each path's state and since when, by the session's name.
        changes: of a watch: of states, as in docs/watch.md.
    """
    run_id = outcome.run_id or str(uuid.uuid4())
    is_compared = getattr(args, "compare", False)
    if args.no_store and not is_compared:
        return {**document_of(outcome, run_id), "stored": False}
    try:
        with open_store(Path(args.store) if args.store else DEFAULT_PATH) as store:
            if is_compared:
                outcome = replace(outcome, results=tuple(_compared(r, store) for r in outcome.results))
            document = document_of(outcome, run_id)
            if not args.no_store:
                pairs = zip(outcome.sessions, outcome.results, strict=True)
                store.save(
                    StoredRun(
                        run_id=run_id,
                        started_ns=outcome.started_ns,
                        command=args.command,
                        document=document,
                        sessions=[StoredSession(n, r, *(states or {}).get(r.name, ("", None))) for n, r in pairs],
                        hops=outcome.hops,
                        points=outcome.points,
                        changes=changes,
                    )
                )
            return {**document, "stored": not args.no_store}
    except NetprobeError as error:
        say(f"netprobe: the result was not stored: {error}")
        return {**document_of(outcome, run_id), "stored": False}


def _code_of(result: SessionResult, max_loss: float) -> int:
    """1 when a path is not passable or too lossy for certain, 4 when nobody can say or not all could be sent."""
    leg = result.forward
    sent = leg.planned - leg.unsent
    undecided = leg.unobserved + leg.pending + leg.unsent
    if leg.lost and (leg.lost / sent > max_loss or (not leg.delivered and leg.lost > undecided)):
        return NO
    doubtful = leg.lost + leg.unobserved + leg.pending
    if not leg.delivered or leg.unsent or doubtful > max_loss * sent:
        return NO_ANSWER
    return FINE


def worst(codes: Iterable[int]) -> int:
    """Of several answers the one that counts: a "no" before "nobody can say"."""
    found = set(codes)
    return next((code for code in (NO, NO_ANSWER) if code in found), FINE)


def _code_of_flows(verdict: FlowVerdict) -> int:
    return NO if verdict.is_failing else NO_ANSWER if verdict.is_open else FINE


def exit_code(outcome: RunOutcome, verdicts: Sequence[FlowVerdict], max_loss: float) -> int:
    """The worst of all sessions; flows are judged together. 130 when the run was interrupted."""
    if outcome.stopped.startswith("stopped by"):
        return INTERRUPTED
    flows = {row.session for verdict in verdicts for row in verdict.rows}
    return worst(
        [_code_of_flows(verdict) for verdict in verdicts]
        + [_code_of(result, max_loss) for result in outcome.results if result.name not in flows or max_loss < 1]
    )


def print_outcome(args: argparse.Namespace, document: Json) -> None:
    """The result on stdout, as asked."""
    with to_stdout():
        if args.json:
            print_json(document)
        else:
            print_result(console(), document)


def telling() -> Callable[[str], None]:
    """Where progress goes: to a terminal, or nowhere."""
    return say if sys.stderr.isatty() else lambda _: None


def vring_wish(args: argparse.Namespace) -> VringWish:
    """How the user wants vhost-user ports to be looked at.

    Raises:
        UsageError: an unknown way.
    """
    ways: dict[str, Literal["auto", "uprobe", "mirror"]] = {"auto": "auto", "uprobe": "uprobe", "mirror": "mirror"}
    if args.vring not in ways:
        raise unknown_name("--vring", args.vring, ways, kind="way")
    return VringWish(ways[args.vring], is_change_allowed=args.allow_change)


def governed(plan: RunPlan, wish: str | None) -> RunPlan:
    """The plan with its governor on or off; None leaves it as it is."""
    return plan if wish is None else replace(plan, governor=replace(plan.governor, is_on=wish == "on"))


def execute(args: argparse.Namespace, plan: RunPlan) -> int:
    """Run a plan as the arguments say.

    Args:
        args: of `trace` or `run`.
        plan: what to send.

    Returns:
        The exit code.
    """
    max_loss = parse_ratio(args.max_loss, "--max-loss") if args.max_loss else 1.0
    sink = sink_config(args, plan.influx)
    plan = governed(plan, args.governor)
    topology = trio.run(view_topology, plan, state_path())
    compiled = compile_plan(plan, topology)
    for report in compiled.meshes:
        say(report.line())
    with stop_on_signals():  # to the last line: a signal must not throw away what was measured
        start = partial(run_plan, state_file=state_path(), vrings=vring_wish(args), keep=_stream_keep(args))
        with run_table() as table:
            start = partial(start, live=table.update if table is not None else None)
            outcome = trio.run(start, compiled.plan, topology, telling())
        verdicts = flow_verdicts(compiled.flows, compiled.plan.sessions, outcome.results)

        def document_of(result: RunOutcome, run_id: str) -> Json:
            head = head_of(run_id, result.started_ns, result.stopped)
            if args.command == "trace":
                return _trace_document(result, verdicts, head)
            return run_document(compiled, result, verdicts, head)

        print_outcome(args, keep_outcome(args, outcome, document_of))
        send(sink, args.command, outcome_readings(outcome, plan.name, args.command, realtime_ns()))
    if outcome.stopped:
        say(f"netprobe: {outcome.stopped}: the result is what was known by then.")
    return exit_code(outcome, verdicts, max_loss)
