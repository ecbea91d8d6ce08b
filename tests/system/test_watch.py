"""`netprobe watch` on the lab: an outage and its end as lines, a dead agent as unobserved, a clean end by signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import duckdb
import pytest
from support.switch_rules import rules
from support.waiting import until

from netprobe.host.conntrack import Conntrack
from netprobe.host.unixctl import UnixctlClient
from netprobe.service.discovery import base_dir, read_topology

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "netprobe.cli.main", "watch"]
PLAN = """
tmax = "200ms"
[watch]
window = "500ms"
max_loss = "5%"
[[session]]
name = "web"
src = "vm1"
dst = "vm2"
rate = 100
"""


class Watching:
    """A watch in a process of its own, with its JSON Lines as they come."""

    def __init__(self, path, *words):
        path.write_text(PLAN)
        self.process = subprocess.Popen(
            [*COMMAND, str(path), "--json", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.documents = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.documents.append(json.loads(line))

    def of(self, kind):
        return [d for d in self.documents if d["type"] == kind]

    def wait_change(self, state):
        return until(lambda: next((c for c in self.of("change") if c["to"] == state), None), timeout_s=20)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self._reader.join(timeout=10)
        error = self.process.stderr.read()
        assert "Traceback" not in error, error
        return code


@pytest.fixture
def watching(lab, tmp_path):
    """Starts watches, and ends what a failing test leaves."""
    started = []

    def start(*words):
        started.append(Watching(tmp_path / "plan.toml", *words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(timeout=10)
        one._reader.join(timeout=10)
        one.process.stdout.close()
        one.process.stderr.close()


def entries_of_ours():
    host = read_topology().host("hv1")
    with UnixctlClient(host.ovs_rundir) as unixctl:
        entries = Conntrack(unixctl).dump(host.zone).entries
    return [e for e in entries if 61000 <= e.original.src_port <= 65535]


def test_an_outage_and_its_end_are_told_with_place_and_time(watching, lab_place, tmp_path):
    """Reachable; the switch swallows everything: unreachable since then, between these points; and back."""
    watch = watching("--store", str(tmp_path / "w.duckdb"))
    watch.wait_change("reachable")
    before_ns = time.time_ns()
    with rules(lab_place, "table=0,priority=30000,ip,in_port=1,actions=drop"):
        after_ns = time.time_ns()
        change = watch.wait_change("unreachable")
    assert (change["name"], change["src"], change["dst"]) == ("web", "vm1", "vm2")
    gap_ns = next(w["gap_ns"] for w in watch.of("window") if w["window"] == change["window"])
    assert before_ns - gap_ns - 100_000_000 <= change["since_ns"] <= after_ns + 10_000_000
    assert (change["last_seen"], change["first_missing"]) == ("vm1.backend", "vm2.backend")
    assert change["tests"]["reach"] >= 11
    until(
        lambda: [
            c for c in watch.of("change") if c["at_ns"] > change["at_ns"] and c["to"] in ("reachable", "degraded")
        ],
        20,
    )
    assert watch.end() == 130
    (end,) = watch.of("end")
    assert (end["stopped"], set(end["states"])) == ("stopped by SIGTERM", {"web"})
    windows = watch.of("window")
    assert [w["window"] for w in windows] == list(range(len(windows)))
    assert all(w["gap_ns"] > 0 for w in windows[1:])
    assert all(w["stored"] for w in windows)
    with duckdb.connect(str(tmp_path / "w.duckdb"), read_only=True) as db:
        assert db.execute("SELECT count(*) FROM runs WHERE command = 'watch'").fetchone()[0] == len(windows)
    assert entries_of_ours() == []
    assert list((base_dir() / "journal").glob(f"run-{watch.process.pid}-*")) == []  # others were killed before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_watch_cleanly_in_the_middle_of_a_window(watching, number):
    """What was known is told; nothing is left behind."""
    watch = watching("--no-store", "--window", "30s")
    until(lambda: watch.of("start"))
    until(entries_of_ours, 20)  # probes are under way
    assert watch.end(number) == 130
    (window,) = watch.of("window")
    assert 0 < window["sessions"][0]["sent"] < 3000
    assert window["stopped"] == f"stopped by {signal.Signals(number).name}"
    assert watch.of("end")
    assert entries_of_ours() == []


def test_a_dead_agent_is_unobserved_and_never_loss(watching, lab):
    """The source's agent is killed: the watch goes on, says why, and calls nothing lost."""
    watch = watching("--no-store")
    watch.wait_change("reachable")
    victim = next(p for p in lab.state["processes"] if p["name"] == "agent-vm1")
    os.kill(victim["pid"], signal.SIGKILL)
    watch.wait_change("unobserved")
    until(lambda: [w for w in watch.of("window") if w["error"]], 20)
    assert watch.end() == 130
    assert "is the agent running?" in next(w for w in watch.of("window") if w["error"])["error"].lower()
    assert all(w["sessions"][0]["lost"] == 0 for w in watch.of("window"))


def test_a_watch_for_some_windows_has_the_exit_code_of_its_states(watching):
    """Two windows, all reachable: 0."""
    watch = watching("--no-store", "--windows", "2")
    assert watch.process.wait(timeout=30) == 0
    watch._reader.join(timeout=10)
    assert [d["type"] for d in watch.documents] == ["start", "window", "change", "window", "end"]
    assert watch.documents[0]["tests"]["loss"]["fine"] == 0.05


def test_a_plan_that_does_not_fit_is_refused_at_once(lab, tmp_path):
    """Exit code 2, one line, and no watch of nothing."""
    path = tmp_path / "plan.toml"
    path.write_text('[[session]]\nsrc = "vm1"\ndst = "vm7"\n')
    done = subprocess.run([*COMMAND, str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown guest 'vm7'" in done.stderr
