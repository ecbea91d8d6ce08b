"""Reports as files: the plan that repeats a run, CSV, and HTML that holds everything and asks nobody."""

import csv
import io
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html import unescape

import pytest
from support.pages import save_document, save_run, session

from netprobe.cli.main import main
from netprobe.model.results import DelayBounds
from netprobe.plan.plans import parse_plan
from netprobe.show.policy_metrics import KINDS
from netprobe.show.report_csv import csv_text
from netprobe.show.report_html import report_html
from netprobe.show.report_plan import limits, plan_text, statements
from netprobe.store import duckdb_file


def document(*results, **changes):
    return {
        "run": "r",
        "started": "2026-01-01T00:00:00+00:00",
        "stopped": None,
        "plan": "web tier",
        "seed": 7,
        "mesh": [],
        "sessions": [r.to_json() for r in results],
    } | changes


def test_the_plan_of_a_report_repeats_the_run():
    """Read back it has the sessions, seeds, Type-P, rates and Tmax that were measured, in order."""
    tcp = {"proto": "tcp", "family": 6, "size_bytes": 74, "dscp": None, "src_port": None, "src_ports": 100,
           "dst_port": 443, "flow": "new-per-probe", "ttl": 9}  # fmt: skip
    one = session("a", 'b "quoted" \\ \x7f ünï', name='x"y\n')
    two = session("b", "a", name="two", vantage="bypass", type_p=tcp, schedule="periodic", rate_pps=3)
    plan = parse_plan(plan_text(document(one, two)), "report")
    assert (plan.name, plan.seed, plan.tmax_ns) == ("web tier", 7, 200_000_000)
    first, second = plan.sessions
    assert (first.name, first.src, first.dst) == ('x"y\n', "a", 'b "quoted" \\ \x7f ünï')
    assert (first.size_bytes, first.dscp, first.dst_port, first.count, first.rate_pps) == (110, 3, 862, 1000, 100)
    assert (second.vantage.value, second.protocol.value, second.family, second.dscp) == ("bypass", "tcp", 6, None)
    assert (second.dst_port, second.ttl, second.schedule.value, second.rate_pps) == (443, 9, "periodic", 3)


def test_epochs_of_one_session_are_one_session_of_the_plan_and_what_it_cannot_say_is_said():
    """A guest that moved has two results of one name; their probes are counted together."""
    epoch = {"number": 0, "of": 2, "first_seq": 0, "end_seq": 1000, "because": None, "followed_after_ms": None}
    found = document(*(session("a", "b", epoch={**epoch, "number": i}, rate_pps=0.5) for i in range(2)), mesh=[{}])
    (only,) = parse_plan(plan_text(found), "report").sessions
    assert (only.count, only.rate_pps) == (2000, 1)
    said = " ".join(limits(found))
    assert all(word in said for word in ("moved", "mesh", "rounded up"))


def test_statements_name_all_that_makes_the_numbers_what_they_are():
    """Plan, seed, Type-P, Tmax, clocks, stamps; and what was shed."""
    told = dict(statements(document(session("a", "b", overflowed={"b.backend": "its ring had no room"}))))
    assert "7" in told["seed"]
    assert "200 ms" in told["Tmax"]
    assert told["Type-P"] == "udp/862, IPv4, 110 bytes, DSCP 3, TTL 64"
    assert told["clocks"] == "one clock stamps both ends of every segment"
    assert told["stamps"] == "kernel-rx"
    assert "no room" in told["shed"]


def test_csv_has_a_line_a_segment_and_no_cell_that_a_spreadsheet_calculates():
    """Infinite quantiles are inf; a name that begins like a formula gets a quote."""
    rows = list(csv.DictReader(io.StringIO(csv_text(document(session("=cmd|x", 'b, "c"', lost=20))))))
    assert len(rows) == 4
    middle = next(r for r in rows if r["segment"] == '=cmd|x.backend..b, "c".backend'.replace("=", "'=", 1))
    assert (middle["src"], middle["dst"], middle["lost"], middle["delay_p99_ns"]) == ("'=cmd|x", 'b, "c"', "20", "inf")


def test_csv_says_how_sure_delays_are():
    """Of one clock intervals, of two clocks bounds, also where no delay can be stated; nothing is empty."""
    one = session("a", "b")
    first, second, third = one.forward.segments
    first = replace(first, delay=replace(first.delay, p99_interval_95=(40_000, None)))
    bounds = DelayBounds((None, 9), (None, 10), (None, 20), (5, 30), (5, None))
    second = replace(second, delay=None, pdv=None, delay_bounds=bounds, clock_error_ns=700)
    found = document(replace(one, forward=replace(one.forward, segments=(first, second, third))))
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    names = [f"delay_{name}_{end}_ns" for name in ("p50", "p99") for end in ("low", "high")]
    assert [[row[name] for name in names] for row in rows[:3]] == [
        ["28000", "32000", "40000", "inf"], ["0", "10", "5", "30"], ["28000", "32000", "", ""],
    ]  # fmt: skip


