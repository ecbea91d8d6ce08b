"""Points with different clocks: conversion, segments across hosts, and that only delays between hosts are touched."""

import re
from dataclasses import replace

import numpy as np
import pytest

from netprobe.collect.across import figures_across, quantile
from netprobe.collect.answers import Answers
from netprobe.collect.clock_rows import UNBOUNDED_NS
from netprobe.collect.domains import Carried, ClockMap, clock_map
from netprobe.collect.ledger import Fate
from netprobe.collect.results import leg_result
from netprobe.collect.session import BlindWindow, SessionInput, settle_session
from netprobe.model.observations import Exchanges
from netprobe.model.points import Direction, Leg, Path, Point, PointKind, Stamp, Stop
from netprobe.model.records import NO_TIME, HopBatch, HopRecord
from netprobe.model.results import DelayBounds, SegmentResult

US, MS, S = 10**3, 10**6, 10**9
START = 1_800_000_000 * S
TMAX = S


class Known:
    """Offsets of a clock that is `offset_ns` ahead of the reference and gains `ppm`, known to within `error_ns`."""

    def __init__(self, offset_ns, error_ns=20 * US, ppm=0.0, unknown=()):
        self.offset_ns, self.error_ns, self.ppm, self.unknown = offset_ns, error_ns, ppm, unknown

    def shown(self, ours):
        ours = np.asarray(ours, np.int64)
        return ours + self.offset_ns + np.round((ours - START) * (self.ppm * 1e-6)).astype(np.int64)

    def truth(self, theirs):
        since = theirs - START - self.offset_ns
        return self.offset_ns + np.round(since * (self.ppm * 1e-6 / (1 + self.ppm * 1e-6))).astype(np.int64)

    def bounds(self, t_ns):
        low, high = self.truth(t_ns) - self.error_ns, self.truth(t_ns) + self.error_ns
        for first, last in self.unknown:
            inside = (t_ns >= first) & (t_ns <= last)
            low[inside], high[inside] = -UNBOUNDED_NS, UNBOUNDED_NS
        return low, high

    def pairs(self):
        ours = START + np.arange(0, 60) * S
        return ours, self.shown(ours)


def column(*values):
    return np.array(values, np.int64)


def test_a_time_is_carried_over_with_its_error():
    """Both ways between two clocks that are compared with a third: the errors add up, NO_TIME stays."""
    clocks = ClockMap("hv1", {"hv2": Known(300 * MS, 20 * US, 50), "hv3": Known(-5 * S, 30 * US, -100)})
    ours = START + np.linspace(0, 59 * S, 500).astype(np.int64)
    theirs, others = clocks.offsets["hv2"].shown(ours), clocks.offsets["hv3"].shown(ours)
    for source, target, given, wanted, error in (
        ("hv2", "hv1", theirs, ours, 20 * US),
        ("hv1", "hv2", ours, theirs, 20 * US),
        ("hv2", "hv3", theirs, others, 50 * US),
        ("hv3", "hv2", others, theirs, 50 * US),
    ):
        got = clocks.convert(given, source, target)
        assert (np.abs(got.t_ns - wanted) <= got.error_ns).all()
        assert np.abs(got.t_ns - wanted).max() <= 100
        assert got.error_ns.max() <= error + 200
        assert got.is_known.all()
    assert clocks.convert(column(NO_TIME), "hv2", "hv1").t_ns.tolist() == [NO_TIME]
    assert not clocks.convert(column(NO_TIME), "hv2", "hv1").is_known.any()


def test_times_of_one_clock_are_untouched_and_unknown_clocks_are_said_to_be():
    """A domain that nobody compared: exact within itself, unbounded toward others."""
    clocks = ClockMap("hv1", {})
    assert clocks.convert(column(5, 9), "hv9", "hv9").error_ns.tolist() == [0, 0]
    assert clocks.delay(column(5), "hv9", column(9), "hv9").t_ns.tolist() == [4]
    assert not clocks.delay(column(5), "hv9", column(9), "hv1").is_known.any()
    assert not clocks.convert(column(5), "hv1", "hv9").is_known.any()
    assert len(clocks.convert(column(), "hv9", "hv1").t_ns) == 0


