"""`netprobe verify POLICY`: what is to be proved, from one source or two, and what came out."""

import argparse
from functools import partial

import trio

from netprobe.cli.keeping import keep
from netprobe.cli.output import print_json, to_stdout
from netprobe.cli.readings import send, sink_config
from netprobe.cli.running import telling
from netprobe.cli.verify_change import run_change
from netprobe.errors import UsageError, unknown_name
from netprobe.host.signals import stop_on_signals
from netprobe.plan.fields import parse_duration_ns
from netprobe.service.discovery import read_topology
from netprobe.service.policy_sources import read_policies
from netprobe.service.verify import VerifyOrder, VerifyPlan, plan_verify, verify
from netprobe.service.verify_document import exit_code, plan_document, verify_document
from netprobe.show.policy import print_explanation, print_plan, print_verification
from netprobe.show.policy_metrics import verification_readings
from netprobe.show.tables import console

VANTAGES = ("tap", "vswitch", "guest")
BOUNDS = {"rate": (1, 100_000), "rounds": (1, 100), "seed": (0, 2**32 - 1), "prove_rules": (0, 100)}
MAX_TMAX_NS = 10_000_000_000


def _order(args: argparse.Namespace) -> VerifyOrder:
    """What the arguments ask for.

    Raises:
        UsageError: a value is out of bounds, or a source cannot be read.
    """
    if args.vantage not in VANTAGES:
        if args.vantage == "bypass":
            raise UsageError(
                "--vantage", "a bypass NIC carries a copy of a port's groups", allowed=", ".join(VANTAGES),
                advice="prove the port itself",
            )  # fmt: skip
        raise unknown_name("--vantage", args.vantage, VANTAGES, kind="value")
    for name, (low, high) in BOUNDS.items():
        value = getattr(args, name)
        if not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')}", f"got {value}", allowed=f"{low} to {high}")
    tmax_ns = parse_duration_ns(args.tmax, "--tmax")
    if not 1_000_000 <= tmax_ns <= MAX_TMAX_NS:
        raise UsageError("--tmax", f"got {args.tmax}", allowed="1ms to 10s")
    if not 0 < args.alpha < 1:
        raise UsageError("--alpha", f"got {args.alpha:g}", allowed="between 0 and 1")
    sources = read_policies(args.policy, args.neutron, args.ovn)
    return VerifyOrder(
        sources.policy,
        sources.where,
        args.vantage,
        args.rate,
        tmax_ns,
        args.alpha,
        args.rounds,
        args.seed,
        sources.discrepancies,
        sources.is_own,
        args.prove_rules,
    )


def _check_together(args: argparse.Namespace) -> None:
    """Refuse options that another one makes meaningless, before anything is sent.

    Raises:
        UsageError: they do not go together.
    """
    if args.explain is not None and (args.json or args.plan or args.watch_change):
        raise UsageError("--explain", "tells people of findings", advice="leave --json, --plan, --watch-change out")
    if args.explain is not None and args.explain < 1:
        raise UsageError("--explain", f"got {args.explain}", allowed="the number of a finding, from 1")
    if args.watch_rule and not args.watch_change:
        raise UsageError("--watch-rule", "says what --watch-change watches", advice="give --watch-change too")
    if args.plan and args.watch_change:
        raise UsageError("--plan", "is not for --watch-change", advice="leave one out")


def _show_plan(args: argparse.Namespace, plan: VerifyPlan) -> int:
    with to_stdout():
        if args.json:
            print_json(plan_document(plan))
        else:
            print_plan(console(), plan_document(plan))
    return 0


def run(args: argparse.Namespace) -> int:
    """Verify a policy."""
    _check_together(args)
    order = _order(args)
    topology = read_topology()
    plan = plan_verify(order, topology)
    if args.plan:
        return _show_plan(args, plan)
    sink = sink_config(args)
    if args.watch_change:
        return run_change(args, plan, topology, order.where)
    with stop_on_signals() as stop:
        outcome = trio.run(partial(verify, order, plan, topology, stop, telling()))
        document = keep(args, verify_document(outcome), outcome.started_ns, outcome.stopped)
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_verification(console(), document)
                if args.explain is not None:
                    print_explanation(console(), document, args.explain)
        send(sink, "verify", verification_readings(document, outcome.ended_ns))
    return exit_code(outcome)
