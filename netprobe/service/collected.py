"""What is known of one run: its sessions, points and parts, what the parts have reported, and questions about it.

Filled by service.collection, which checks what a part may report; read by settling, and by whoever waits for the end.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from netprobe.collect.answers import Answers, timed
from netprobe.collect.session import BlindWindow
from netprobe.model.contexts import HopContext
from netprobe.model.load import Backoff
from netprobe.model.observations import FOR_EVER_NS, Exchanges, PartDone, Sightings, Tally
from netprobe.model.points import Leg, Path, Point
from netprobe.model.probes import ProbeSession
from netprobe.model.records import HOP_DTYPE, NO_CONTEXT, HopBatch
from netprobe.model.results import Pacing
from netprobe.service.row_pile import RowPile, Rows
from netprobe.wire.blocks import SIGHTING_DTYPE


@dataclass(slots=True)
class PartRecord:
    """What is known of one part.

    Attributes:
        points: indices of the points that it may report.
        sessions: numbers of the sessions that it sends.
        clocks: what it reported of others' clocks, by the peer.
        seconds: how much of that, by second of its own clock and by peer.
        lead_ns: by how much its clock is ahead of the collector's, roughly (some tenths of a second); None: not known.
        watermark_ns: everything before was reported, by its own clock; 0 before it looked.
        done: set when it is over.
        refused: what it reported and may not, by kind.
        backoffs: the steps of its governor.
    """

    points: frozenset[int]
    sessions: frozenset[int]
    watermark_ns: int = 0
    steps: int = 0
    done: PartDone | None = None
    lead_ns: int | None = None
    clocks: dict[str, RowPile] = field(default_factory=dict)
    seconds: dict[int, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    backoffs: list[Backoff] = field(default_factory=list)

    @property
    def exchanges(self) -> list[Exchanges]:
        """What it reported of others' clocks, one report a peer."""
        piles = [(peer, pile.rows()) for peer, pile in self.clocks.items()]
        return [Exchanges(peer, *_columns(rows)) for peer, rows in piles]

    def refuse(self, what: str, count: int = 1) -> None:
        """Count what it reported and may not."""
        if count:
            self.refused[what] += count


