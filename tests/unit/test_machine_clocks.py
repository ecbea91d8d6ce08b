"""Clocks of virtual machines: carried over by way of their hosts; stamps of theirs are believed whole or not at all."""

import numpy as np
import pytest

from netprobe.collect.clock_rows import UNBOUNDED_NS
from netprobe.collect.domains import ClockMap, clock_map
from netprobe.model.observations import Exchanges
from netprobe.model.points import Point, PointKind
from netprobe.service.injecting import Sent

S, MS, US = 1_000_000_000, 1_000_000, 1_000
BEGIN = 1_700_000_000 * S
GUEST = Point("vm2.guest", PointKind.GUEST, "vm2")
BACKEND = Point("vm2.backend", PointKind.BACKEND, "hv2")
NAMES = {"vm2": "hv2", "vm2.guest": "vm2.guest"}


def exchanges(peer, offset_ns, *, rate_ppm=0.0, trip_ns=200 * US, count=50):
    """Exchanges of a host with a clock that is off by so much and gains that much, by true time."""
    true = BEGIN + np.arange(count, dtype=np.int64) * 100 * MS
    theirs = true + trip_ns // 2 + offset_ns + np.round((true - BEGIN) * rate_ppm * 1e-6).astype(np.int64)
    return Exchanges(peer, true, theirs, theirs + 10 * US, true + trip_ns + 10 * US)


def test_a_machine_of_another_host_is_carried_over_in_two_steps_with_both_errors():
    """hv2 is 300 ms ahead of hv1, and vm2 is 2 s behind hv2: by hv1's clock vm2 is 1.7 s behind."""
    ahead = 300 * MS
    own = exchanges("vm2.guest", -2 * S)
    own = Exchanges(own.peer, own.t1_ns + ahead, own.t2_ns + ahead, own.t3_ns + ahead, own.t4_ns + ahead)
    reports = [("hv1", exchanges("hv2", ahead)), ("hv2", own)]
    clocks = clock_map("hv1", reports, names=NAMES, bases={"vm2.guest": "hv2"})
    true = BEGIN + np.array([1, 2, 3], np.int64) * S
    carried = clocks.convert(true - 1_700 * MS, "vm2.guest", "hv1")
    assert (np.abs(carried.t_ns - true) <= carried.error_ns).all()
    assert (carried.error_ns < 500 * US).all()
    back = clocks.convert(true, "hv1", "vm2.guest")
    assert (np.abs(back.t_ns - (true - 1_700 * MS)) <= back.error_ns).all()


def test_between_a_machine_and_its_own_host_only_their_own_interval_counts():
    """How far the host is from the reference does not matter, and need not even be known."""
    clocks = clock_map("hv1", [("hv2", exchanges("vm2.guest", S))], names=NAMES, bases={"vm2.guest": "hv2"})
    start = BEGIN + np.array([1, 2], np.int64) * S
    delay = clocks.delay(start, "hv2", start + S + 5 * MS, "vm2.guest")
    assert delay.is_known.all()
    assert (np.abs(delay.t_ns - 5 * MS) <= delay.error_ns).all()
    assert (clocks.convert(start, "vm2.guest", "hv1").error_ns == UNBOUNDED_NS).all()


def test_who_stamps_and_who_keeps_the_time_are_two_for_a_machine():
    clocks = ClockMap("hv1", {}, NAMES, {"vm2.guest": "hv2"})
    assert (clocks.domain(GUEST), clocks.keeper(GUEST)) == ("vm2.guest", "hv2")
    assert (clocks.domain(BACKEND), clocks.keeper(BACKEND)) == ("hv2", "hv2")


def test_what_is_said_of_a_machine_by_another_host_than_its_own_is_not_used():
    reports = [("hv1", exchanges("vm2.guest", 5 * S)), ("hv2", exchanges("vm2.guest", S))]
    clocks = clock_map("hv2", reports, names=NAMES, bases={"vm2.guest": "hv2"})
    carried = clocks.convert(BEGIN + np.array([S + S], np.int64), "vm2.guest", "hv2")
    assert np.abs(carried.t_ns - (BEGIN + S))[0] <= carried.error_ns[0]


@pytest.mark.parametrize("offset_ns", [0, S, -3_600 * S])
def test_a_machines_stamps_are_kept_whatever_its_clock_shows(offset_ns):
    """Times are the plan's until clocks are known; unsent stays unsent."""
    planned = BEGIN + np.array([0, 10, 20], np.int64) * MS
    stamps = np.array([planned[0] + offset_ns + MS, 0, planned[2] + offset_ns + MS])
    sent = Sent.told_by_machine(stamps, planned, (BEGIN, BEGIN + 100 * MS))
    assert sent.stamps_ns.tolist() == stamps.tolist()
    assert (sent.times_ns > 0).tolist() == [True, False, True]
    assert sent.doubtful == 0


def test_stamps_that_no_clock_could_show_are_not_used():
    """Probes that were sent within 0.1 s are told to be an hour apart."""
    planned = BEGIN + np.array([0, 10], np.int64) * MS
    sent = Sent.told_by_machine(np.array([BEGIN, BEGIN + 3_600 * S]), planned, (BEGIN, BEGIN + 100 * MS))
    assert (sent.stamps_ns == 0).all()
    assert sent.doubtful == 2
    assert (sent.times_ns == planned).all()
