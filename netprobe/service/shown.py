"""Reports as an agent's clock shows them: the test-only distortion of a host's clock (host.clock.HostClock). Pure."""

from dataclasses import replace

from netprobe.host.clock import HostClock
from netprobe.model.load import Backoff
from netprobe.model.observations import FOR_EVER_NS, Blind, Hops, Report, SentReport, Sightings, Unwatched, Watermark
from netprobe.model.records import NO_TIME, HopBatch


def shown_report(report: Report, clock: HostClock) -> Report:  # noqa: PLR0911  one a kind
    """A report with its host's times as a distorted clock would have given them; times of guests' clocks stay.

    Args:
        report: with times of CLOCK_REALTIME.
        clock: how far this agent's clock is off.
    """
    if clock.is_true:
        return report
    match report:
        case Hops():
            rows = report.hops.rows.copy()
            known = rows["t_ns"] != NO_TIME
            rows["t_ns"][known] = clock.shown(report.hops.t_ns[known])
            return Hops(HopBatch(rows))
        case Sightings():
            return replace(report, seen_ns=clock.shown(report.seen_ns))
        case SentReport():
            sent, stamped = report.times_ns > 0, report.stamps_ns > 0
            times, stamps = report.times_ns.copy(), report.stamps_ns.copy()
            times[sent], stamps[stamped] = clock.shown(times[sent]), clock.shown(stamps[stamped])
            return replace(report, times_ns=times, stamps_ns=stamps)
        case Blind():
            start, end = clock.shown_one(report.start_ns), report.end_ns
            return replace(report, start_ns=start, end_ns=end if end >= FOR_EVER_NS else clock.shown_one(end))
        case Unwatched() if report.since_ns:
            return replace(report, since_ns=clock.shown_one(report.since_ns))
        case Backoff():
            return replace(report, at_ns=clock.shown_one(report.at_ns))
        case Watermark():
            return replace(report, until_ns=clock.shown_one(report.until_ns))
        case _:
            return report
