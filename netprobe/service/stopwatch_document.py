"""The JSON document of a watched change (docs/json.md), and its exit code. Pure."""

from netprobe.judge.stopwatch import Change, Command, Connection, Fate
from netprobe.model.results import Json
from netprobe.service.stopwatch import StopwatchOutcome
from netprobe.service.stopwatch_run import ClassResult

PHASES = 20
"""Phases that are listed of a stream; one that flaps more often says so by `flaps`."""

_WORDS = {Fate.PASSED: "pass", Fate.DROPPED: "drop"}


def stopwatch_document(outcome: StopwatchOutcome) -> Json:
    """Everything that was found out."""
    order, command = outcome.order, outcome.command
    return {
        "backend": outcome.plan.backend,
        "answer": answer(outcome),
        "change": {
            "command": list(order.command),
            "exit_code": outcome.exit_code,
            "began_ns": command.begin_ns if command else None,
            "ended_ns": command.end_ns if command else None,
            "took_ns": command.end_ns - command.begin_ns if command else None,
        },
        "rule": order.rule or None,
        "vantage": "tap",
        "rate_pps": order.rate,
        "connections_pps": order.connections,
        "before_ms": order.before_ns / 1e6,
        "after_ms": order.after_ns / 1e6,
        "tmax_ms": order.tmax_ns / 1e6,
        "alpha": order.alpha,
        "sent": outcome.sent,
        "controls": outcome.controls,
        "unsent": outcome.unsent,
        "overflow": outcome.overflow,
        "forged": outcome.forged,
        "loss": {"upper": outcome.loss.upper, "misses_needed": outcome.needed},
        "classes": [_class_json(one, command) for one in outcome.classes],
        "left_out": list(outcome.left_out),
        "conntrack": {"deleted": outcome.conntrack_deleted, "kept": outcome.conntrack_kept},
        "notes": list(outcome.notes),
        "seconds": round((outcome.ended_ns - outcome.started_ns) / 1e9, 3),
    }


def _class_json(one: ClassResult, command: Command | None) -> Json:
    scenario = one.watched.scenario
    return {
        "rule": one.watched.rule,
        "src": scenario.src,
        "dst": scenario.dst,
        "scenario": scenario.key,
        "packet": one.watched.packet.text(),
        "connection": one.connection.value,
        "was_open": one.is_open,
        "existing": _change_json(one.existing, command),
        "new": None if one.new is None else _change_json(one.new, command),
    }


def _change_json(change: Change, command: Command | None) -> Json:
    is_timed = change.is_changed and command is not None
    begin_ns, end_ns = (command.begin_ns, command.end_ns) if command else (0, 0)
    return {
        "old": _WORDS.get(change.old),
        "new": _WORDS.get(change.new),
        "last_old_ns": change.last_old_ns if is_timed else None,
        "first_new_ns": change.first_new_ns if is_timed else None,
        "after_commit_ns": change.last_old_ns - end_ns if is_timed else None,
        "after_begin_ns": change.last_old_ns - begin_ns if is_timed else None,
        "uncertainty_ns": change.uncertainty_ns if is_timed else None,
        "interval_ns": change.interval_ns if is_timed else None,
        "leaked": change.leaked,
        "blocked": change.blocked,
        "mixed": change.mixed,
        "flaps": change.flaps,
        "sent": change.sent,
        "passed": change.passed,
        "dropped": change.dropped,
        "undecided": change.sent - change.passed - change.dropped,
        "phases": [
            {
                "verdict": _WORDS[phase.fate],
                "from_ns": phase.first_ns - end_ns if command else None,
                "to_ns": phase.last_ns - end_ns if command else None,
                "packets": phase.packets,
            }
            for phase in change.phases[:PHASES]
        ],
    }


def answer(outcome: StopwatchOutcome) -> str:
    """In a word: "undecided", "unchanged", "changed", or "violated": changed, and not as it should."""
    changes = [change for one in outcome.classes for change in one.changes]
    wrong = any(change.leaked or change.blocked for change in changes)
    stale = any(one.connection is Connection.LIVES_ON and _others_changed(one) for one in outcome.classes)
    if wrong or stale:
        return "violated"
    if any(change.is_changed for change in changes):
        return "changed"
    return "unchanged" if changes and all(change.is_decided for change in changes) else "undecided"


def _others_changed(one: ClassResult) -> bool:
    return one.new is not None and one.new.is_changed


def exit_code(outcome: StopwatchOutcome) -> int:
    """0 changed, and by the end of the command for every packet; 1 violated; 4 no answer, or the command failed."""
    if outcome.stopped.startswith("stopped by"):
        return 130
    found = answer(outcome)
    if found == "violated":
        return 1
    return 0 if found == "changed" and outcome.exit_code == 0 else 4
