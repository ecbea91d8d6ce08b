"""Chains and segments for every place that a relay can stand in."""

from itertools import pairwise

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config
from netprobe.lab import layout as layouts
from netprobe.lab.layout import Layout, Placement, Splice
from netprobe.lab.shapes import SHAPES
from netprobe.lab.topology import endpoints

SHAPE = SHAPES["single"]
ENDS = endpoints(config.load("single"))


def layout(ends, splices=()) -> Layout:
    return layouts.layout(SHAPE, ends, splices)


def locate(segment: str, ends, *, expose: bool = False) -> Splice:
    return layouts.locate(segment, SHAPE, ends, expose=expose)


def chain(splice: Splice, name: str = "vm1") -> list[tuple[str, str]]:
    return [(point.id.partition(".")[2], point.device) for point in layout(ENDS, [splice]).chains[name]]


def faulty(*splices: Splice) -> list[str]:
    return [segment.id for segment in layout(ENDS, splices).segments if segment.fault_at]


def ids(*splices: Splice) -> set[str]:
    return {segment.id for segment in layout(ENDS, splices).segments}


def test_without_relays_every_neighbouring_pair_is_a_segment_both_ways():
    here = layout(ENDS)
    assert len(here.points) == 2 * 4 + 1
    assert len(here.segments) == 2 * 4 + 4 * 3 + 4
    assert {segment.kind for segment in here.segments} == {
        "guest-backend",
        "backend-guest",
        "backend-backend",
        "vswitch-backend",
    }
    assert len(ids()) == len(here.segments)


def test_the_bypass_nic_has_a_namespace_a_port_and_the_groups_of_its_guest():
    bypass = ENDS[-1]
    assert (bypass.name, bypass.netns, bypass.device, bypass.tap, bypass.copy_of) == (
        "bypass",
        "byp1",
        "byp0",
        "tapbyp",
        "vm1",
    )
    assert bypass.groups == ENDS[0].groups
    assert [end.ofport for end in ENDS] == [1, 2, 3, 4]


CASES = [
    ("vm1.guest..vm1.backend", False, [("guest", "eth0"), ("backend", "rr-vm1")], "vm1.guest..vm1.backend"),
    (
        "vm1.guest..vm1.backend",
        True,
        [("guest", "eth0"), ("relay", "tapvm1"), ("backend", "rr-vm1")],
        "vm1.relay..vm1.backend",
    ),
    ("vm1.backend..vm2.backend", False, [("guest", "eth0"), ("backend", "tapvm1")], "vm1.backend..vm2.backend"),
    (
        "vm1.backend..vm2.backend",
        True,
        [("guest", "eth0"), ("backend", "tapvm1"), ("relay", "rr-vm1")],
        "vm1.backend..vm1.relay",
    ),
    ("vm1.backend..vm1.guest", False, [("guest", "eth0"), ("backend", "rr-vm1")], "vm1.backend..vm1.guest"),
    (
        "vm1.backend..vm1.guest",
        True,
        [("guest", "eth0"), ("relay", "tapvm1"), ("backend", "rr-vm1")],
        "vm1.backend..vm1.relay",
    ),
]


@pytest.mark.parametrize(("segment", "expose", "expected_chain", "carried_by"), CASES)
def test_a_relay_is_on_the_right_side_of_the_backend_point(segment, expose, expected_chain, carried_by):
    splice = locate(segment, ENDS, expose=expose)
    assert chain(splice) == expected_chain
    assert faulty(splice) == [carried_by]


@pytest.mark.parametrize(("segment", "expose", "expected_chain", "carried_by"), CASES)
def test_the_path_keeps_its_points_or_gets_one_more_and_stays_connected(segment, expose, expected_chain, carried_by):
    here = layout(ENDS, [locate(segment, ENDS, expose=expose)])
    path = [*here.chains["vm1"], *reversed(here.chains["vm2"])]
    assert len(path) == 4 + expose
    known = {s.id for s in here.segments}
    for way in (path, path[::-1]):
        assert all(f"{a.id}..{b.id}" in known for a, b in pairwise(way))
    assert len({(point.netns, point.device) for point in here.points}) == len(here.points)


def test_a_relay_behind_the_backend_is_what_the_vswitch_sees_when_exposed():
    there = ids(locate("vm1.backend..vm2.backend", ENDS, expose=True))
    assert "hv1.vswitch..vm1.relay" in there
    assert "vm1.relay..vm2.backend" in there
    assert "vm3.backend..vm1.relay" in there
    assert "vm1.backend..vm2.backend" not in there


def test_two_relays_carry_their_faults_where_they_stand_now():
    first = locate("vm1.backend..vm2.backend", ENDS)
    second = locate("vm2.backend..vm3.backend", ENDS, expose=True)
    assert set(faulty(first, second)) == {"vm1.backend..vm2.relay", "vm2.backend..vm2.relay"}


def test_only_frames_to_the_peer_are_hit_between_backends():
    assert locate("vm1.backend..vm2.backend", ENDS) == Splice(
        "vm1.backend..vm2.backend", "vm1", Placement.TO_PEER, "vm2"
    )
    assert locate("vm1.guest..vm1.backend", ENDS).peer == ""


def test_a_segment_that_begins_in_the_vswitch_is_refused_with_one_that_works():
    with pytest.raises(UsageError, match=r"no place for a relay.*Use vm2\.backend\.\.vm2\.guest"):
        locate("hv1.vswitch..vm2.backend", ENDS)


def test_an_unknown_segment_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown segment 'vm1.guest..vm1.backnd'.*'vm1.guest..vm1.backend'"):
        locate("vm1.guest..vm1.backnd", ENDS)
