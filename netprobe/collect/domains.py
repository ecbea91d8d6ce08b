"""Which clock stamped what, and what one clock's time is by another. Pure; offsets come from collect.clocks.

Everything that compares times of two points asks here. Times of one clock are compared as they are; times of two are
carried over by the middle of the offset's interval, and half of its width goes along as the error.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from netprobe.collect.clock_rows import SLOT_NS, UNBOUNDED_NS
from netprobe.collect.clocks import ClockAssumptions, ClockEstimator
from netprobe.model.observations import Exchanges
from netprobe.model.points import Point
from netprobe.model.records import NO_TIME

Times = npt.NDArray[np.int64]

BATCH_NS = 250_000_000
"""Reports of two hosts about each other are merged in such pieces of the reference's time."""

MAX_HISTORY_S = 86_400
"""No peer makes a map remember more than a day."""


class Offsets(Protocol):
    """What is known of another clock (ClockEstimator)."""

    def bounds(self, t_ns: Times) -> tuple[Times, Times]:
        """The lowest and highest offset (other - reference) at times of the other clock; see ClockEstimator."""
        ...

    def pairs(self) -> tuple[Times, Times]:
        """The reference's and the other clock's time of the same instants, to within a round trip; ascending."""
        ...


@dataclass(frozen=True, slots=True)
class Carried:
    """Times of one clock as another one shows them: shape (n,) each, int64 ns.

    Attributes:
        t_ns: the middle of what it can be; a guess where the error is UNBOUNDED_NS. NO_TIME stays NO_TIME.
        error_ns: how far the truth may be off either way; UNBOUNDED_NS where nothing is known.
    """

    t_ns: Times
    error_ns: Times

    @property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """Shape (n,)."""
        return self.error_ns < UNBOUNDED_NS


