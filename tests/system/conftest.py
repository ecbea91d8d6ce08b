"""The lab that the system tests share: one hypervisor, three guests, a bypass NIC, in a run directory of its own."""

import os
from pathlib import Path

import pytest

from netprobe.lab import control

RUN_DIR = Path("/run/netprobe-tests")  # fixed, so that what a killed run left is found and removed by the next


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    """No test touches the run directory, the audit log or the store of the machine that it runs on."""
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(RUN_DIR))
    monkeypatch.setenv("NETPROBE_AUDIT", str(tmp_path / "audit.jsonl"))


@pytest.fixture(scope="module")
def lab_place():
    """No lab before the tests of one module, and none after them."""
    before = os.environ.get("NETPROBE_RUN_DIR")
    os.environ["NETPROBE_RUN_DIR"] = str(RUN_DIR)
    control.down()
    (RUN_DIR / "ports.json").unlink(missing_ok=True)  # a new switch has no connections that ports rest from
    try:
        yield RUN_DIR
    finally:
        control.down()
        if before is None:
            del os.environ["NETPROBE_RUN_DIR"]
        else:
            os.environ["NETPROBE_RUN_DIR"] = before


@pytest.fixture
def lab(lab_place):
    """A healthy lab without faults: made by the first test of a module, repaired where one broke it."""
    status = control.up()
    control.fault_clear()
    return status
