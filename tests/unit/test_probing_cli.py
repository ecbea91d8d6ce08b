"""Arguments of trace --mtu, trace --flows and watch, and what people read of their results."""

import io
import json
from dataclasses import replace

import pytest
import trio
from support.clouds import topology
from support.runs import leg, outcome, session

from netprobe.cli import running, trace, watch
from netprobe.cli.main import build_parser
from netprobe.errors import UsageError
from netprobe.host.signals import StopRequest
from netprobe.judge.flows import FlowState
from netprobe.plan.flows import FlowGroup, spread_flows
from netprobe.plan.mesh import compile_plan
from netprobe.plan.plans import SessionPlan, parse_plan
from netprobe.service.spreading import flow_verdicts
from netprobe.service.watch_plan import watch_plan
from netprobe.show.many import print_result, sweep_text
from netprobe.show.tables import console
from netprobe.show.watching import change_text, clock, window_text


def arguments(*words):
    return build_parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "count", "flows"),
    [((), 100, 1), (("--flows", "8"), 20, 8), (("--mtu",), 4, 1), (("--flows", "8", "--count", "5"), 5, 8)],
)
def test_how_many_probes_a_trace_sends_unless_told(words, count, flows):
    """100 of one flow, 20 of each of many, 4 of a size in each run."""
    (planned,) = trace.plan_of(arguments("trace", "vm1", "vm2", *words)).sessions
    assert (planned.count, planned.flows) == (count, flows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "100"), "leave --size out"),
        (("--sport", "61000"), "leave --sport out"),
        (("--flows", "4"), "leave --flows out"),
        (("--max-loss", "1%"), "leave --max-loss out"),
        (("--compare",), "with --compare"),
        (("--proto", "tcp", "--dport", "80"), "a SYN has no payload"),
    ],
)
def test_what_a_sweep_chooses_itself_is_refused(words, message):
    """Nothing that is asked for is ignored."""
    with pytest.raises(UsageError) as caught:
        trace.run(arguments("trace", "vm1", "vm2", "--mtu", *words))
    assert message in str(caught.value).replace("Leave", "leave")


@pytest.mark.parametrize("flows", ["1", "0", "257"])
def test_a_number_of_flows_is_bounded(flows):
    """One flow is no comparison; hundreds are a load."""
    with pytest.raises(UsageError, match="allowed: 2 to 256"):
        trace.plan_of(arguments("trace", "vm1", "vm2", "--flows", flows))


def test_a_watch_may_have_a_window_of_another_length(tmp_path):
    """--window wins over the plan, within the same bounds."""
    path = tmp_path / "p.toml"
    path.write_text('[watch]\nwindow = "10s"\n[[session]]\nsrc = "vm1"\ndst = "vm2"\n')
    assert watch.plan_of(arguments("watch", str(path))).watch.window_ns == 10**10
    assert watch.plan_of(arguments("watch", str(path), "--window", "2s")).watch.window_ns == 2 * 10**9
    with pytest.raises(UsageError, match="allowed: 100 ms"):
        watch.plan_of(arguments("watch", str(path), "--window", "1ms"))
    with pytest.raises(UsageError, match="--windows: got 0"):
        watch.plan_of(arguments("watch", str(path), "--windows", "0"))


def flows_document(lost):
    """The document of a trace with three flows, of which number 1 lost so many."""
    plans = spread_flows(SessionPlan("trace", "vm1", "vm2", flows=3))
    results = [
        session(
            plan.name,
            leg(20, 20 - n, n, last_seen="vm1.backend", first_missing="vm2.backend" if n else None),
            src_port=61_000 + i,
        )
        for i, (plan, n) in enumerate(zip(plans, (0, lost, 0), strict=True))
    ]
    verdicts = flow_verdicts([FlowGroup("trace", 0, 3)], plans, results)
    run = outcome(results)
    head = running.head_of("uuid", run.started_ns, "")
    return running._trace_document(run, verdicts, head), verdicts, run


def test_flows_have_their_verdict_rows_and_sessions_in_the_document():
    """What docs/json.md promises."""
    document, _, _ = flows_document(20)
    assert [row["state"] for row in document["flows"]] == ["passes", "fails", "passes"]
    (group,) = document["flow_groups"]
    assert (group["flows"], group["passes"], group["failing"]) == (3, 2, [1])
    assert [s["name"] for s in document["sessions"]] == ["trace#0", "trace#1", "trace#2"]
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(("lost", "max_loss", "code"), [(0, 1.0, 0), (20, 1.0, 1), (1, 1.0, 0), (1, 0.01, 1)])
def test_the_exit_code_of_flows_is_that_of_all_together(lost, max_loss, code):
    """1 when one fails; a lost probe is no failure, unless it is more than --max-loss."""
    _, verdicts, run = flows_document(lost)
    assert running.exit_code(run, verdicts, max_loss) == code


def test_flows_of_which_nobody_can_say_are_exit_code_4():
    """No answer is not a pass."""
    _, (verdict,), run = flows_document(0)
    unknown = replace(verdict, rows=tuple(replace(row, state=FlowState.UNKNOWN) for row in verdict.rows))
    assert running.exit_code(run, [unknown], 1.0) == 4


