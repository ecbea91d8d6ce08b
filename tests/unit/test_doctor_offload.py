"""`netprobe doctor` about ports that cannot be looked at: each with its reason, none required, nothing switched off."""

import json
from pathlib import Path

from netprobe.host.ovsdb import inventory_of
from netprobe.model.topology import Host
from netprobe.service import doctor
from netprobe.service.inventory import inventory

DATA = Path(__file__).parent / "data"
HOST = Host("hv7", "", "br-int", "/nowhere", "", None)


def look(monkeypatch, found):
    monkeypatch.setattr(doctor, "inventory", lambda host: found)
    return doctor._ports_check(HOST)


def test_ports_that_rings_cannot_see_are_named_with_the_reason(monkeypatch):
    """The check fails, and nothing depends on it: results call these points unobserved."""
    tables = json.loads((DATA / "offload_ovsdb.json").read_text())
    found = inventory_of("hv7", tables)
    reasons = {"ens1f0npf0vf0": "in_hw", "ens1f0npf0vf1": "representor", "vhu77ab01c2-90": "no device", "x": "y"}
    check = look(monkeypatch, type(found)(found.host, is_offload_on=True, offloaded=reasons))
    assert (check.is_ok, check.is_required) == (False, False)
    assert "4 devices cannot be looked at (ens1f0npf0vf0: in_hw; " in check.detail
    assert "; and 1 more)" in check.detail
    assert "switches no offload off" in check.advice


def test_a_host_without_offload_is_fine(monkeypatch):
    """And it is said how many ports there are."""
    found = inventory_of("hv1", json.loads((DATA / "ovn_two_hosts.json").read_text())["hv1"])
    check = look(monkeypatch, found)
    assert (check.is_ok, check.detail) == (True, "5 ports with an iface-id, hw-offload is off")


def test_an_ovsdb_that_does_not_answer_is_said():
    """With what to do."""
    assert doctor.inventory is inventory
    check = doctor._ports_check(HOST)
    assert not check.is_ok
    assert "OVSDB of hv7 at unix:/nowhere/db.sock: No such file" in check.detail
