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
def lab():
    """A healthy lab for the tests of one module; gone afterwards."""
    before = os.environ.get("NETPROBE_RUN_DIR")
    os.environ["NETPROBE_RUN_DIR"] = str(RUN_DIR)
    control.down()
    try:
        yield control.up()
    finally:
        control.down()
        if before is None:
            del os.environ["NETPROBE_RUN_DIR"]
        else:
            os.environ["NETPROBE_RUN_DIR"] = before
