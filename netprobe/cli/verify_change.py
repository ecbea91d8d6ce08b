"""`netprobe verify POLICY --watch-change COMMAND`: what is watched, and what came out."""

import argparse
import shlex
import shutil
import uuid
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.cli.running import head_of, telling
from netprobe.errors import NetprobeError, UsageError
from netprobe.host.signals import stop_on_signals
from netprobe.model.records import HopBatch
from netprobe.model.results import Json
from netprobe.model.topology import Topology
from netprobe.plan.fields import parse_duration_ns
from netprobe.service.stopwatch import StopwatchOutcome, watch_change
from netprobe.service.stopwatch_document import exit_code, stopwatch_document
from netprobe.service.stopwatch_run import StopwatchOrder
from netprobe.service.verify import VerifyPlan
from netprobe.show.stopwatch import print_stopwatch
from netprobe.show.tables import console
from netprobe.store.duckdb_file import DEFAULT_PATH, StoredRun, open_store

RATES = {"watch_rate": (100, 10_000), "watch_connections": (0, 1_000)}
TIMES = {"watch_before": (200_000_000, 60_000_000_000), "watch_after": (500_000_000, 60_000_000_000)}


def watch_order(args: argparse.Namespace) -> StopwatchOrder:
    """What the arguments ask for.

    Raises:
        UsageError: a value is out of bounds, or there is no such command.
    """
    try:
        command = tuple(shlex.split(args.watch_change))
    except ValueError as error:
        raise UsageError("--watch-change", f"{args.watch_change!r}: {error}", advice="check the quotes") from error
    if not command or shutil.which(command[0]) is None:
        raise UsageError(
            "--watch-change",
            f"{args.watch_change!r} names no command",
            advice="it is run without a shell; for more than one command write a script, or sh -c '...'",
        )
    if args.vantage != "tap":
        raise UsageError("--vantage", f"got {args.vantage} with --watch-change", allowed="tap")
    for name, (low, high) in RATES.items():
        if not low <= getattr(args, name) <= high:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}", f"got {getattr(args, name)}", allowed=f"{low} to {high}")
    times = {}
    for name, (low, high) in TIMES.items():
        option = f"--{name.replace('_', '-')}"
        times[name] = parse_duration_ns(getattr(args, name), option)
        if not low <= times[name] <= high:
            raise UsageError(option, f"got {getattr(args, name)}", allowed=f"{low // 10**6}ms to {high // 10**9}s")
    return StopwatchOrder(
        command,
        args.watch_rule or "",
        args.watch_rate,
        args.watch_connections,
        times["watch_before"],
        times["watch_after"],
        parse_duration_ns(args.tmax, "--tmax"),
        args.alpha,
    )


def _keep(args: argparse.Namespace, outcome: StopwatchOutcome) -> Json:
    """The document, stored as asked. A store that fails loses no result."""
    run_id = str(uuid.uuid4())
    document = {**head_of(run_id, outcome.started_ns, outcome.stopped), **stopwatch_document(outcome)}
    if args.no_store:
        return {**document, "stored": False}
    try:
        with open_store(Path(args.store) if args.store else DEFAULT_PATH) as store:
            store.save(StoredRun(run_id, outcome.started_ns, "verify", document, (), HopBatch.empty(), ()))
    except NetprobeError as error:
        say(f"netprobe: the result was not stored: {error}")
        return {**document, "stored": False}
    return {**document, "stored": True}


def run_change(args: argparse.Namespace, plan: VerifyPlan, topology: Topology) -> int:
    """Run the command and watch what it changes.

    Args:
        args: of `verify`, with `watch_change`.
        plan: of the policy.
        topology: where the ports are.

    Returns:
        The exit code.
    """
    order = watch_order(args)
    with stop_on_signals() as stop:
        outcome = trio.run(partial(watch_change, order, plan, topology, stop, telling()))
        document = _keep(args, outcome)
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_stopwatch(console(), document)
    if outcome.exit_code:
        say(f"netprobe: the command ended with exit code {outcome.exit_code}")
    return exit_code(outcome)
