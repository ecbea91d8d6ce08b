"""`netprobe verify POLICY --watch-change COMMAND`: what is watched, and what came out."""

import argparse
import shlex
import shutil
from functools import partial

import trio

from netprobe.cli.keeping import keep
from netprobe.cli.output import print_json, say, to_stdout
from netprobe.cli.readings import send, sink_config
from netprobe.cli.running import telling
from netprobe.errors import UsageError
from netprobe.host.signals import stop_on_signals
from netprobe.model.topology import Topology
from netprobe.plan.fields import parse_duration_ns
from netprobe.service.stopwatch import watch_change
from netprobe.service.stopwatch_document import exit_code, stopwatch_document
from netprobe.service.stopwatch_run import StopwatchOrder
from netprobe.service.verify import VerifyPlan
from netprobe.show.policy_metrics import enforcement_readings
from netprobe.show.stopwatch import print_stopwatch
from netprobe.show.tables import console

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


def run_change(args: argparse.Namespace, plan: VerifyPlan, topology: Topology, source: str) -> int:
    """Run the command and watch what it changes.

    Args:
        args: of `verify`, with `watch_change`.
        plan: of the policy.
        topology: where the ports are.
        source: where the policy was read.

    Returns:
        The exit code.
    """
    order = watch_order(args)
    sink = sink_config(args)
    with stop_on_signals() as stop:
        outcome = trio.run(partial(watch_change, order, plan, topology, stop, telling()))
        document = keep(args, stopwatch_document(outcome), outcome.started_ns, outcome.stopped)
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_stopwatch(console(), document)
        send(sink, "verify", enforcement_readings(document, source, outcome.ended_ns))
    if outcome.exit_code:
        say(f"netprobe: the command ended with exit code {outcome.exit_code}")
    return exit_code(outcome)