def test_conversion_keeps_the_order_of_one_points_records():
    """Intervals whose middle jumps from second to second do not make time run backward."""

    class Jumpy(Known):
        def bounds(self, t_ns):
            low, high = super().bounds(t_ns)
            return low + (t_ns // S % 2) * 15 * US, high

    clocks = ClockMap("hv1", {"hv2": Jumpy(0)})
    t_ns = START + 5 * S + np.arange(-1_000, 1_000) * US
    got = clocks.convert(t_ns, "hv2", "hv1")
    assert (np.diff(got.t_ns) > 0).all()
    assert (np.abs(got.t_ns - t_ns) <= got.error_ns).all()


def test_a_point_belongs_to_its_host_unless_it_is_said_to_have_a_clock_of_its_own():
    """Names of points go before names of hosts."""
    clocks = ClockMap("hv1", {}, {"hv2": "hv1", "vm3.guest": "vm3"})
    assert clocks.domain(Point("vm2.backend", PointKind.BACKEND, "hv2")) == "hv1"
    assert clocks.domain(Point("vm3.guest", PointKind.GUEST, "hv2")) == "vm3"
    assert clocks.domain(Point("hv4.nic", PointKind.NIC, "hv4")) == "hv4"


@pytest.mark.parametrize("both", [False, True])
def test_a_map_is_made_of_what_hosts_report_of_each_other(both):
    """The reference asks, is asked, or both; exchanges among others, and with itself, are left out."""
    theirs = Known(700 * MS, ppm=80)
    rng = np.random.default_rng(1)
    reports = []
    for second in range(20):
        sent = START + second * S + np.sort(rng.integers(0, S, 10))
        way = rng.integers(20 * US, 90 * US, (2, 10))
        came, back = sent + way[0], sent + way.sum(axis=0)
        shown = [theirs.shown(t) for t in (sent, came, back)]
        if both:
            reports.append(("hv1", Exchanges("hv2", sent, shown[1], shown[1], back)))
        reports.append(("hv2", Exchanges("hv1", shown[0], came, came, shown[2])))
        reports.append(("hv3", Exchanges("hv2", sent, sent, sent, sent)))
        reports.append(("hv1", Exchanges("hv1", sent, sent, sent, sent)))
    if both:  # each side's reports come in order, but not together
        reports.sort(key=lambda report: report[0])
    clocks = clock_map("hv1", reports)
    assert list(clocks.offsets) == ["hv2"]
    assert clocks.offsets["hv2"].refused["late"] == 0
    ours = START + np.linspace(0, 20 * S - 1, 100).astype(np.int64)
    got = clocks.convert(theirs.shown(ours), "hv2", "hv1")
    assert (np.abs(got.t_ns - ours) <= got.error_ns).all()
    assert np.median(got.error_ns) < 60 * US


def stop(name, host, kind=PointKind.BACKEND, direction=Direction.IN, stamp=Stamp.KERNEL_RX):
    return Stop(Point(name, kind, host), direction, stamp)


def cross_host_path():
    """vm1.guest -> vm1.backend -> hv1.nic -> hv2.nic -> vm2.backend -> vm2.guest, and back."""
    there = (
        stop("vm1.guest", "hv1", PointKind.GUEST, Direction.OUT, Stamp.SENDER),
        stop("vm1.backend", "hv1"),
        stop("hv1.nic", "hv1", PointKind.NIC, Direction.OUT),
        stop("hv2.nic", "hv2", PointKind.NIC),
        stop("vm2.backend", "hv2", direction=Direction.OUT),
        stop("vm2.guest", "hv2", PointKind.GUEST, stamp=Stamp.PACKET),
    )
    back = (
        stop("vm2.guest", "hv2", PointKind.GUEST, Direction.OUT, Stamp.PACKET),
        stop("vm2.backend", "hv2"),
        stop("hv2.nic", "hv2", PointKind.NIC, Direction.OUT),
        stop("hv1.nic", "hv1", PointKind.NIC),
        stop("vm1.backend", "hv1", direction=Direction.OUT),
    )
    return Path(there, back)


COUNT = 400
INDEX = {s.point.id: i for i, s in enumerate(cross_host_path().forward)}


def world(other, seed=1, wire=40 * US):
    """One session across two hosts, as hv1's clock and `other` stamp it: probes get lost, late, repeated, overtaken."""
    rng = np.random.default_rng(seed)
    path, rows, seqs, sightings = cross_host_path(), [], [], []
    sent = START + 10 * S + np.arange(COUNT) * 10 * MS

    def stamp(point, t):
        return int(other.shown(t)) if point.host == "hv2" else t

    for seq in range(COUNT):
        t, is_gone = int(sent[seq]), False
        for leg, stops in ((Leg.FORWARD, path.forward), (Leg.RETURN, path.returned)):
            for i, place in enumerate(stops):
                if i:
                    t += int(wire + rng.integers(0, 20 * US) + (rng.random() < 0.05) * 12 * MS)
                    is_gone |= bool(rng.random() < 0.02)
                    t += 2 * S * bool(rng.random() < 0.003)
                if is_gone:
                    break
                if place.stamp is Stamp.KERNEL_RX:
                    at = stamp(place.point, t)
                    rows += [(at, seq, place, leg)] * (2 if rng.random() < 0.01 else 1)
                    if leg is Leg.RETURN:
                        sightings.append((seq, INDEX[place.point.id], at))
                elif leg is Leg.RETURN:
                    seqs.append((seq, stamp(place.point, t)))
    rows.sort(key=lambda row: row[0])
    hops = [HopRecord(t, 1, seq, INDEX[p.point.id], int(p.direction), int(leg)) for t, seq, p, leg in rows]
    turned = dict(seqs)
    told = np.array([(s, turned[s], turned[s], n, at, p) for n, (s, p, at) in enumerate(sightings)], np.int64)
    answers = Answers(
        told[:, 0].astype(np.uint32),
        told[:, 1],
        told[:, 2],
        np.full(len(told), -1),
        told[:, 4],
        told[:, 5].astype(np.uint16),
    )
    return SessionInput(
        session=1,
        path=path,
        point_index=INDEX,
        sent_ns=sent,
        sender_ns=sent,
        tmax_ns=TMAX,
        now_ns=START + 30 * S,
        hops=HopBatch.of(hops),
        answers=answers,
    )


def facts(outcome):
    """Everything but delays."""
    for leg in (outcome.forward, outcome.returned):
        yield leg.ledger.fate.tolist(), leg.ledger.last_stop.tolist(), leg.ledger.late
        for s in leg.segments:
            yield s.id, s.sent, s.received, s.lost, s.undecided, s.reordered, s.duplicated, s.loss_interval_95


@pytest.mark.parametrize(
    "other",
    [Known(0), Known(300 * MS), Known(-S, ppm=50), Known(5000 * S, ppm=-200), Known(300 * MS, unknown=[(0, 2**62)])],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_clock_changes_no_fate_and_no_order(other, seed):
    """Loss, lateness, duplicates and RFC 4737 order are those of one clock; nothing is late by a wrong clock alone."""
    one = settle_session(world(Known(0), seed))
    two = settle_session(replace(world(other, seed), clocks=ClockMap("hv1", {"hv2": other})))
    assert one.clock_doubts == two.clock_doubts == 0
    assert one.forward.ledger.late > 0
    assert one.forward.ledger.count(Fate.LOST) > 0
    if not other.unknown:
        assert list(facts(one)) == list(facts(two))


def test_where_clocks_are_unknown_losses_stay_and_delays_within_a_host_too():
    """Nothing is called late on hv2, since nobody knows; all else is as it was."""
    other = Known(300 * MS)
    one = settle_session(world(Known(0)))
    two = settle_session(replace(world(other), clocks=ClockMap("hv1", {})))
    by_id = {s.id: s for s in two.forward.segments}
    for s in one.forward.segments:
        assert by_id[s.id].received >= s.received
    across, within = by_id["hv1.nic..hv2.nic"], by_id["hv2.nic..vm2.backend"]
    assert (across.delay, across.pdv, across.delay_bounds, across.clock_error_ns) == (None, None, None, None)
    assert across.clock_problem == "how far the clocks of hv1 and hv2 are apart is not known: no delay is stated"
    assert within.delay is not None
    assert within.clock_problem == ""
    assert two.forward.ledger.count(Fate.LOST) > 0


def test_a_delay_between_hosts_carries_its_bound_and_others_none():
    """40 to 60 us on the wire (a few at 12 ms), clocks known to 20 us: the bounds hold the figures and the truth."""
    one = settle_session(world(Known(0)))
    two = settle_session(replace(world(Known(300 * MS)), clocks=ClockMap("hv1", {"hv2": Known(300 * MS)})))
    for true, got in zip(one.forward.segments, two.forward.segments, strict=True):
        if got.id != "hv1.nic..hv2.nic":
            assert got == true
            continue
        assert got.clock_error_ns == pytest.approx(20 * US, abs=200)
        assert got.clock_problem == ""
        assert got.delay.min == pytest.approx(true.delay.min, abs=200)
        for name in ("min", "p50", "p90", "max"):
            low, high = getattr(got.delay_bounds, name)
            assert low <= getattr(got.delay, name) <= high
            assert low <= getattr(true.delay, name) * 1.004
            assert high >= getattr(true.delay, name) * 0.996
    ends = two.forward.end_to_end
    assert ends.clock_error_ns == two.forward.segments[2].clock_error_ns


def test_a_delay_that_may_be_negative_is_shown_by_its_upper_bound_only():
    """1 to 21 us on the wire, clocks known to 20 us but off by 15: some middles are below zero, none is shown."""
    clocks = ClockMap("hv1", {"hv2": Known(15 * US)})
    got = settle_session(replace(world(Known(0), wire=US), clocks=clocks)).forward.segments[2]
    assert got.delay is None
    assert (got.negative, got.clock_problem) == (0, "")
    low, high = got.delay_bounds.min
    assert low is None
    assert 0 < high < 30 * US
    assert got.pdv is not None


def test_what_the_clocks_make_negative_beyond_their_error_is_a_clock_problem():
    """The clock is 1 ms behind what its exchanges say: no number, not even a clamped one, and the reason is given."""
    clocks = ClockMap("hv1", {"hv2": Known(MS)})
    got = settle_session(replace(world(Known(0)), clocks=clocks)).forward.segments[2]
    assert (got.delay, got.pdv, got.delay_bounds) == (None, None, None)
    assert got.negative > 100
    assert got.clock_problem.startswith(f"the clocks of hv1 and hv2 contradict {got.negative} of ")
    assert "-" not in got.clock_problem


def test_delays_about_a_step_are_left_out_and_counted():
    """For one second the offset of hv2 is unknown: the rest is stated."""
    other = Known(300 * MS)
    other.unknown = [(START + 12 * S + 300 * MS, START + 13 * S + 300 * MS)]
    got = settle_session(replace(world(other), clocks=ClockMap("hv1", {"hv2": other}))).forward.segments[2]
    assert got.delay is not None
    left_out, count = map(int, re.findall(r"\d+", got.clock_problem.partition("not known for")[2]))
    assert got.clock_problem.startswith("how far the clocks of hv1 and hv2 were apart is not known for ")
    assert 90 <= left_out <= 100
    assert count == left_out + got.delay.samples


def test_a_blind_window_counts_by_its_own_points_clock():
    """vm2.backend lost sight for 2 s by hv2's clock, 300 ms ahead: the same probes are undecided as with one clock."""
    for offset in (0, 300 * MS, -20 * S):
        other = Known(offset)
        window = BlindWindow(INDEX["vm2.backend"], START + 11 * S + offset, START + 13 * S + offset)
        given = world(other)
        hops = given.hops.where((given.hops.point != INDEX["vm2.backend"]) | (given.hops.t_ns > window.end_ns))
        given = replace(given, hops=hops, windows=[window], clocks=ClockMap("hv1", {"hv2": other}))
        fates = settle_session(given).forward.ledger.fate.tolist()
        if offset == 0:
            expected = fates
        assert fates == expected


def test_a_guests_clock_is_believed_where_it_fits_its_own_hosts():
    """T2 and T3 of vm2 are compared with hv2's stamps by hv2's clock; of another clock they are not used."""
    other = Known(300 * MS)
    given = replace(world(other), clocks=ClockMap("hv1", {"hv2": other}))
    wrong = replace(given.answers, t2_ns=given.answers.t2_ns - 300 * MS, t3_ns=given.answers.t3_ns - 300 * MS)
    good, bad = settle_session(given), settle_session(replace(given, answers=wrong))
    assert good.clock_doubts == 0
    assert good.forward.segments[-1].delay is not None
    assert bad.clock_doubts > 300
    assert bad.forward.segments[-1].delay is None
    assert bad.forward.ledger.count(Fate.DELIVERED) == good.forward.ledger.count(Fate.DELIVERED)


def test_exact_quantiles_count_lost_probes_as_infinite():
    """Nearest rank; by hand."""
    ordered = np.arange(1, 11)
    assert [quantile(ordered, q, 0) for q in (0.1, 0.5, 0.9, 1.0)] == [1, 5, 9, 10]
    assert quantile(ordered, 0.5, 10) == 10
    assert quantile(ordered, 0.5, 11) is None


def test_bounds_of_a_quantile_hold_the_true_one():
    """Seeded: errors differ from probe to probe; true quantiles lie within their bounds, infinite ones are None."""
    rng = np.random.default_rng(3)
    true = np.sort(rng.integers(1, 200 * US, 1_000))
    error = rng.integers(1, 50 * US, 1_000)
    shown = true + np.round(error * rng.uniform(-1, 1, 1_000)).astype(np.int64)
    got = figures_across(Carried(shown, error), 30, ("a", "b"))
    for name, q in (("p50", 0.5), ("p90", 0.9)):
        low, high = getattr(got.delay_bounds, name)
        assert (low or 0) <= quantile(true, q, 30) <= high
    assert got.delay_bounds.p99 == (None, None)
    assert got.clock_error_ns == error.max()


def test_results_with_bounds_survive_json():
    """And results of before there were several clocks can still be read."""
    two = settle_session(replace(world(Known(300 * MS)), clocks=ClockMap("hv1", {"hv2": Known(300 * MS)})))
    for segment in leg_result(two.forward).segments:
        assert SegmentResult.from_json(segment.to_json()) == segment
    old = two.forward.segments[0].to_json()
    for name in ("clock_error_ns", "clock_problem", "delay_bounds_ns"):
        assert old.pop(name) is None
    assert SegmentResult.from_json(old) == two.forward.segments[0]
    bounds = DelayBounds((None, 5), (1, 2), (3, None), (None, None), (4, 9))
    assert DelayBounds.from_json(bounds.to_json()) == bounds
