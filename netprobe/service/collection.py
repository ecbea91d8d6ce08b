"""The collection of one run: everything that its parts report, checked against what each may report, and kept.

A part is one program's share of a run (model.observations). In one process there is one part, with all points; spread
over hosts there is one part an agent, which is believed about its own points, and there about the sessions that pass
them; whatever it says takes bounded room, and its first word stands. Settling reads what is here.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from netprobe.collect.session import BlindWindow
from netprobe.model.load import Backoff
from netprobe.model.observations import (
    FOR_EVER_NS,
    Blind,
    Contexts,
    Exchanges,
    Hops,
    PartDone,
    Report,
    SentReport,
    Sightings,
    Tallies,
    Unwatched,
    Watermark,
)
from netprobe.model.points import Direction, Leg
from netprobe.model.probes import ProbeSession
from netprobe.model.records import HopBatch
from netprobe.service.collected import Collected, PartRecord, stop_keys
from netprobe.service.row_pile import RowPile, Rows
from netprobe.wire.blocks import EXCHANGE_DTYPE, SIGHTING_DTYPE

MAX_CONTEXTS = 4_096
"""Different surroundings that are kept a point; a spoofing guest must not fill the memory."""

MAX_WINDOWS = 1_000
"""Blind windows a point; more are merged into one that covers them all."""

ROWS_A_PROBE = 8
"""Records that are kept a point for each probe that passes it: both legs, four copies of each. More than that is a loop
or a lie, and must not fill the memory."""

MIN_ROWS = 10_000
"""Records that are kept a point in any case."""

MAX_EXCHANGES = 2_000_000
"""Exchanges with other clocks that are kept a part: 64 MB; with one peer, more than a day."""

EXCHANGES_A_SECOND = 64
"""Exchanges that are kept of a second of the reporting clock, and of a peer; agents make 20."""

SECOND_NS = 1_000_000_000

MAX_BACKOFFS = 1_000
"""Steps of a part's governor that are kept; it makes one in half a second at most."""

TOO_MANY = "more records were reported than its probes can make: not all were kept"


def _rows(report: object, dtype: np.dtype[np.void]) -> Rows:
    """Columns of a report as rows."""
    names = dtype.names or ()
    rows = np.empty(len(getattr(report, names[0])), dtype)
    for name in names:
        rows[name] = getattr(report, name)
    return rows


