"""The labs that the system tests share, in a run directory of their own: `single`, or `pair` with two hypervisors."""

import os
import shutil

import pytest
from support.workers import RUN_DIR

from netprobe.lab import config, control


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
    # A new switch has no connections that ports rest from, and nothing that a run killed by another module's test left.
    (RUN_DIR / "ports.json").unlink(missing_ok=True)
    shutil.rmtree(RUN_DIR / "journal", ignore_errors=True)
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
    return healthy("single")


@pytest.fixture
def pair_lab(lab_place):
    """The same with two hypervisors and OVN, and every guest where it was at first."""
    status = healthy("pair")
    at_first = {guest.name: guest.host for guest in config.load("pair").guests}
    moved = [guest["name"] for guest in status.state["guests"] if guest["host"] != at_first[guest["name"]]]
    for name in moved:
        control.move(name, at_first[name])
    return control.status() if moved else status


def healthy(name):
    """A lab of this name, without faults, and no other."""
    if control.status().state.get("name", name) != name:
        control.down()
    status = control.up(name)
    return control.status() if control.fault_clear().faults else status