def printed(document, width=100):
    out = console(width=width)
    out.file = io.StringIO()
    print_result(out, document)
    return out.file.getvalue()


def test_people_see_the_verdict_each_flow_and_the_first_that_fails():
    """The answer first; of the sessions only the broken one is printed whole."""
    text = printed(flows_document(20)[0])
    assert "2 of 3 flows pass; flow 1 (source port 61001) lost 20 of 20" in text
    assert "fails, between vm1.backend and vm2.backend" in text
    assert "trace#1: vm1 -> vm2" in text
    assert "trace#0: vm1 -> vm2" not in text


def test_many_sessions_are_one_line_each():
    """Ten paths, one of them down: ten lines, and the bad one whole."""
    results = [session(f"m:a->{i}", leg(10, 10)) for i in range(9)]
    results.append(session("m:a->9", leg(10, 0, 10, last_seen="vm1.backend", first_missing="vm2.backend")))
    plan = parse_plan('[[session]]\nsrc = "vm1"\ndst = "vm2"\n', "p")
    document = running.run_document(compile_plan(plan, topology()), outcome(results), (), {})
    text = printed(document, width=160)
    assert text.count("delivered to vm2.guest") == 9
    assert text.count("NOT delivered") == 2  # in its line, and whole
    assert document["mesh"] == []


@pytest.mark.parametrize(
    ("mtu", "text"),
    [
        ({"verdict": "all-pass", "passes_up_to": 1514}, "every size passes that was tried, up to 1514 bytes"),
        (
            {"verdict": "limited", "passes_up_to": 82, "first_failing": 83, "exact": True, "segment": "a..b",
             "last_seen": "a", "first_missing": "b", "certain": True},
            "82 bytes pass, 83 vanish between a and b",
        ),
        (
            {"verdict": "limited", "passes_up_to": None, "first_failing": 62, "exact": True, "segment": "b..c",
             "last_seen": "b", "first_missing": "c", "certain": False},
            "not even the smallest passes, 62 vanish between b and c, or the answer on its first stretch back",
        ),
        ({"verdict": "inconclusive", "why": "too lossy"}, "no answer: too lossy"),
        ({"verdict": "unreachable", "last_seen": "a"}, "nothing arrives, whatever its size: last seen at a"),
    ],
)  # fmt: skip
def test_a_sweeps_answer_is_one_sentence(mtu, text):
    """The example of the issue: 68 bytes pass, 69 vanish."""
    assert sweep_text(mtu) == text


def test_a_change_reads_as_documented():
    """Since when, last seen at, first missing at, decided by how many samples."""
    change = {
        "name": "web",
        "src": "vm1",
        "dst": "vm2",
        "from": "reachable",
        "to": "unreachable",
        "since_ns": 1_700_000_000_123_000_000,
        "last_seen": "vm1.backend",
        "first_missing": "vm2.backend",
        "reason": {"code": "security-group"},
        "tests": {"reach": 12},
    }
    assert change_text(change) == (
        f"vm1 -> vm2: reachable -> unreachable since {clock(1_700_000_000_123_000_000)}, last seen at vm1.backend,"
        " first missing at vm2.backend, reason security-group (web; reach: 12 samples)"
    )
    assert clock(1_700_000_000_123_000_000).endswith(":20.123")


def told(words, reports_of):
    """What a watch prints of reports."""
    args = arguments("watch", "p.toml", "--no-store", *words)
    teller = watch.Teller(args, StopRequest())
    plan = parse_plan('[[session]]\nname = "web"\nsrc = "vm1"\ndst = "vm2"\n', "p")

    async def run(todo, where, progress):
        del where, progress
        return outcome([session("web", reports_of(todo.sessions[0].count))])

    async def read():
        return topology()

    async def main():
        await watch_plan(plan, read, teller.take, stop=StopRequest(), windows=2, run=run)

    trio.run(main)


def test_a_watch_prints_changes_and_nothing_else(capsys):
    """Two windows, one change: one line."""
    told((), lambda count: leg(count, count))
    assert capsys.readouterr().out.count("\n") == 1


def test_a_watch_with_json_prints_one_document_a_line(capsys):
    """Windows and changes, each with its schema and type."""
    told(("--json",), lambda count: leg(count, 0, count, last_seen="a", first_missing="b"))
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [d["type"] for d in documents] == ["window", "change", "window"]
    assert {d["schema"] for d in documents} == {1}
    assert (documents[1]["window"], documents[1]["to"]) == (0, "unreachable")
    assert documents[0]["stored"] is False
    assert "1 unreachable" in window_text(documents[2])


def test_a_watch_that_nobody_reads_any_more_stops(monkeypatch):
    """`| head`: it must not run for ever for nobody."""
    stop = StopRequest()

    class Closed(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

        def fileno(self):
            return 99

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("netprobe.cli.output.os.dup2", lambda *_: None)
    watch.Teller(arguments("watch", "p"), stop).say("x")
    assert stop.asked()
    assert stop.why == watch.NOBODY_READS
