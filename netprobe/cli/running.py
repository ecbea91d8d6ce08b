"""What `trace` and `run` share: run a plan, keep the result, compare, print, and turn it into an exit code."""

import argparse
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.errors import NetprobeError
from netprobe.host.signals import stop_on_signals
from netprobe.judge.changes import changes_between
from netprobe.model.results import Json, SegmentResult, SessionResult
from netprobe.plan.fields import parse_ratio
from netprobe.plan.plans import RunPlan
from netprobe.service.discovery import read_topology
from netprobe.service.run import RunOutcome, run_plan
from netprobe.show.tables import console, print_document
from netprobe.store.duckdb_file import DEFAULT_PATH, Store, StoredRun, StoredSession, open_store

FINE, NO, NO_ANSWER, INTERRUPTED = 0, 1, 4, 130


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


def _document(args: argparse.Namespace, plan: RunPlan, outcome: RunOutcome, run_id: str) -> Json:
    head: Json = {
        "run": run_id,
        "started": datetime.fromtimestamp(outcome.started_ns / 1e9, UTC).isoformat(),
        "stopped": outcome.stopped or None,
    }
    if args.command == "trace":
        return {**outcome.results[0].to_json(), **head}
    return {**head, "plan": plan.name, "seed": plan.seed, "sessions": [r.to_json() for r in outcome.results]}


def _keep(args: argparse.Namespace, plan: RunPlan, outcome: RunOutcome) -> Json:
    """Compare and store as asked. A store that fails loses no result: it is printed, and says that it is not stored."""
    run_id = str(uuid.uuid4())
    if args.no_store and not args.compare:
        return {**_document(args, plan, outcome, run_id), "stored": False}
    try:
        with open_store(Path(args.store) if args.store else DEFAULT_PATH) as store:
            if args.compare:
                outcome = replace(outcome, results=tuple(_compared(r, store) for r in outcome.results))
            document = _document(args, plan, outcome, run_id)
            if not args.no_store:
                pairs = zip(outcome.sessions, outcome.results, strict=True)
                store.save(
                    StoredRun(
                        run_id=run_id,
                        started_ns=outcome.started_ns,
                        command=args.command,
                        document=document,
                        sessions=[StoredSession(number, result) for number, result in pairs],
                        hops=outcome.hops,
                        points=outcome.points,
                    )
                )
            return {**document, "stored": not args.no_store}
    except NetprobeError as error:
        say(f"netprobe: the result was not stored: {error}")
        return {**_document(args, plan, outcome, run_id), "stored": False}


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


def exit_code(outcome: RunOutcome, max_loss: float) -> int:
    """The worst of all sessions; 130 when the run was interrupted."""
    if outcome.stopped.startswith("stopped by"):
        return INTERRUPTED
    codes = {_code_of(result, max_loss) for result in outcome.results}
    return next(code for code in (NO, NO_ANSWER, FINE) if code in codes)


def execute(args: argparse.Namespace, plan: RunPlan) -> int:
    """Run a plan as the arguments say.

    Args:
        args: of `trace` or `run`.
        plan: what to send.

    Returns:
        The exit code.
    """
    max_loss = parse_ratio(args.max_loss, "--max-loss") if args.max_loss else 1.0
    topology = read_topology()
    is_chatty = sys.stderr.isatty()
    with stop_on_signals():  # to the last line: a signal must not throw away what was measured
        outcome = trio.run(run_plan, plan, topology, say if is_chatty else lambda _: None)
        document = _keep(args, plan, outcome)
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_document(console(), document)
    if outcome.stopped:
        say(f"netprobe: {outcome.stopped}: the result is what was known by then.")
    return exit_code(outcome, max_loss)
