"""`netprobe run` and `trace` on a terminal and into a pipe, on the lab."""

import os
import pty
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

NETPROBE = [sys.executable, "-m", "netprobe.cli.main"]
PLAN = """
tmax = "200ms"
[[mesh]]
prune = false
count = 30
rate = 30
"""


def on_a_terminal(*words):
    """What a terminal of 120 columns gets, stdout and stderr together."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen([*NETPROBE, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    got = b""
    try:
        while chunk := os.read(ours, 65_536):
            got += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=20) == 0, got.decode(errors="replace")
    return got.decode()


def test_a_terminal_sees_a_mesh_run_and_a_pipe_gets_data_alone(lab, tmp_path):
    """Counts of a UDP mesh while it runs, then the result; into a pipe no control character, and progress nowhere."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    words = ("run", str(plan), "--no-store")
    seen = on_a_terminal(*words)
    assert "probes that are due have arrived, 180 are planned" in seen
    assert "mesh0:vm3->vm2: vm3 -> vm2" in seen
    piped = subprocess.run([*NETPROBE, *words], capture_output=True, text=True, timeout=60, check=True)
    for stream in (piped.stdout, piped.stderr):
        assert all(c.isprintable() or c == "\n" for c in stream)
    assert "are due" not in piped.stdout + piped.stderr
    assert "vm3" in piped.stdout


def test_trace_draws_the_path_into_a_pipe_too(lab):
    """Points and segments in a line of letters."""
    words = [*NETPROBE, "trace", "vm1", "vm2", "--no-store", "--count", "20"]
    piped = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert len([line for line in piped.splitlines() if line.startswith("  o-")]) == 1
    assert all(c.isprintable() or c == "\n" for c in piped)
