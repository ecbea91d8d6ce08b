"""A test clock distorts what its own host stamped, and nothing else."""

import numpy as np

from netprobe.host.clock import HostClock
from netprobe.model.observations import (
    FOR_EVER_NS,
    Blind,
    Hops,
    PartDone,
    SentReport,
    Sightings,
    Unwatched,
    Watermark,
)
from netprobe.model.records import NO_TIME, HopBatch, HopRecord
from netprobe.service.shown import shown_report

CLOCK = HostClock(offset_ns=1_000, began_ns=0)


def test_times_of_the_host_are_distorted_and_those_of_guests_are_not():
    """Hop records, answers as they were seen, sends, blind windows, watermarks; not T2 and T3, not "no time"."""
    hops = shown_report(Hops(HopBatch.of([HopRecord(5, 1, 0, 0, 0, 0), HopRecord(NO_TIME, 1, 1, 0, 0, 0)])), CLOCK)
    assert hops.hops.t_ns.tolist() == [1_005, NO_TIME]
    one = np.array([7], np.int64)
    seen = shown_report(
        Sightings(one.astype(np.uint16), one.astype(np.uint32), one.astype(np.uint32), one, one, one, one), CLOCK
    )
    assert (seen.t2_ns[0], seen.t3_ns[0], seen.seen_ns[0]) == (7, 7, 1_007)
    sent = shown_report(SentReport(1, 0, np.array([5, 0]), np.array([0, 6])), CLOCK)
    assert (sent.times_ns.tolist(), sent.stamps_ns.tolist()) == ([1_005, 0], [0, 1_006])
    assert shown_report(Blind(0, 5, FOR_EVER_NS, ""), CLOCK) == Blind(0, 1_005, FOR_EVER_NS, "")
    assert shown_report(Unwatched(0, "", 5), CLOCK).since_ns == 1_005
    assert shown_report(Unwatched(0, ""), CLOCK).since_ns == 0
    assert shown_report(Watermark(5), CLOCK).until_ns == 1_005
    assert shown_report(PartDone(), CLOCK) == PartDone()


def test_a_true_clock_changes_nothing():
    """The report itself comes back."""
    report = Watermark(5)
    assert shown_report(report, HostClock()) is report
