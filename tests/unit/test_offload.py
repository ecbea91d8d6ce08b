"""Which ports' packets bypass the kernel's taps, from a host's OVSDB, ip, tc and dpctl as they print it.

The files in data/offload_* follow the documented formats of a host with an SR-IOV NIC in switchdev mode (two VFs with
representors), an ordinary tap and a vhost-user port. No such NIC was at hand to record them from.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.host import offload
from netprobe.host.offload import (
    Link,
    OffloadFacts,
    count_in_hardware,
    find_offloaded,
    look_for_offload,
    offloaded_ports,
    parse_links,
)
from netprobe.host.ovsdb import inventory_of

DATA = Path(__file__).parent / "data"
TC_IN_HW = (DATA / "offload_tc_in_hw.txt").read_text()
TC_SOFTWARE = (DATA / "offload_tc_software.txt").read_text()
FLOWS = (DATA / "offload_dump_flows.txt").read_text()
LINKS = (DATA / "offload_links.json").read_text()
HOST = inventory_of("rack3-compute7", json.loads((DATA / "offload_ovsdb.json").read_text()))
VF0, VF1, TAP, VHOST, NIC = "ens1f0npf0vf0", "ens1f0npf0vf1", "tap3f0c6e1a-11", "vhu77ab01c2-90", "ens1f0np0"


def found(uplinks=(NIC,), **facts):
    return find_offloaded(HOST.interfaces, uplinks, OffloadFacts(**facts))


def test_the_switch_says_whether_offload_is_on():
    """other_config:hw-offload, off by default."""
    tables = json.loads((DATA / "offload_ovsdb.json").read_text())
    assert HOST.is_offload_on
    (switch,) = tables["Open_vSwitch"].values()
    del switch["other_config"]["hw-offload"]
    assert not inventory_of("h", tables).is_offload_on


def test_filters_in_hardware_are_counted_and_those_in_software_are_not():
    """`in_hw in_hw_count 1` against `not_in_hw`."""
    assert (count_in_hardware(TC_IN_HW), count_in_hardware(TC_SOFTWARE)) == (1, 0)


def test_ports_of_offloaded_flows_are_counted():
    """Neither partial offload, which passes the software, nor tc's own datapath."""
    assert offloaded_ports(FLOWS) == {VF0: 1, "genev_sys_6081": 1}


def test_representors_are_known_by_the_kernels_names_for_them():
    """phys_port_name and phys_switch_id."""
    links = parse_links(LINKS)
    assert links[VF1] == Link("pf0vf1", "1000005e00a1420c")
    assert links[TAP] == Link()


def test_each_offloaded_port_has_its_evidence_and_others_are_left_alone():
    """An ordinary tap on the same host is seen as ever."""
    reasons = found(links=parse_links(LINKS), filters={VF0: TC_IN_HW, TAP: TC_SOFTWARE}, flows=FLOWS)
    assert set(reasons) == {VF0, VF1, VHOST, NIC}
    assert "carries out 1 of its tc filters (in_hw)" in reasons[VF0]
    assert "representor of pf0vf1" in reasons[VF1]
    assert "dpdkvhostuserclient has no kernel device" in reasons[VHOST]
    assert "uplink of the NIC's own switch" in reasons[NIC]


def test_flows_alone_are_evidence_enough():
    """Where ip and tc did not answer."""
    assert "1 of its flows are offloaded" in found(flows=FLOWS)[VF0]


def test_a_ports_name_alone_makes_no_representor():
    """Only a device of a NIC that has a switch of its own is one."""
    assert set(found(links={VF1: Link("pf0vf1", ""), VF0: Link("p0", "1000005e00a1420c")})) == {VHOST}


def test_with_offload_off_only_ports_without_a_device_are_unseen(monkeypatch):
    """Representors then carry every packet. No tool is asked."""
    assert set(find_offloaded(HOST.interfaces, [NIC], None)) == {VHOST}
    monkeypatch.setattr(offload, "read_facts", lambda *_: pytest.fail("asked"))
    off = replace(HOST, is_offload_on=False)
    assert set(look_for_offload(off, "no-such-namespace", "/nowhere", [NIC])) == {VHOST}


def test_tools_that_do_not_answer_prove_nothing():
    """The namespace and the switch are gone: no finding, and no error."""
    assert set(look_for_offload(HOST, "no-such-namespace", "/nowhere", [NIC])) == {VHOST}


@settings(deadline=None, derandomize=True)
@given(st.text(), st.text())
def test_any_text_is_read_without_an_error(one, other):
    """Tools' output is outside input."""
    facts = OffloadFacts(parse_links(one), {VF0: other, NIC: one}, other)
    assert set(find_offloaded(HOST.interfaces, [NIC], facts)) <= {VF0, VF1, TAP, VHOST, NIC, "ovn-c9-0"}


@settings(deadline=None, derandomize=True)
@given(st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(
    ["ifname", "phys_port_name", "phys_switch_id"]), x), max_leaves=10))  # fmt: skip
def test_any_json_of_links_is_read_without_an_error(document):
    """`ip -json` of another version."""
    assert isinstance(parse_links(json.dumps(document)), dict)