@dataclass(frozen=True, slots=True)
class ClockMap:
    """The clocks of a run. A host is a domain of its own, named like the host, unless `names` says otherwise.

    Attributes:
        reference: the domain that all others were compared with.
        offsets: of the other domains; one that is missing has an unknown offset.
        names: domain by host or by point id (a guest with a clock of its own); a point goes before its host.
        bases: domains that were compared with another one than the reference: a virtual machine's clock with its
            host's.
    """

    reference: str
    offsets: Mapping[str, Offsets] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)

    def domain(self, point: Point) -> str:
        """The clock that stamps at a point."""
        return self.names.get(point.id, self.keeper(point))

    def keeper(self, point: Point) -> str:
        """The clock of the host that a point is on, by which its sendings are timed, whatever stamps at the point."""
        return self.names.get(point.host, point.host)

    def _line(self, domain: str) -> list[str]:
        """A domain, the one that it was compared with, and so on up to the reference."""
        line = [domain]
        while line[-1] != self.reference:
            line.append(self.bases.get(line[-1], self.reference))
        return line

    def _common(self, first: str, second: str) -> str:
        """The domain that both are compared with, with the fewest steps between."""
        others = self._line(second)
        return next(domain for domain in self._line(first) if domain in others)

    def _offset(self, domain: str, t_ns: Times) -> Carried:
        """The offset of a domain's clock at its own times; it changes smoothly, so that no order changes."""
        known = self.offsets.get(domain)
        if known is None or not len(t_ns):
            return Carried(np.zeros_like(t_ns), np.full_like(t_ns, UNBOUNDED_NS))
        slots = np.unique(t_ns // SLOT_NS)
        edges = np.union1d(slots, slots + 1) * SLOT_NS
        low, high = known.bounds(np.concatenate([t_ns, edges]))
        is_known = high < UNBOUNDED_NS
        middle = (low + high) // 2
        at_edge = is_known[len(t_ns) :]
        if at_edge.any():
            begin, pivot = int(edges[0]), int(middle[len(t_ns) :][at_edge][0])  # floats are exact near zero only
            x, y = edges[at_edge] - begin, middle[len(t_ns) :][at_edge] - pivot
            smooth = np.round(np.interp(t_ns - begin, x, y)).astype(np.int64) + pivot
        else:
            smooth = middle[: len(t_ns)]
        low, high, is_known = low[: len(t_ns)], high[: len(t_ns)], is_known[: len(t_ns)]
        smooth = np.where(is_known, np.clip(smooth, low, high), smooth)
        return Carried(smooth, np.where(is_known, np.maximum(high - smooth, smooth - low), UNBOUNDED_NS))

    def convert(self, t_ns: Times, source: str, target: str) -> Carried:
        """Times of the domain `source` as the clock of `target` shows them.

        Args:
            t_ns: shape (n,), int64; NO_TIME where there is none.
            source: whose times they are.
            target: by whose clock they are wanted.
        """
        has_time = t_ns != NO_TIME
        if source == target:
            return Carried(t_ns, np.where(has_time, 0, UNBOUNDED_NS))
        found, error = t_ns[has_time], np.zeros(int(np.count_nonzero(has_time)), np.int64)
        common = self._common(source, target)
        for domain in _until(self._line(source), common):
            there = self._offset(domain, found)
            found, error = found - there.t_ns, np.minimum(error + there.error_ns, UNBOUNDED_NS)
        for domain in reversed(_until(self._line(target), common)):
            ours = found
            found = ours + self._near(domain, ours)
            for _ in range(2):  # the offset is known by the target's own time
                back = self._offset(domain, found)
                found = ours + back.t_ns
            error = np.minimum(error + back.error_ns, UNBOUNDED_NS)
        t_out, error_out = t_ns.copy(), np.full_like(t_ns, UNBOUNDED_NS)
        t_out[has_time], error_out[has_time] = found, error
        return Carried(t_out, error_out)

    def _near(self, domain: str, reference_ns: Times) -> Times:
        """A domain's offset at times of the reference, to begin with: of the nearest exchange."""
        known = self.offsets.get(domain)
        ours, theirs = known.pairs() if known is not None else (np.empty(0, np.int64), np.empty(0, np.int64))
        if not len(ours):
            return np.zeros_like(reference_ns)
        right = np.clip(np.searchsorted(ours, reference_ns), 1, max(len(ours) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(ours) - 1)
        nearest = np.where(reference_ns - ours[left] <= ours[right] - reference_ns, left, right)
        return (theirs - ours)[nearest]

    def delay(self, start_ns: Times, first: str, end_ns: Times, second: str) -> Carried:
        """How long it took from `start_ns` by one clock to `end_ns` by another: shape (n,) each."""
        if first == second:
            return Carried(end_ns - start_ns, np.zeros_like(start_ns))
        common = self._common(first, second)
        start, end = (self.convert(t, d, common) for t, d in ((start_ns, first), (end_ns, second)))
        return Carried(end.t_ns - start.t_ns, np.minimum(start.error_ns + end.error_ns, UNBOUNDED_NS))


def _until(line: list[str], last: str) -> list[str]:
    """The domains of a line before the last one."""
    return line[: line.index(last)]


def clock_map(
    reference: str,
    reports: Iterable[tuple[str, Exchanges]],
    *,
    names: Mapping[str, str] | None = None,
    bases: Mapping[str, str] | None = None,
    assumptions: ClockAssumptions | None = None,
) -> ClockMap:
    """The clocks of a run, from everything that hosts reported of their exchanges.

    Args:
        reference: domain that the others are compared with; exchanges between two others are of no use here, unless one
            is the other's base.
        reports: (host that reports, what it reports), those of one host in the order in which they came.
        names: as in ClockMap.
        bases: as in ClockMap; who is a base asks.
        assumptions: of every pair of clocks; its history is made long enough for all exchanges.
    """
    names, bases = names or {}, bases or {}
    rows: dict[str, list[tuple[bool, Times]]] = defaultdict(list)
    for host, report in reports:
        asks, answers = names.get(host, host), names.get(report.peer, report.peer)
        stamps = np.stack([report.t1_ns, report.t2_ns, report.t3_ns, report.t4_ns])
        if bases.get(answers, reference) == asks != answers:
            rows[answers].append((True, stamps))
        elif answers == reference != asks and asks not in bases:
            rows[asks].append((False, stamps))
    return ClockMap(reference, {d: _estimated(pieces, assumptions) for d, pieces in rows.items()}, names, bases)


def _estimated(pieces: list[tuple[bool, Times]], assumptions: ClockAssumptions | None) -> ClockEstimator:
    """One estimator for what both sides reported; each side's own order stays."""
    sides = [(by_us, [s for asked, s in pieces if asked == by_us]) for by_us in (True, False)]
    merged = []
    for by_us, stamps in sides:
        if stamps:
            table = np.concatenate(stamps, axis=1)
            ours = np.maximum.accumulate(table[3] if by_us else table[2])
            merged.append((by_us, table, ours // BATCH_NS))
    slots = np.unique(np.concatenate([batch for *_, batch in merged]))
    assumed = assumptions or ClockAssumptions()
    history_s = max(assumed.history_s, min(len(slots), MAX_HISTORY_S))
    estimator = ClockEstimator(replace(assumed, history_s=history_s))
    for slot in slots.tolist():
        for by_us, table, batch in merged:
            first, end = np.searchsorted(batch, [slot, slot + 1])
            if end > first:
                estimator.add(*table[:, first:end], asked_by_us=by_us)
    return estimator