def test_tables_say_what_median_and_99th_percentile_lie_in():
    """With 95 % of one clock, for certain of two; in a report's tables, which need no script."""
    one = session("a", "b")
    first, second, third = one.forward.segments
    first = replace(first, delay=replace(first.delay, p99_interval_95=(40_000, None)))
    second = replace(second, delay_bounds=DelayBounds(*[(None, 10)] * 3, (5, 30), (5, None)), clock_error_ns=700)
    html = report_html(document(replace(one, forward=replace(one.forward, segments=(first, second, third)))), {})
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index("All numbers as tables") :])
    cells = [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]
    at = [cells[0].index(f"{name} lies in") for name in ("p50", "p99")]
    assert [[row[i] for i in at] for row in cells[1:4]] == [
        ["28.0 us to 32.0 us", "> 40.0 us"], ["< 10 ns", "5 ns to 30 ns"], ["28.0 us to 32.0 us", "-"],
    ]  # fmt: skip


def test_html_is_one_file_that_asks_nobody_and_has_the_numbers_without_scripts():
    """No address in it but SVG's name; every script is allowed by its hash; what others named is escaped."""
    html = report_html(document(session("<b>a</b>", "b", lost=20), session("c", "d", name="n2")), {})
    without_names = html.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org", "")
    head = html[: html.index("<style>")]
    assert re.search(r"script-src ('sha256-[^']+' ?)+;", head)
    assert "unsafe" not in head
    assert re.findall(r"""(?:src|href)=["']?https?:""", without_names) == []
    assert "<b>a</b>" not in html
    assert "&lt;b&gt;a&lt;/b&gt;" in html
    tables = html[html.index("All numbers as tables") : html.index('id="data"')]
    assert "&lt;b&gt;a&lt;/b&gt;.backend..b.backend" in tables
    assert "2.00 % [1.23, 3.07]" in tables


def test_the_command_that_repeats_a_proof_is_one_command_whatever_the_policy_is_called():
    """Somebody pastes it into a shell."""
    words = {"vantage": "backend", "rate_pps": 100, "tmax_ms": 200, "alpha": 0.01, "backend": "ovn", "sent": 0}
    proof = {"run": "r", "started": "s", "stopped": None, "seed": 1, "source": "a b;reboot $(id).toml", "matrix": [],
             "findings": [], "counts": dict.fromkeys(KINDS, 0), "seconds": 1.0, "rounds": 1, **words}  # fmt: skip
    line = unescape(re.search(r"Repeat it: <code>(.*?)</code>", report_html(proof, {}))[1])
    assert shlex.split(line)[:3] == ["netprobe", "verify", "a b;reboot $(id).toml"]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "s.duckdb"
    save_run(path, "one", 1_000, [session("a", "b")])
    save_run(path, "two", 2_000, [session("a", "b", lost=9), session("b", "a", name="back")])
    save_document(path, "odd", 500, {"run": "odd", "started": "s", "stopped": None, "sessions": []}, "trace")
    return path


def test_the_command_writes_any_run_in_any_form(store, tmp_path, capsys):
    """The newest by default; one of an id; three forms, one at a time."""
    out = tmp_path / "out.html"
    assert main(["report", "--store", str(store), "--html", str(out)]) == 0
    assert "9 of 1000" in out.read_text() or '"lost": 9' in out.read_text()
    capsys.readouterr()
    assert main(["report", "--store", str(store), "--run", "one", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["report", "--store", str(store), "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert main(["report", "--store", str(store), "--run", "nothing"]) == 4
    assert main(["report", "--store", str(store), "--csv", "--json"]) == 2
    assert main(["report", "--store", str(store), "--html", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_result_that_cannot_be_read_is_told_with_its_name_and_what_to_do(tmp_path, capsys):
    """A session without its ledger: no fault of netprobe's, whatever form is asked for; as JSON it can be had."""
    path, broken = tmp_path / "s.duckdb", {"run": "odd", "started": "s", "stopped": None, "plan": "p", "sessions": [{}]}
    save_document(path, "odd", 1, broken, "run")
    for words in (["--html", str(tmp_path / "x.html")], ["--csv"], ["--run", "odd", "--html", "-"], []):
        assert main(["report", "--store", str(path), *words]) == 3, words
        told = capsys.readouterr().err
        assert ("run odd" if "--run" in words else "its newest result") in told
        assert "--json" in told
    assert main(["report", "--store", str(path), "--json"]) == 0


def test_why_a_store_cannot_be_opened_is_told_with_what_helps(tmp_path, capsys, monkeypatch):
    """Another name helps against neither a lock nor a slip of the pen."""
    monkeypatch.setattr(duckdb_file, "LOCK_WAIT_S", 0.1)
    path = tmp_path / "s.duckdb"
    save_run(path, "one", 1, [session("a", "b")])
    script = "import duckdb, sys; db = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        assert main(["report", "--store", str(path)]) == 3
        told = capsys.readouterr().err
        holder.stdin.close()
    assert f"process {holder.pid} has had it open" in told
    assert "nother file" not in told
    assert main(["report", "--store", str(tmp_path / "none.duckdb")]) == 3
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("no store" * 1000)
    assert main(["report", "--store", str(tmp_path / "text")]) == 3
    assert "It is no store, or damaged" in capsys.readouterr().err
