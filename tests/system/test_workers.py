"""What keeps the labs of several workers apart, and what becomes of a worker's lab when the worker is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import until

from netprobe.host import netns, process

pytestmark = pytest.mark.system

LAB_IN_A_WORLD = """
from support.workers import RUN_DIR, World
world = World()
from netprobe.lab import control
print(*(p["pid"] for p in control.up().state["processes"]), flush=True)
{}
"""


def lab_in_a_world(ending):
    return subprocess.Popen(
        [sys.executable, "-c", LAB_IN_A_WORLD.format(ending)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def test_a_lab_in_another_world_is_not_seen_and_goes_when_its_maker_is_killed(lab_place):
    """Same names, same run directory, both are up; then kill -9, and nothing of the other one is left."""
    with lab_in_a_world("input()") as maker:
        try:
            pids = [int(word) for word in maker.stdout.readline().split()]
            assert len(pids) > 5
            assert not netns.exists("hv1")
            assert list(lab_place.glob("lab")) == []
        finally:
            maker.send_signal(signal.SIGKILL)
    until(lambda: not any(map(process.start_ticks, pids)))


def test_a_world_that_is_closed_takes_nothing_down(lab_place):
    """What a test forgot is for its fixture to remove; the watcher is there for those who were killed."""
    with lab_in_a_world("world.close(); print(control.status().is_healthy); control.down()") as maker:
        assert maker.stdout.readline()
        assert maker.stdout.readline() == "True\n"
    assert maker.returncode == 0
