"""The benchmarks, short: each gives a figure of the right form. No time is judged."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent.parent
KEYS = {"value", "unit", "peer", "peer_value", "ratio", "interval", "target", "met"}


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_benchmark_gives_a_figure(tmp_path):
    """Also those whose target is missed in so short a time; and the table has a line for each."""
    output = tmp_path / "results.json"
    names = bench("--list").stdout.split()
    done = bench("--short", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert list(results) == names
    for name, figure in results.items():
        for one in (figure, *figure.get("also", [])):
            assert one.keys() >= KEYS, name
            assert isinstance(one["value"], int | float), name
            low, high = one["interval"]
            assert low <= high, name
            assert isinstance(one["met"], bool), name
        assert f"\n{name} " in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_stopped_leaves_no_process(number):
    """Whatever the signal: all that a benchmark started holds our pipe, and its end is seen."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "bench", "--only", "help_start"]
    with os.fdopen(reader, "rb") as end, subprocess.Popen(command, cwd=ROOT, stdout=writer, stderr=writer) as child:
        os.close(writer)
        for line in iter(end.readline, b""):
            if line.startswith(b"what "):
                break
        child.send_signal(number)
        end.read()  # ends when the last of them has died
        assert child.wait() != 0


def test_an_unknown_benchmark_is_refused_by_name():
    done = bench("--only", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