class Collection(Collected):
    """What the parts of one run report: `take` is for reports, everything else is told or asked above.

    Args:
        probes: the sessions of the run.
    """

    def __init__(self, probes: Iterable[ProbeSession]) -> None:
        super().__init__(probes)
        self._used: Counter[tuple[type, int]] = Counter()
        self._takers: dict[type, Callable[[str, PartRecord, Any], None]] = {
            Hops: self._take_hops,
            Sightings: self._take_sightings,
            Contexts: self._take_contexts,
            Tallies: self._take_tallies,
            Blind: self._take_blind,
            Unwatched: self._take_unwatched,
            SentReport: self._take_sent,
            Exchanges: self._take_exchanges,
            Watermark: self._take_watermark,
            PartDone: self._take_done,
            Backoff: self._take_backoff,
        }

    def take(self, part: str, report: Report, now_ns: int | None = None) -> None:
        """A report of a part. What the part may not report is counted and dropped.

        Args:
            part: its name.
            report: what it says.
            now_ns: when it came, by the collector's clock; None where that is not known any more.
        """
        record = self.parts[part]
        if record.done is not None:
            record.refuse("after-its-end")
            return
        if isinstance(report, Watermark) and now_ns is not None and report.until_ns < FOR_EVER_NS:
            lead_ns = report.until_ns - now_ns
            record.lead_ns = lead_ns if record.lead_ns is None else max(record.lead_ns, lead_ns)
        self._takers[type(report)](part, record, report)
        self.changed.set()
        self.changed = trio.Event()

    def _room(self, point: int) -> int:
        """How many records of a point are kept."""
        return max(MIN_ROWS, ROWS_A_PROBE * self.probes_at(point))

    def _fitting(self, part: str, record: PartRecord, kind: type, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which rows the part may report, and are kept; the others are counted. They have point, session and seq."""
        rights = self.rights(part)
        point, session, seq = (np.ascontiguousarray(rows[name]) for name in ("point", "session", "seq"))
        is_own = rights.points[point]
        if len(self._numbers):
            number = np.minimum(np.searchsorted(self._numbers, session), len(self._numbers) - 1)
            exists = (self._numbers[number] == session) & (seq < self._counts[number])
            is_passing = rights.sessions[number]
        else:
            exists = is_passing = np.zeros(len(rows), np.bool_)
        record.refuse("points", int(np.count_nonzero(~is_own)))
        record.refuse("records", int(np.count_nonzero(is_own & ~exists)))
        record.refuse("sessions", int(np.count_nonzero(is_own & exists & ~is_passing)))
        good: npt.NDArray[np.bool_] = is_own & exists & is_passing
        counts = np.bincount(point[good], minlength=1)
        for index in np.flatnonzero(counts).tolist():
            room = self._room(index) - self._used[kind, index]
            if counts[index] > room:
                good[np.flatnonzero(good & (point == index))[max(room, 0) :]] = False
                record.refuse("too-many", int(counts[index]) - max(room, 0))
                self.overflowed[index] = TOO_MANY
                self._windows[index] = [BlindWindow(index, 0, FOR_EVER_NS)]
            self._used[kind, index] += min(int(counts[index]), max(room, 0))
        return good

    def _take_hops(self, part: str, record: PartRecord, report: Hops) -> None:
        hops = report.hops
        fits = (hops.direction <= max(Direction)) & (hops.leg <= max(Leg)) & (hops.t_ns > 0) & (hops.t_ns < FOR_EVER_NS)
        record.refuse("records", int(np.count_nonzero(~fits)))
        if not fits.all():
            hops = hops.where(fits)
        good = self._fitting(part, record, Hops, hops.rows)
        if not good.all():
            hops = hops.where(good)
        self._hops.add(hops.rows)
        self._complete(hops)

    def _complete(self, hops: HopBatch) -> None:
        if not len(hops) or not self._last:
            return
        wanted = np.fromiter(self._last, np.uint64, len(self._last))
        here = np.isin(stop_keys(hops.session, hops.point, hops.direction, hops.leg), wanted)
        row = np.searchsorted(self._numbers, hops.session[here])
        self._seen[self._starts[row] + hops.seq[here]] = True

    def _take_sightings(self, part: str, record: PartRecord, report: Sightings) -> None:
        rows = _rows(report, SIGHTING_DTYPE)
        fits = (report.seen_ns > 0) & (report.seen_ns < FOR_EVER_NS)
        for values, least in ((report.t2_ns, 0), (report.t3_ns, 0), (report.reflector_seq, -1)):
            fits &= (values >= least) & (values < FOR_EVER_NS)
        fits &= self.is_on_way(report.session, report.point)  # who is not on a session's way knows no answer to it
        record.refuse("records", int(np.count_nonzero(~fits)))
        rows = rows[fits]
        self._sightings.add(rows[self._fitting(part, record, Sightings, rows)])

    def _take_contexts(self, _part: str, record: PartRecord, report: Contexts) -> None:
        if report.point not in record.points:
            record.refuse("points", len(report.contexts))
            return
        here = self.contexts.setdefault(report.point, [])
        if report.first != len(here):
            record.refuse("contexts", len(report.contexts))
            return
        here += report.contexts[: MAX_CONTEXTS - len(here)]

    def _take_tallies(self, _part: str, record: PartRecord, report: Tallies) -> None:
        for point, tally in report.by_point.items():
            if point in record.points:
                known = {number: count for number, count in tally.remarked.items() if number in self.probes}
                self.tallies[point] = replace(tally, remarked=known)
            else:
                record.refuse("points")

    def _take_blind(self, _part: str, record: PartRecord, report: Blind) -> None:
        if report.point not in record.points:
            record.refuse("points")
            return
        if report.end_ns < FOR_EVER_NS and self.overflowed.get(report.point) != TOO_MANY:
            self.overflowed[report.point] = report.why
        windows = self._windows.setdefault(report.point, [])
        window = BlindWindow(report.point, report.start_ns, report.end_ns)
        if window in windows[-16:] or (report.end_ns >= FOR_EVER_NS and window in windows):
            return  # said again
        windows.append(window)
        if len(windows) > MAX_WINDOWS:  # wider is never wrong, only less sharp
            start, end = min(w.start_ns for w in windows), max(w.end_ns for w in windows)
            self._windows[report.point] = [BlindWindow(report.point, start, end)]

    def _take_unwatched(self, _part: str, record: PartRecord, report: Unwatched) -> None:
        if report.point not in record.points:
            record.refuse("points")
        elif not report.why:
            self._look_again(report)
        elif report.since_ns:
            self.unwatched_since[report.point] = report.why
        else:
            self.unwatched[report.point] = report.why

    def _look_again(self, report: Unwatched) -> None:
        """From now on somebody looks at a point again, or for the first time; what was before stays unseen."""
        if self.overflowed.get(report.point) == TOO_MANY:
            return  # what it reports is not kept
        windows = [
            BlindWindow(w.point, w.start_ns, report.since_ns) if w.end_ns >= FOR_EVER_NS else w
            for w in self._windows.get(report.point, ())
        ]
        if self.unwatched.pop(report.point, None) is not None:
            windows.append(BlindWindow(report.point, 0, report.since_ns))
        self._windows[report.point] = windows

    def _take_sent(self, _part: str, record: PartRecord, report: SentReport) -> None:
        """What the sender said first stands."""
        sending = self.sendings.get(report.session)
        end = report.first + len(report.times_ns)
        if sending is None or report.session not in record.sessions or end > len(sending.told) or sending.is_over:
            record.refuse("sends")
            return
        there = slice(report.first, end)
        possible = [(t >= 0) & (t < FOR_EVER_NS) for t in (report.times_ns, report.stamps_ns)]
        times, stamps = np.where(possible[0], report.times_ns, 0), np.where(possible[1], report.stamps_ns, 0)
        told = sending.told[there]
        is_other = (sending.times_ns[there] != times) | (sending.stamps_ns[there] != stamps)
        record.refuse("records", sum(int(np.count_nonzero(~p)) for p in possible))
        record.refuse("sends", int(np.count_nonzero(told & is_other)))
        sending.times_ns[there] = np.where(told, sending.times_ns[there], times)
        sending.stamps_ns[there] = np.where(told, sending.stamps_ns[there], stamps)
        told[:] = True  # a view
        sending.pacing = sending.pacing or report.pacing
        sending.doubtful = min(sending.doubtful + report.doubtful, len(sending.told))
        sending.failure = sending.failure or report.failure
        sending.held = min(sending.held + report.held, len(sending.told))
        if report.is_last:
            sending.told[:] = True
            sending.is_over = True

    def _take_exchanges(self, _part: str, record: PartRecord, report: Exchanges) -> None:
        """What an agent says of clocks takes bounded room, and bounded time to make sense of."""
        rows = _rows(report, EXCHANGE_DTYPE)
        if report.peer not in self.peers:
            record.refuse("exchanges", len(rows))
            return
        left = MAX_EXCHANGES - sum(map(len, record.clocks.values()))
        keep = np.zeros(len(rows), np.bool_)
        order = np.argsort(report.t4_ns, kind="stable")
        seconds, starts = np.unique(report.t4_ns[order] // SECOND_NS, return_index=True)
        for second, here in zip(seconds.tolist(), np.split(order, starts[1:]), strict=False):
            counts = record.seconds.get(second)
            if counts is None and len(record.seconds) < self.lasts_s:
                counts = record.seconds[second] = Counter()
            if counts is not None:
                few = here[: max(EXCHANGES_A_SECOND - counts[report.peer], 0)]
                counts[report.peer] += len(few)
                keep[few] = True
        keep[np.flatnonzero(keep)[max(left, 0) :]] = False
        record.refuse("exchanges", int(np.count_nonzero(~keep)))
        record.clocks.setdefault(report.peer, RowPile(EXCHANGE_DTYPE)).add(rows[keep])

    @staticmethod
    def _take_watermark(_part: str, record: PartRecord, report: Watermark) -> None:
        if report.until_ns >= FOR_EVER_NS:
            record.refuse("records")
            return
        record.watermark_ns = max(record.watermark_ns, report.until_ns)
        record.steps = max(record.steps, report.steps)

    @staticmethod
    def _take_backoff(_part: str, record: PartRecord, report: Backoff) -> None:
        if len(record.backoffs) < MAX_BACKOFFS and 0 < report.at_ns < FOR_EVER_NS:
            record.backoffs.append(report)
        else:
            record.refuse("backoffs")

    @staticmethod
    def _take_done(_part: str, record: PartRecord, report: PartDone) -> None:
        record.done = report
