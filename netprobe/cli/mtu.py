"""`netprobe trace SRC DST --mtu`: which sizes of frame a path swallows."""

import argparse

import trio

from netprobe.cli.output import say
from netprobe.cli.running import (
    FINE,
    INTERRUPTED,
    NO,
    NO_ANSWER,
    head_of,
    keep_outcome,
    print_outcome,
    telling,
)
from netprobe.errors import NoAnswerError
from netprobe.host.signals import stop_on_signals
from netprobe.model.records import HopBatch
from netprobe.model.results import Json
from netprobe.plan.plans import RunPlan
from netprobe.service.discovery import read_topology
from netprobe.service.run import RunOutcome
from netprobe.service.sweeping import Sweep, sweep_sizes

EXIT = {"all-pass": FINE, "limited": NO, "unreachable": NO, "unobserved": NO_ANSWER, "inconclusive": NO_ANSWER}


def _document(found: Sweep, head: Json) -> Json:
    first = found.results[0]
    type_p = {k: v for k, v in first.type_p.items() if k not in {"size_bytes", "src_port"}}
    ends: Json = {"src": first.src, "dst": first.dst, "vantage": first.vantage, "type_p": type_p}
    return {**head, **ends, "mtu": found.to_json(), "sessions": []}


def sweep(args: argparse.Namespace, plan: RunPlan) -> int:
    """Try sizes, print the answer and keep it.

    Args:
        args: of `trace`.
        plan: of one session.

    Returns:
        0 when every size passes, 1 when one does not or nothing arrives, 4 when nobody can say.
    """
    topology = read_topology()
    with stop_on_signals() as stop:  # to the last line: a signal must not throw away what was measured
        found = trio.run(sweep_sizes, plan, topology, stop, telling())
        if not found.results:
            raise NoAnswerError("trace --mtu", "stopped before anything was sent")
        # What the single runs saw is as good as that of any run: the store has it by session.
        whole = RunOutcome(
            started_ns=found.started_ns,
            results=tuple(found.results),
            hops=HopBatch.empty(),
            points=(),
            sessions=tuple(found.sessions),
            stopped=found.stopped,
        )

        def document_of(outcome: RunOutcome, run_id: str) -> Json:
            return _document(found, head_of(run_id, outcome.started_ns, outcome.stopped))

        print_outcome(args, keep_outcome(args, whole, document_of))
    if found.stopped:
        say(f"netprobe: {found.stopped}: the sweep gives no answer.")
    return INTERRUPTED if found.stopped.startswith("stopped by") else EXIT[found.answer().verdict]
