"""The command of a watched change, its arguments, and what is said of the outcome."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from rich.console import Console
from support.waiting import until

from netprobe.cli.main import build_parser
from netprobe.cli.verify_change import watch_order
from netprobe.errors import UsageError
from netprobe.host.signals import StopRequest
from netprobe.judge.proof import loss_bound
from netprobe.judge.stopwatch import Change, Command, Fate, Phase
from netprobe.service import stopwatch_command
from netprobe.service.stopwatch import StopwatchOutcome
from netprobe.service.stopwatch_command import Ran, run_command
from netprobe.service.stopwatch_document import answer, exit_code, stopwatch_document
from netprobe.service.stopwatch_run import ClassResult, StopwatchOrder
from netprobe.show.many import print_result

MS = 1_000_000
P, D, U = Fate.PASSED, Fate.DROPPED, Fate.UNKNOWN


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def ran(*words, stop=None):
    found = Ran()
    trio.run(run_command, words, found, stop or StopRequest())
    return found


def test_what_a_command_prints_goes_to_stderr_and_its_exit_code_is_kept(capfd):
    """Stdout is for the document alone."""
    found = ran("sh", "-c", "echo hello; exit 3")
    assert (found.exit_code, found.notes) == (3, [])
    assert 0 < found.begin_ns < found.end_ns
    assert "hello" in capfd.readouterr().err


def is_gone(pid):
    """No process, or one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"
    except OSError:
        return True


def test_a_command_that_takes_too_long_is_killed_with_its_children(monkeypatch, tmp_path):
    """Its whole session, and nothing else; the result is told all the same."""
    monkeypatch.setattr(stopwatch_command, "COMMAND_S", 0.3)
    found = ran("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait")
    assert (found.exit_code, found.notes) == (-9, ["the command was killed after 0.3 s"])
    child = int((tmp_path / "child").read_text())
    until(lambda: is_gone(child))


def test_a_command_is_asked_to_end_when_somebody_asks_to_stop():
    """By SIGTERM, so that it can undo what it did half."""
    stop = StopRequest()
    stop.ask("stopped by SIGINT")
    assert ran("sleep", "60", stop=stop).exit_code == -15


def test_a_command_that_cannot_be_started_is_the_callers_fault(tmp_path):
    """Not executable."""
    (tmp_path / "script").write_text("x")
    with pytest.raises(UsageError, match="cannot be started"):
        ran(str(tmp_path / "script"))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def order(*words) -> StopwatchOrder:
    return watch_order(build_parser().parse_args(["verify", "p.toml", *words]))


def test_a_command_is_split_like_a_shell_does_and_run_without_one():
    """Defaults are those of the help."""
    found = order("--watch-change", "sh -c 'true; true'")
    assert found == StopwatchOrder(("sh", "-c", "true; true"))


def test_every_option_reaches_the_order():
    """Rates, times and the rule."""
    words = ["--watch-rate", "10000", "--watch-connections", "1000", "--watch-before", "300ms", "--watch-after", "2s"]
    found = order("--watch-change", "true", "--watch-rule", "web[1]", *words, "--tmax", "50ms")
    assert (found.rule, found.rate, found.connections) == ("web[1]", 10_000, 1000)
    assert (found.before_ns, found.after_ns, found.tmax_ns) == (300 * MS, 2000 * MS, 50 * MS)
    assert found.pps == 11_550


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--watch-change", "no-such-command-anywhere x"], "names no command"),
        (["--watch-change", "  "], "names no command"),
        (["--watch-change", "sh -c 'x"], "check the quotes"),
        (["--watch-change", "true", "--watch-rate", "10001"], "--watch-rate.*allowed: 100 to 10000"),
        (["--watch-change", "true", "--watch-connections", "-1"], "--watch-connections.*allowed: 0 to 1000"),
        (["--watch-change", "true", "--watch-before", "1ms"], "--watch-before.*allowed: 200ms to 60s"),
        (["--watch-change", "true", "--watch-after", "2h"], "--watch-after"),
        (["--watch-change", "true", "--vantage", "vswitch"], "--vantage"),
    ],
)
def test_what_cannot_be_is_refused(words, text):
    """Before anything is opened, with what is allowed."""
    with pytest.raises(UsageError, match=f"(?i){text}"):
        order(*words)


# ---------------------------------------------------------------------------------------------------------------------
# The outcome
# ---------------------------------------------------------------------------------------------------------------------


def changed(old, new, **more):
    timed = {"last_old_ns": 115 * MS, "first_new_ns": 116 * MS, "interval_ns": MS, "delay_ns": 2 * MS}
    both = Fate.UNKNOWN not in (old, new) and old is not new
    phases = (Phase(P, MS, 115 * MS, 115), Phase(D, 116 * MS, 200 * MS, 85))
    return Change(old, new, **(timed if both else {}), sent=200, passed=115, dropped=80, phases=phases, **more)


