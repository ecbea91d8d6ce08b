"""The governor on the lab: the machine is really busy, probing backs off and says so, and nothing is called lost."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import trio

from netprobe.model.load import LoadLimits
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.plan.plans import RunPlan, SessionPlan, checked
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.governing import VARIABLE
from netprobe.service.run import run_plan

pytestmark = pytest.mark.system

TIGHT = LoadLimits(cpu=0.3, pressure=1.0, drops=1e9)
COUNT, RATE_PPS = 700, 200


@pytest.fixture
def busy():
    """Something else keeps half of all processors busy."""
    program = "while True: pass"
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(((os.cpu_count() or 1) + 1) // 2)]
    yield
    for child in children:
        child.kill()
        child.wait()


def plan(limits):
    guest = SessionPlan("guest", "vm1", "vm3", count=COUNT, rate_pps=RATE_PPS)
    played = replace(guest, name="played", src="vm2", vantage=Vantage.VSWITCH, count=COUNT // 4, rate_pps=RATE_PPS // 4)
    return RunPlan("governed", tuple(checked(s, "test") for s in (guest, played)), governor=limits)


def run(limits):
    return trio.run(partial(run_plan, plan(limits), read_topology(state_path()))).results


def test_on_a_busy_machine_probing_backs_off_and_says_so(lab, busy, monkeypatch):
    """From both vantages: what is held back is unsent, and the ledger holds."""
    monkeypatch.setenv(VARIABLE, "on")
    for result in run(TIGHT):
        leg, governor = result.forward, result.governor
        assert governor is not None, result.name
        assert governor["lowest_share"] <= 0.5
        assert governor["steps"][0]["share"] == 0.5
        assert "processors were busy" in governor["steps"][0]["why"]
        assert 0 < governor["held_back"] == leg.unsent
        assert leg.planned == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending
        assert leg.lost == 0
        assert leg.delivered > 0
        assert any("to spare tenants" in note for note in result.notes)


def test_switched_off_it_sends_all(lab, busy, monkeypatch):
    monkeypatch.setenv(VARIABLE, "on")
    for result in run(replace(TIGHT, is_on=False)):
        assert (result.governor, result.forward.unsent) == (None, 0)


def test_within_the_limits_it_sends_all(lab, monkeypatch):
    monkeypatch.setenv(VARIABLE, "on")
    for result in run(LoadLimits(cpu=1.0, pressure=1.0, drops=1e9)):
        assert (result.governor, result.forward.unsent) == (None, 0)


def test_a_stream_is_ended_and_says_why(lab, busy, monkeypatch):
    """It cannot be thinned. What was not sent is unsent, and nothing is called lost for it."""
    monkeypatch.setenv(VARIABLE, "on")
    session = SessionPlan(
        "stream",
        "vm1",
        "vm3",
        vantage=Vantage.BYPASS,
        protocol=Protocol.RAW_UDP,
        count=900_000,
        rate_pps=1000,
        dst_port=862,
    )
    outcome = trio.run(
        partial(run_plan, RunPlan("stream", (checked(session, "test"),), governor=TIGHT), read_topology(state_path()))
    )
    (result,) = outcome.results
    assert "the governor ended it" in outcome.stopped
    assert "processors were busy" in outcome.stopped
    assert result.governor["held_back"] == result.forward.unsent > 0
    leg = result.forward
    assert leg.planned == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending
