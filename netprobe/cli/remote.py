"""`netprobe run PLAN --collector`: the same plan and the same result, spread over hosts."""

import argparse
from pathlib import Path
from typing import Any

import trio

from netprobe.cli.running import FINE, NO, NO_ANSWER, print_outcome, telling, vring_wish, worst
from netprobe.cli.serve import place
from netprobe.errors import NoAnswerError, UsageError
from netprobe.host.tls import Credentials
from netprobe.plan.fields import parse_ratio
from netprobe.service.operator import OperatorConfig, run_remotely


def code_of(session: dict[str, Any], max_loss: float) -> int:
    """As for a run in one process: 1 for a "no" that is certain, 4 where nobody can say."""
    sent, delivered, lost = session["sent"], session["received"], session["lost"]
    undecided = session["unobserved"] + session["pending"] + session["unsent"]
    if lost and (lost / max(sent, 1) > max_loss or (not delivered and lost > undecided)):
        return NO
    doubtful = lost + session["unobserved"] + session["pending"]
    if not delivered or session["unsent"] or doubtful > max_loss * sent:
        return NO_ANSWER
    return FINE


def execute_remotely(args: argparse.Namespace) -> int:
    """Ask the collector, print, and say yes or no."""
    if vring_wish(args).how == "mirror":
        advice = "leave it out: agents look by uprobes, where their hosts' allowlists let them"
        raise UsageError("--vring mirror", "is not for a run over several hosts: no agent makes mirrors", advice=advice)
    path = Path(args.plan)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"plan {path}", f"cannot be read: {error}", advice="check the path") from error
    max_loss = parse_ratio(args.max_loss, "--max-loss") if args.max_loss else 1.0
    credentials = Credentials.in_folder(Path(args.pki), args.operator)
    config = OperatorConfig(args.operator, place(args.collector, "--collector"), credentials)
    document = trio.run(run_remotely, config, text, str(path), telling())
    sessions: Any = document.get("sessions")
    if sessions is None:
        raise NoAnswerError(f"run {document.get('run')}", f"was given up: {document.get('error')}")
    print_outcome(args, document)
    return worst(code_of(session, max_loss) for session in sessions)