COMMAND = Command(100 * MS, 120 * MS)


def outcome(*pairs, code=0, stopped="", command=COMMAND):
    packet = SimpleNamespace(text=lambda: "tcp syn 10.0.0.1 -> 10.0.0.2:80")
    scenario = SimpleNamespace(src="vm1", dst="vm2", key="vm1>vm2 v4 tcp/80", steps=(SimpleNamespace(packet=packet),))
    watched = SimpleNamespace(rule="web[1]", scenario=scenario, packet=packet)
    classes = tuple(ClassResult(watched, True, existing, new) for existing, new in pairs)
    return StopwatchOutcome(
        plan=SimpleNamespace(backend="bridge"), order=StopwatchOrder(("true",), "web[1]"), started_ns=0,
        ended_ns=2_000 * MS, command=command, exit_code=code, classes=classes, left_out=("web[2]",),
        loss=loss_bound(1000, 0), needed=4, sent=400, unsent=0, controls=100, overflow=0, forged=0, notes=("a note",),
        conntrack_deleted=7, conntrack_kept=0, stopped=stopped,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "word", "code"),
    [
        ([(changed(P, D), changed(P, D))], "changed", 0),
        ([(changed(P, D), None)], "changed", 0),
        ([(changed(P, D), changed(P, D, leaked=3))], "violated", 1),
        ([(changed(D, P, blocked=1), changed(D, P))], "violated", 1),
        ([(changed(P, P), changed(P, D))], "violated", 1),  # lives on
        ([(changed(D, D), changed(D, P))], "changed", 0),
        ([(changed(P, P), changed(P, P))], "unchanged", 4),
        ([(changed(P, P, blocked=5), changed(P, P))], "violated", 1),
        ([(changed(P, P), changed(P, P)), (changed(P, D), changed(P, D))], "changed", 0),
        ([(changed(P, P), changed(P, U))], "undecided", 4),
        ([], "undecided", 4),
    ],
)
def test_the_answer_and_its_exit_code(pairs, word, code):
    """What leaked, what was blocked and a stale connection are the answer "no"; no change is none."""
    assert (answer(outcome(*pairs)), exit_code(outcome(*pairs))) == (word, code)


def test_a_command_that_failed_is_no_answer_and_a_signal_is_130():
    """Even where something changed."""
    pair = (changed(P, D), changed(P, D))
    assert exit_code(outcome(pair, code=1)) == 4
    assert exit_code(outcome(pair, stopped="stopped by SIGINT")) == 130


def test_the_document_says_when_and_what_relative_to_the_command():
    """Times from begin and end; nothing that is not known is a number."""
    document = stopwatch_document(outcome((changed(P, P), changed(P, D))))
    (one,) = document["classes"]
    assert (one["connection"], one["was_open"], document["answer"]) == ("lives on", True, "violated")
    new, existing = one["new"], one["existing"]
    assert (new["after_commit_ns"], new["after_begin_ns"], new["uncertainty_ns"]) == (-5 * MS, 15 * MS, 3 * MS)
    assert (new["old"], new["new"], new["undecided"]) == ("pass", "drop", 5)
    assert new["phases"][1] == {"verdict": "drop", "from_ns": -4 * MS, "to_ns": 80 * MS, "packets": 85}
    assert existing["last_old_ns"] is existing["after_commit_ns"] is existing["uncertainty_ns"] is None
    assert document["change"]["took_ns"] == 20 * MS


def test_a_document_without_a_command_has_no_times():
    """Stopped before it began."""
    document = stopwatch_document(outcome((changed(U, U), None), code=None, stopped="stopped", command=None))
    assert document["change"] == dict.fromkeys(("began_ns", "ended_ns", "took_ns", "exit_code")) | {"command": ["true"]}
    assert document["classes"][0]["new"] is None


def printed(document):
    out = io.StringIO()
    print_result(Console(file=out, width=160), document)
    return out.getvalue()


def test_people_read_the_answer_first_and_each_stream():
    """A stored result is printed the same way."""
    text = printed(stopwatch_document(outcome((changed(P, P), changed(P, D, leaked=3)))))
    assert text.startswith("the new verdict did not hold when the command had ended (bridge)")
    for words in ("existing flow", "new connections", "5.00 ms before the end, +3.00 ms", "stale conntrack", "a note"):
        assert words in text
    assert "web[2]" in text


def test_a_result_without_a_command_is_printed_too():
    """Nothing is invented."""
    document = stopwatch_document(outcome((changed(U, U), None), code=None, stopped="stopped", command=None))
    assert "was not run" in printed(document)
