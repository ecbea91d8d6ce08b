"""`netprobe bench harm` on the lab: real tenants, real probes; what it finds is judged in tests/unit/test_harm.py."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import until

pytestmark = pytest.mark.system

HARM = (sys.executable, "-m", "netprobe.cli.main", "bench", "harm")
SHORT = ("--slices", "2", "--slice", "100ms")


def harm(*words):
    return subprocess.run([*HARM, *words], capture_output=True, text=True, check=False, timeout=60)


def test_tenants_are_measured_with_and_without_probes(lab):
    """Two rounds prove nothing, so nobody can say (exit code 4); the numbers are those of real traffic."""
    done = harm(*SHORT, "--rate", "500", "--json")
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert (document["src"], document["dst"], document["rounds"], document["verdict"]) == ("vm1", "vm3", 2, "open")
    probing = document["probing"]
    assert probing["planned"] == 2 * 250  # 100 ms of warm-up, a slice of 100 ms, 300 ms to spare
    ledger = sum(probing[key] for key in ("unsent", "delivered", "lost", "unobserved"))
    assert ledger == probing["planned"]
    assert probing["delivered"] > 0
    assert document["requests"] > 100
    for metric in document["metrics"]:
        assert metric["quiet"] > 0
        assert metric["interval_95"][0] <= metric["shift"] <= metric["interval_95"][1]
        assert metric["aa_interval_95"][0] <= metric["aa_shift"] <= metric["aa_interval_95"][1]


def test_a_group_that_blocks_the_tenants_is_told(lab):
    """Nobody lets TCP 5201 into vm2."""
    done = harm("vm1", "vm2", *SHORT)
    assert done.returncode == 3
    assert "security groups" in done.stderr


def test_no_tenant_outlives_its_bench(lab):
    """Their pipe to us ends when the last of them has died."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as end:
        child = subprocess.Popen([*HARM, *SHORT, "--slices", "100"], stdout=writer, stderr=writer)
        os.close(writer)
        until(lambda: any("tenant_program" in name for name in children_of(child.pid)), timeout_s=20)
        child.send_signal(signal.SIGINT)
        end.read()
        assert child.wait() == 130


def children_of(pid):
    """Command lines of all processes that a process has started, its threads too."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{child}/cmdline").read_text())
    return found
