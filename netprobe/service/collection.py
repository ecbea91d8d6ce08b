"""The collection of one run: everything that its parts report, checked against what each may report, and kept.

A part is one program's share of a run (model.observations). In one process there is one part, with all points; spread
over hosts there is one part an agent, which is not believed about anybody else's points. Settling reads what is here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from netprobe.collect.answers import Answers, timed
from netprobe.collect.session import BlindWindow
from netprobe.model.contexts import HopContext
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
    Tally,
    Unwatched,
    Watermark,
)
from netprobe.model.points import Direction, Leg, Path, Point
from netprobe.model.probes import ProbeSession
from netprobe.model.records import NO_CONTEXT, HopBatch
from netprobe.model.results import Pacing

MAX_CONTEXTS = 4_096
"""Different surroundings that are kept a point; a spoofing guest must not fill the memory."""

MAX_WINDOWS = 10_000
"""Blind windows a part; more are merged into one that covers them all."""


@dataclass(slots=True)
class PartRecord:
    """What is known of one part.

    Attributes:
        points: indices of the points that it may report.
        sessions: numbers of the sessions that it sends.
        exchanges: what it reported of others' clocks.
        lead_ns: by how much its clock is ahead of the collector's, roughly (some tenths of a second); None: not known.
        watermark_ns: everything before was reported, by its own clock; 0 before it looked.
        done: set when it is over.
        refused: what it reported and may not, by kind.
    """

    points: frozenset[int]
    sessions: frozenset[int]
    watermark_ns: int = 0
    steps: int = 0
    done: PartDone | None = None
    lead_ns: int | None = None
    exchanges: list[Exchanges] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Sending:
    """What is known of the sending of one session; arrays of shape (count,).

    Attributes:
        times_ns, stamps_ns: as in SentReport; by the sending host's clock.
        told: which probes the sender has told about; the rest may or may not have been sent.
    """

    times_ns: npt.NDArray[np.int64]
    stamps_ns: npt.NDArray[np.int64]
    told: npt.NDArray[np.bool_]
    pacing: Pacing | None = None
    doubtful: int = 0
    failure: str = ""
    is_over: bool = False

    @classmethod
    def of(cls, count: int) -> "Sending":
        """Nothing is known yet."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_))