@dataclass(slots=True)
class Sending:
    """What is known of the sending of one session; arrays of shape (count,).

    Attributes:
        times_ns, stamps_ns: as in SentReport; by the sending host's clock.
        told: which probes the sender has told about; the rest may or may not have been sent.
        held: how many of the unsent the governor held back.
    """

    times_ns: npt.NDArray[np.int64]
    stamps_ns: npt.NDArray[np.int64]
    told: npt.NDArray[np.bool_]
    pacing: Pacing | None = None
    doubtful: int = 0
    failure: str = ""
    is_over: bool = False
    held: int = 0

    @classmethod
    def of(cls, count: int) -> "Sending":
        """Nothing is known yet."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_))


@dataclass(frozen=True, slots=True)
class Rights:
    """What a part may tell, for quick looks.

    Attributes:
        points: shape (65536,); which are its own.
        sessions: shape (number of sessions,), in the order of their numbers; those that pass its points or that it
            sends. Of others it cannot know anything.
    """

    points: npt.NDArray[np.bool_]
    sessions: npt.NDArray[np.bool_]


def _columns(rows: Rows) -> list[npt.NDArray[Any]]:
    return [np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()]


def stop_keys(
    session: npt.NDArray[np.generic],
    point: npt.NDArray[np.generic],
    direction: npt.NDArray[np.generic],
    leg: npt.NDArray[np.generic],
) -> npt.NDArray[np.uint64]:
    """One number for each (session, point, direction, leg)."""
    words = [c.astype(np.uint64) for c in (session, point, direction, leg)]
    keys: npt.NDArray[np.uint64] = (
        words[0] << np.uint64(32) | words[1] << np.uint64(16) | words[2] << np.uint64(8) | words[3]
    )
    return keys


def _pair_keys(session: npt.NDArray[Any], point: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """One number for each (session, point)."""
    return session.astype(np.int64) << np.int64(16) | point.astype(np.int64)


class Collected:
    """What is known of one run.

    Args:
        probes: the sessions of the run.

    Attributes:
        peers: hosts whose clocks are compared; of others nothing is kept.
        lasts_s: how long the run lasts at most: no clock shows more different seconds than that.
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
        self.peers: frozenset[str] = frozenset()
        self.lasts_s = 0.0
        self._numbers = np.array(sorted(self.probes), np.uint32)
        self._counts = np.array([self.probes[int(n)].count for n in self._numbers], np.uint32)
        self._windows: dict[int, list[BlindWindow]] = {}
        self._hops = RowPile(HOP_DTYPE)
        self._sightings = RowPile(SIGHTING_DTYPE)
        self._by_session: tuple[int, Mapping[int, Rows]] = (0, {})
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._counts, dtype=np.int64)])
        self._seen = np.zeros(int(self._starts[-1]), np.bool_)
        self._last: set[int] = set()
        self._ways: dict[int, set[int]] = {number: set() for number in self.probes}
        self._rights: dict[str, Rights] = {}
        self._rooms: dict[int, int] = {}
        self._way_keys = np.empty(0, np.int64)

    def add_points(self, points: Iterable[Point]) -> list[int]:
        """Give points an index each; those that have one keep it."""
        found = []
        for point in points:
            if point.place not in self.index:
                self.index[point.place] = len(self.points)
                self.points.append(point)
            found.append(self.index[point.place])
        self._forget_rights()
        return found

    def add_part(self, name: str, points: Iterable[int], sessions: Iterable[int]) -> None:
        """A part that will report these points, and send these sessions; more of them where it is known already."""
        record = self.parts.setdefault(name, PartRecord(frozenset(), frozenset()))
        record.points |= frozenset(points)
        record.sessions |= frozenset(sessions)
        self._forget_rights()

    def expect(self, session: int, path: Path) -> None:
        """A path of a session, whose points have been added; complete is a probe that the last ring on it saw."""
        self._ways[session] |= {self.index[s.point.place] for s in (*path.forward, *path.returned)}
        self._forget_rights()
        leg = Leg.RETURN if path.returned else Leg.FORWARD
        last = [s for s in path.leg(leg) if s.is_observed_by_ring]
        if last:
            stop = (session, self.index[last[-1].point.place], int(last[-1].direction), int(leg))
            self._last |= set(stop_keys(*(np.array([n]) for n in stop)).tolist())

    def _forget_rights(self) -> None:
        self._rights.clear()
        self._rooms.clear()
        self._way_keys = self._way_keys[:0]

    def rights(self, part: str) -> Rights:
        """What a part may tell."""
        if part not in self._rights:
            record = self.parts[part]
            points = np.zeros(1 << 16, np.bool_)
            points[sorted(record.points)] = True
            told = [n in record.sessions or not record.points.isdisjoint(self._ways[n]) for n in self._numbers.tolist()]
            self._rights[part] = Rights(points, np.array(told, np.bool_))
        return self._rights[part]

    def is_on_way(self, session: npt.NDArray[np.uint32], point: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
        """Whether each point is on a path of the session beside it: shape (n,)."""
        if not len(self._way_keys):
            known = [(number, at) for number, way in self._ways.items() for at in way]
            self._way_keys = _pair_keys(*np.array(known, np.int64).reshape(-1, 2).T)
        return np.isin(_pair_keys(session, point), self._way_keys)

    def probes_at(self, point: int) -> int:
        """How many probes shall pass a point."""
        if point not in self._rooms:
            self._rooms[point] = sum(self.probes[number].count for number, way in self._ways.items() if point in way)
        return self._rooms[point]

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
        spans = zip(self._numbers.tolist(), self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        return all(bool((self._seen[a:b] | (self.sendings[n].times_ns <= 0)).all()) for n, a, b in spans)

    def arrived(self) -> dict[int, int]:
        """By session, how many of its probes were seen where they can be seen last, so far."""
        spans = zip(self._numbers.tolist(), self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        return {number: int(np.count_nonzero(self._seen[a:b])) for number, a, b in spans}

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
        return HopBatch(self._hops.rows())

    def hops_by_session(self) -> Mapping[int, HopBatch]:
        """The hop records of each session, those of one point in arrival order."""
        return {number: HopBatch(rows) for number, rows in _grouped(self._hops.rows()).items()}

    def sightings(self, session: int) -> Sightings:
        """All sightings of answers to one session's probes; their times are of the points' own clocks."""
        if self._by_session[0] != len(self._sightings):
            self._by_session = (len(self._sightings), _grouped(self._sightings.rows()))
        return Sightings(*_columns(self._by_session[1].get(session, np.empty(0, SIGHTING_DTYPE))))

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


def _grouped(rows: Rows) -> dict[int, Rows]:
    """Rows by their session; those of one stay in order."""
    rows = rows[np.argsort(rows["session"], kind="stable")]
    numbers, starts = np.unique(rows["session"], return_index=True)
    ends = [*starts[1:].tolist(), len(rows)][: len(starts)]
    return {int(n): rows[a:b] for n, a, b in zip(numbers, starts, ends, strict=True)}
