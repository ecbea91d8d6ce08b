"""Where a probe was lost decides which switch is asked, and which is blamed."""

from dataclasses import replace

import pytest
from support.clouds import pair, topology

from netprobe.judge.reason import Evidence, Reason, ReasonCode
from netprobe.judge.where import Span, span_between, switches_on_the_way, to_blame
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.plan.paths import build_path


def way(first, last, cloud, vantage=Vantage.GUEST):
    """The hosts whose switches a probe passes, and how many of them before each stop, by the stop's id."""
    ends = {g.name: g for g in cloud.attachments}
    stops = build_path(cloud, ends[first], ends[last], vantage, Protocol.UDP).forward
    hosts, passed = switches_on_the_way(stops, ends[first], ends[last], cloud.hosts)
    return hosts, [(stop.point.id, count) for stop, count in zip(stops, passed, strict=True)]


def test_across_hosts_the_switch_of_each_stands_between_its_port_and_its_nic():
    hosts, passed = way("vm1", "vm2", pair())
    assert hosts == ("hv1", "hv2")
    assert passed == [
        ("vm1.guest", 0),
        ("vm1.backend", 0),
        ("hv1.nic", 1),
        ("fabric.hv1", 1),
        ("fabric.hv2", 1),
        ("hv2.nic", 1),
        ("vm2.backend", 2),
        ("vm2.guest", 2),
    ]


def test_on_one_host_there_is_one_switch_from_every_vantage():
    for vantage in (Vantage.GUEST, Vantage.VSWITCH):
        hosts, passed = way("vm1", "vm2", topology(), vantage)
        assert hosts == ("hv1",)
        assert [count for _, count in passed][-3:] == [0, 1, 1]


def test_from_the_vswitch_the_first_switch_lies_behind_the_first_stop():
    hosts, passed = way("vm1", "vm2", pair(), Vantage.VSWITCH)
    assert hosts == ("hv1", "hv2")
    assert passed[:2] == [("hv1.vswitch", 0), ("hv1.nic", 1)]


def test_a_gateway_in_between_is_a_switch_of_its_own():
    """vm2 on hv2 reaches ext2, on hv2 too, by the router's port, which hv1 serves."""
    hosts, passed = way("vm2", "ext2", pair())
    assert hosts == ("hv2", "hv1", "hv2")
    assert [count for _, count in passed] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_where_only_the_fabrics_ports_can_be_looked_at_they_count_for_their_host():
    cloud = pair()
    bare = replace(cloud, hosts=tuple(replace(h, uplink=h.uplink[1:]) for h in cloud.hosts))
    hosts, passed = way("vm1", "vm2", bare)
    assert hosts == ("hv1", "hv2")
    assert [count for _, count in passed] == [0, 0, 1, 1, 2, 2]


def test_where_nobody_can_look_between_hosts_both_switches_lie_in_one_span():
    cloud = pair()
    blind = replace(cloud, hosts=tuple(replace(h, uplink=()) for h in cloud.hosts))
    hosts, passed = way("vm1", "vm2", blind)
    assert hosts == ("hv1", "hv2")
    assert passed == [("vm1.guest", 0), ("vm1.backend", 0), ("vm2.backend", 2), ("vm2.guest", 2)]
    assert span_between(1, 2, [count for _, count in passed]) == Span(0, 2, reaches_the_target=True)


@pytest.mark.parametrize(
    ("first", "second", "span"),
    [
        (0, 1, None),  # guest to backend
        (1, 2, Span(0, 1, reaches_the_target=False)),
        (2, 3, None),  # NIC to fabric
        (3, 4, None),
        (4, 5, None),
        (5, 6, Span(1, 2, reaches_the_target=True)),
        (6, 7, None),  # backend to guest
        (1, 6, Span(0, 2, reaches_the_target=True)),
        (3, 6, Span(1, 2, reaches_the_target=True)),
        (1, 5, Span(0, 1, reaches_the_target=False)),
    ],
)
def test_each_segment_has_the_switches_that_stand_in_it(first, second, span):
    _, passed = way("vm1", "vm2", pair())
    assert span_between(first, second, [count for _, count in passed]) == span


DROP = Reason(ReasonCode.ACL, Evidence.PREDICTED, "dropped", table=46, rule="ACL x")
PASS = Reason(ReasonCode.LINK_LOSS, Evidence.PREDICTED, "passed")
METER = Reason(ReasonCode.RATE_LIMIT, Evidence.PREDICTED, "metered", table=18)
DEAD = Reason(ReasonCode.VSWITCH_DOWN, Evidence.OBSERVED, "gone")
NEAR, FAR, WIDE = Span(0, 1, False), Span(1, 2, True), Span(0, 2, True)


def blame(span, *reasons):
    found = to_blame([(f"hv{i + 1}", reason) for i, reason in enumerate(reasons)], span)
    return found if isinstance(found, int) else found.code


@pytest.mark.parametrize(
    ("span", "reasons", "blamed"),
    [
        (NEAR, (DROP,), 0),
        (NEAR, (PASS, DROP), 0),  # it was lost before the far switch, whatever that would do
        (FAR, (PASS, DROP), 1),
        (FAR, (METER, DROP), 1),  # a meter passes some
        (FAR, (PASS, PASS), 1),
        (FAR, (PASS, DEAD), 1),
        (FAR, (PASS, PASS, DROP), 2),  # by a gateway that nobody knew of
        (WIDE, (PASS, DROP), 1),
        (WIDE, (DROP,), 0),
        (WIDE, (METER, DROP), 1),
        (WIDE, (METER, PASS), 0),
        (WIDE, (DEAD,), 0),
        (WIDE, (PASS, PASS), ReasonCode.UNKNOWN),
        (FAR, (DROP,), ReasonCode.UNKNOWN),  # it was seen behind the switch that should have dropped it
        (FAR, (DEAD,), ReasonCode.UNKNOWN),
        (FAR, (PASS,), ReasonCode.UNKNOWN),
        (NEAR, (), ReasonCode.UNKNOWN),
    ],
)
def test_the_first_switch_of_the_span_that_would_drop_it_is_to_blame(span, reasons, blamed):
    assert blame(span, *reasons) == blamed


def test_a_contradiction_is_told_with_the_rule_and_the_host():
    reason = to_blame([("hv1", DROP)], FAR)
    assert "hv1" in reason.detail
    assert "ACL x" in reason.detail
    assert reason.chassis is None
