"""Points, segments and relays of the lab `bridge`, and what Open vSwitch does there."""

from itertools import pairwise

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config, hybrid, layout, shapes, topology
from netprobe.lab.layout import Placement, Splice

SHAPE = shapes.SHAPES["bridge"]
LAB = config.load("bridge")
ENDS = topology.endpoints(LAB)


def at(splice: Splice) -> layout.Layout:
    return layout.layout(SHAPE, ENDS, [splice])


def test_a_guest_has_three_points_and_its_port_on_the_vswitch_is_behind_them():
    chain = layout.layout(SHAPE, ENDS).chains["vm1"]
    assert [(p.id, p.kind.value, p.netns, p.device) for p in chain] == [
        ("vm1.guest", "guest", "vm1", "eth0"),
        ("vm1.backend", "backend", "hv1", "tapvm1"),
        ("vm1.bridge", "bridge", "hv1", "qvbvm1"),
    ]
    assert ENDS[0].plug(SHAPE) == "qvovm1"


CASES = [
    ("vm1.guest..vm1.backend", False, Placement.FROM, "vm1", "vm1.guest..vm1.backend"),
    ("vm1.guest..vm1.backend", True, Placement.FROM, "vm1", "vm1.relay..vm1.backend"),
    ("vm1.backend..vm1.guest", False, Placement.TO, "vm1", "vm1.backend..vm1.guest"),
    ("vm1.backend..vm1.guest", True, Placement.TO, "vm1", "vm1.backend..vm1.relay"),
    ("vm1.backend..vm1.bridge", False, Placement.INWARD, "vm1", "vm1.backend..vm1.bridge"),
    ("vm1.backend..vm1.bridge", True, Placement.INWARD, "vm1", "vm1.backend..vm1.relay"),
    ("vm1.bridge..vm1.backend", False, Placement.OUTWARD, "vm1", "vm1.bridge..vm1.backend"),
    ("vm1.bridge..vm1.backend", True, Placement.OUTWARD, "vm1", "vm1.relay..vm1.backend"),
    ("vm1.bridge..vm2.bridge", False, Placement.TO_PEER, "vm1.bridge", "vm1.bridge..vm2.bridge"),
    ("vm1.bridge..vm2.bridge", True, Placement.TO_PEER, "vm1.bridge", "vm1.bridge..vm1.bridge-relay"),
]


@pytest.mark.parametrize(("segment", "expose", "placement", "port", "carried_by"), CASES)
def test_a_relay_stands_in_the_right_port_and_carries_the_fault_there(segment, expose, placement, port, carried_by):
    splice = layout.locate(segment, SHAPE, ENDS, expose=expose)
    assert (splice.placement, splice.port) == (placement, port)
    assert [each.id for each in at(splice).segments if each.fault_at] == [carried_by]


@pytest.mark.parametrize(("segment", "expose"), [case[:2] for case in CASES])
def test_the_path_stays_connected_and_no_device_is_two_points(segment, expose):
    here = at(layout.locate(segment, SHAPE, ENDS, expose=expose))
    path = [*here.chains["vm1"], *reversed(here.chains["vm2"])]
    assert len(path) == 6 + expose
    known = {each.id for each in here.segments}
    for way in (path, path[::-1]):
        assert all(f"{a.id}..{b.id}" in known for a, b in pairwise(way))
    assert len({(point.netns, point.device) for point in here.points}) == len(here.points)


def test_names_of_devices_are_short_enough():
    text = '[[guest]]\nname = "abcdefghijk"\n'
    lab = config.parse(text, where="x.toml", lab="bridge")
    ends = topology.endpoints(lab)
    devices = [p.device for p in layout.layout(SHAPE, ends).points]
    for port in layout.ports(SHAPE, ends).values():
        devices += [port.device, port.middle, port.outer]
        devices += [port.bridge]
    assert max(map(len, devices)) <= 15
    assert len({port.middle for port in layout.ports(SHAPE, ends).values()}) == 4


def test_a_segment_that_begins_in_the_vswitch_is_refused_with_one_that_works():
    with pytest.raises(UsageError, match=r"no place for a relay.*Use vm2\.bridge\.\.vm2\.backend"):
        layout.locate("hv1.vswitch..vm2.bridge", SHAPE, ENDS)


def test_open_vswitch_guards_arp_neighbours_and_macs():
    found = hybrid.compile_forwarding(LAB, ENDS)
    vm1 = [flow.partition(",")[2] for flow in found.flows if "in_port=1" in flow]
    assert "table=0,priority=10,arp,in_port=1,actions=resubmit(,24)" in vm1
    mine = "in_port=1,dl_src=fa:16:3e:00:00:01"
    assert f"table=24,priority=2,arp,{mine},arp_sha=fa:16:3e:00:00:01,arp_spa=10.0.0.1,actions=resubmit(,25)" in vm1
    assert f"table=25,priority=2,{mine},actions=resubmit(,60)" in vm1
    assert "table=24,priority=1,in_port=1,actions=drop" in vm1
    assert "table=25,priority=1,in_port=1,actions=drop" in vm1
    assert {int(flow.split(",")[0].removeprefix("cookie="), 16) for flow in found.flows} == set(found.rules)
