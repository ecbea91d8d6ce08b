"""`netprobe verify POLICY`: what is to be proved, from one source or two, and what came out."""

import argparse
import uuid
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.cli.running import head_of, telling
from netprobe.cli.verify_change import run_change
from netprobe.errors import NetprobeError, UsageError, unknown_name
from netprobe.host.signals import stop_on_signals
from netprobe.model.records import HopBatch
from netprobe.model.results import Json
from netprobe.plan.fields import parse_duration_ns
from netprobe.service.discovery import read_topology
from netprobe.service.policy_sources import read_policies
from netprobe.service.verify import VerifyOrder, VerifyOutcome, VerifyPlan, plan_verify, verify
from netprobe.service.verify_document import exit_code, plan_document, verify_document
from netprobe.show.policy import print_explanation, print_plan, print_verification
from netprobe.show.tables import console
from netprobe.store.duckdb_file import DEFAULT_PATH, StoredRun, open_store

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


def _keep(args: argparse.Namespace, outcome: VerifyOutcome) -> Json:
    """The document, stored as asked. A store that fails loses no result."""
    run_id = str(uuid.uuid4())
    document = {**head_of(run_id, outcome.started_ns, outcome.stopped), **verify_document(outcome)}
    if args.no_store:
        return {**document, "stored": False}
    try:
        with open_store(Path(args.store) if args.store else DEFAULT_PATH) as store:
            store.save(StoredRun(run_id, outcome.started_ns, "verify", document, (), HopBatch.empty(), ()))
    except NetprobeError as error:
        say(f"netprobe: the result was not stored: {error}")
        return {**document, "stored": False}
    return {**document, "stored": True}


def _show_plan(args: argparse.Namespace, plan: VerifyPlan) -> int:
    with to_stdout():
        if args.json:
            print_json(plan_document(plan))
        else:
            print_plan(console(), plan_document(plan))
    return 0


def run(args: argparse.Namespace) -> int:
    """Verify a policy."""
    order = _order(args)
    topology = read_topology()
    plan = plan_verify(order, topology)
    if args.plan:
        return _show_plan(args, plan)
    if args.watch_change:
        return run_change(args, plan, topology)
    with stop_on_signals() as stop:
        outcome = trio.run(partial(verify, order, plan, topology, stop, telling()))
        document = _keep(args, outcome)
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_verification(console(), document)
                if args.explain is not None:
                    print_explanation(console(), document, args.explain)
    return exit_code(outcome)