class Collection:
    """What the parts of one run report.

    Args:
        probes: the sessions of the run.
    """

    def __init__(self, probes: Iterable[ProbeSession]) -> None:
        self.probes = {p.session: p for p in probes}
        self.points: list[Point] = []
        self.index: dict[str, int] = {}
        self.parts: dict[str, PartRecord] = {}
        self.tallies: dict[int, Tally] = {}
        self.contexts: dict[int, list[HopContext]] = {}
        self.unwatched: dict[int, str] = {}
        self.unwatched_since: dict[int, str] = {}
        self.overflowed: dict[int, str] = {}
        self.sendings = {number: Sending.of(p.count) for number, p in self.probes.items()}
        self.changed = trio.Event()
        self._numbers = np.array(sorted(self.probes), np.uint32)
        self._counts = np.array([self.probes[int(n)].count for n in self._numbers], np.uint32)
        self._windows: dict[str, list[BlindWindow]] = {}
        self._hops: list[HopBatch] = []
        self._sightings: list[Sightings] = []
        self._seen = {number: np.zeros(p.count, np.bool_) for number, p in self.probes.items()}
        self._last: dict[int, set[tuple[int, int, int]]] = {}
        self._passed: dict[int, set[int]] = {number: set() for number in self.probes}
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
        }

    def add_points(self, points: Iterable[Point]) -> list[int]:
        """Give points an index each; those that have one keep it."""
        found = []
        for point in points:
            if point.place not in self.index:
                self.index[point.place] = len(self.points)
                self.points.append(point)
            found.append(self.index[point.place])
        return found

    def add_part(self, name: str, points: Iterable[int], sessions: Iterable[int]) -> None:
        """A part that will report these points, and send these sessions; more of them where it is known already."""
        record = self.parts.setdefault(name, PartRecord(frozenset(), frozenset()))
        record.points |= frozenset(points)
        record.sessions |= frozenset(sessions)

    def expect(self, session: int, path: Path) -> None:
        """A path of a session: complete is a probe that was seen at the last stop where a ring can see it."""
        self._passed.setdefault(session, set()).update(
            self.index[s.point.place] for s in (*path.forward, *path.returned)
        )
        leg = Leg.RETURN if path.returned else Leg.FORWARD
        last = [s for s in path.leg(leg) if s.is_observed_by_ring]
        if last:
            key = (self.index[last[-1].point.place], int(last[-1].direction), int(leg))
            self._last.setdefault(session, set()).add(key)

    def take(self, part: str, report: Report, now_ns: int | None = None) -> None:
        """A report of a part. What the part may not report is counted and dropped.

        Args:
            part: its name.
            report: what it says.
            now_ns: when it came, by the collector's clock; None where that is not known any more.
        """
        record = self.parts[part]
        if record.done is not None:
            record.refused["after-its-end"] += 1
            return
        if isinstance(report, Watermark) and now_ns is not None:
            lead_ns = report.until_ns - now_ns
            record.lead_ns = lead_ns if record.lead_ns is None else max(record.lead_ns, lead_ns)
        self._takers[type(report)](part, record, report)
        self.changed.set()
        self.changed = trio.Event()

    def _is_known(self, sessions: npt.NDArray[np.uint32], seqs: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        if not len(self._numbers):
            return np.zeros(len(sessions), np.bool_)
        row = np.minimum(np.searchsorted(self._numbers, sessions), len(self._numbers) - 1)
        known: npt.NDArray[np.bool_] = (self._numbers[row] == sessions) & (seqs < self._counts[row])
        return known

    def _take_hops(self, _part: str, record: PartRecord, report: Hops) -> None:
        hops = report.hops
        is_own = np.isin(hops.point, np.array(sorted(record.points), np.uint16))
        fits = (hops.direction <= max(Direction)) & (hops.leg <= max(Leg)) & (hops.t_ns > 0) & (hops.t_ns < FOR_EVER_NS)
        fits &= self._is_known(hops.session, hops.seq)
        record.refused["points"] += int(np.count_nonzero(~is_own))
        record.refused["records"] += int(np.count_nonzero(is_own & ~fits))
        good = hops if (is_own & fits).all() else hops.where(is_own & fits)
        self._hops.append(good)
        self._complete(good)

    def _complete(self, hops: HopBatch) -> None:
        if not len(hops):
            return
        session, seq = hops.session, hops.seq
        point, direction, leg = hops.point, hops.direction, hops.leg
        for number in np.unique(session).tolist():
            for wanted in self._last.get(number, ()):
                here = (session == number) & (point == wanted[0]) & (direction == wanted[1]) & (leg == wanted[2])
                self._seen[number][seq[here]] = True

    def _take_sightings(self, _part: str, record: PartRecord, s: Sightings) -> None:
        is_own = np.isin(s.point, np.array(sorted(record.points), np.uint16))
        fits = (s.seen_ns > 0) & (s.seen_ns < FOR_EVER_NS) & self._is_known(s.session, s.seq)
        for number in np.unique(s.session[fits]).tolist():  # who is not on a session's way knows no answer to it
            here = s.session == number
            fits[here] &= np.isin(s.point[here], np.array(sorted(self._passed[number]), np.uint16))
        record.refused["points"] += int(np.count_nonzero(~is_own))
        record.refused["records"] += int(np.count_nonzero(is_own & ~fits))
        ok = is_own & fits
        self._sightings.append(
            Sightings(
                s.point[ok], s.session[ok], s.seq[ok], s.t2_ns[ok], s.t3_ns[ok], s.reflector_seq[ok], s.seen_ns[ok]
            )
        )

    def _take_contexts(self, _part: str, record: PartRecord, report: Contexts) -> None:
        here = self.contexts.setdefault(report.point, [])
        if report.point not in record.points or report.first != len(here):
            record.refused["contexts"] += len(report.contexts)
            return
        here += report.contexts[: MAX_CONTEXTS - len(here)]

    def _take_tallies(self, _part: str, record: PartRecord, report: Tallies) -> None:
        for point, tally in report.by_point.items():
            if point in record.points:
                self.tallies[point] = tally
            else:
                record.refused["points"] += 1

    def _take_blind(self, part: str, record: PartRecord, report: Blind) -> None:
        if report.point not in record.points:
            record.refused["points"] += 1
            return
        if report.end_ns < FOR_EVER_NS:
            self.overflowed[report.point] = report.why
        windows = self._windows.setdefault(part, [])
        window = BlindWindow(report.point, report.start_ns, report.end_ns)
        if window in windows[-16:] or (report.end_ns >= FOR_EVER_NS and window in windows):
            return  # said again
        windows.append(window)
        if len(windows) > MAX_WINDOWS:  # wider is never wrong, only less sharp
            merged: dict[int, BlindWindow] = {}
            for w in windows:
                m = merged.get(w.point, w)
                merged[w.point] = BlindWindow(w.point, min(m.start_ns, w.start_ns), max(m.end_ns, w.end_ns))
            self._windows[part] = list(merged.values())

    def _take_unwatched(self, part: str, record: PartRecord, report: Unwatched) -> None:
        if report.point not in record.points:
            record.refused["points"] += 1
        elif not report.why:
            self._look_again(part, report)
        elif report.since_ns:
            self.unwatched_since[report.point] = report.why
        else:
            self.unwatched[report.point] = report.why

    def _look_again(self, part: str, report: Unwatched) -> None:
        """From now on somebody looks at a point again, or for the first time; what was before stays unseen."""
        windows = self._windows.setdefault(part, [])
        ended = [
            BlindWindow(w.point, w.start_ns, report.since_ns)
            if w.point == report.point and w.end_ns >= FOR_EVER_NS
            else w
            for w in windows
        ]
        if self.unwatched.pop(report.point, None) is not None:
            ended.append(BlindWindow(report.point, 0, report.since_ns))
        self._windows[part] = ended

    def _take_sent(self, _part: str, record: PartRecord, report: SentReport) -> None:
        sending = self.sendings.get(report.session)
        end = report.first + len(report.times_ns)
        if sending is None or report.session not in record.sessions or end > len(sending.told):
            record.refused["sends"] += 1
            return
        rows = slice(report.first, end)
        sending.times_ns[rows] = report.times_ns
        sending.stamps_ns[rows] = report.stamps_ns
        sending.told[rows] = True
        sending.pacing = report.pacing or sending.pacing
        sending.doubtful += report.doubtful
        sending.failure = report.failure or sending.failure
        if report.is_last:
            sending.told[:] = True
            sending.is_over = True

    @staticmethod
    def _take_exchanges(_part: str, record: PartRecord, report: Exchanges) -> None:
        record.exchanges.append(report)

    @staticmethod
    def _take_watermark(_part: str, record: PartRecord, report: Watermark) -> None:
        record.watermark_ns = max(record.watermark_ns, report.until_ns)
        record.steps = max(record.steps, report.steps)

    @staticmethod
    def _take_done(_part: str, record: PartRecord, report: PartDone) -> None:
        record.done = report

    # -----------------------------------------------------------------------------------------------------------------
    # Questions
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def is_sent(self) -> bool:
        """Whether every sender is done."""
        return all(s.is_over for s in self.sendings.values())

    @property
    def was_any_sent(self) -> bool:
        """Whether any probe has left."""
        return any(bool((s.times_ns > 0).any()) for s in self.sendings.values())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is outstanding: all is sent, and every probe was seen where it can be seen last."""
        if not self.is_sent:
            return False
        return all(bool((self._seen[n] | (s.times_ns <= 0)).all()) for n, s in self.sendings.items())

    @property
    def steps(self) -> int:
        """How often wall clocks were stepped."""
        return sum(p.steps for p in self.parts.values())

    def windows(self) -> list[BlindWindow]:
        """When points may have lost sight of probes.

        A part without an end, or that ended early, is blind from its last word on.
        """
        found = [w for windows in self._windows.values() for w in windows]
        for record in self.parts.values():
            if record.done is None or record.done.why:
                found += [BlindWindow(point, record.watermark_ns, FOR_EVER_NS) for point in sorted(record.points)]
        return found

    def point_names(self) -> tuple[str, ...]:
        """A name for each point, by index: its id, or `<id>@<host>` where a guest has taken it to another host."""
        ids = [p.id for p in self.points]
        return tuple(p.id if p.id not in ids[:i] else f"{p.id}@{p.host}" for i, p in enumerate(self.points))

    def hops(self) -> HopBatch:
        """All hop records, those of one point in arrival order."""
        return HopBatch.concat(self._hops)

    def hops_by_session(self) -> Mapping[int, HopBatch]:
        """The hop records of each session, those of one point in arrival order."""
        hops = self.hops()
        order = np.argsort(hops.session, kind="stable")
        rows = hops.rows[order]
        numbers, starts = np.unique(rows["session"], return_index=True)
        ends = [*starts[1:].tolist(), len(rows)][: len(starts)]
        return {int(n): HopBatch(rows[a:b]) for n, a, b in zip(numbers, starts, ends, strict=True)}

    def sightings(self, session: int) -> Sightings:
        """All sightings of answers to one session's probes; their times are of the points' own clocks."""
        columns: list[list[npt.NDArray[np.generic]]] = [[] for _ in Sightings.__slots__]
        for s in self._sightings:
            mine = s.session == session
            for column, name in zip(columns, Sightings.__slots__, strict=True):
                column.append(getattr(s, name)[mine])
        if not self._sightings:
            none = np.empty(0, np.int64)
            return Sightings(none.astype(np.uint16), none.astype(np.uint32), none.astype(np.uint32), *([none] * 4))
        return Sightings(*(np.concatenate(c) for c in columns))

    def answers(self, session: int, *, with_points: bool = False) -> Answers:
        """The answers to one session's probes: the distinct ones, or all sightings with their points.

        Args:
            session: its number.
            with_points: points have clocks of their own, so that their times cannot be compared as they are.
        """
        s = self.sightings(session)
        answers = Answers(
            seq=s.seq,
            t2_ns=timed(s.t2_ns),
            t3_ns=timed(s.t3_ns),
            reflector_seq=s.reflector_seq,
            seen_ns=s.seen_ns,
            point=s.point.astype(np.int64) if with_points else None,
        )
        return answers if with_points else answers.unique()

    def contexts_of(self, hops: HopBatch) -> list[tuple[Point, int, int, HopContext, int]]:
        """What was around these records: (point, direction, leg, context, how many), in no order."""
        known = hops.context != NO_CONTEXT
        if not known.any():
            return []
        rows = hops.rows[known][["point", "direction", "leg", "context"]]
        packed = rows["point"].astype(np.uint64) << np.uint64(32) | rows["direction"].astype(np.uint64) << np.uint64(24)
        packed |= rows["leg"].astype(np.uint64) << np.uint64(16) | rows["context"].astype(np.uint64)
        values, counts = np.unique(packed, return_counts=True)
        found = []
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            point, context = value >> 32, value & 0xFFFF
            here = self.contexts.get(point, [])
            if context < len(here):
                found.append((self.points[point], value >> 24 & 0xFF, value >> 16 & 0xFF, here[context], count))
        return found
