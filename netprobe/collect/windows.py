"""Windows: one leg of one session settled while it runs, in memory that a setting bounds. Pure.

Records are scattered into the tables of live probes (collect.live). When a window's probes are all past their deadline,
by everybody's watermark, it is settled like a whole session (collect.ledger, collect.segments), given away, added to
the totals, and forgotten. What is true of all windows together does not depend on how large they are, or on how records
were batched.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netprobe.collect.arrivals import Arrivals, Flags, Times
from netprobe.collect.cells import BLOCK
from netprobe.collect.ledger import Fate, Ledger, settle
from netprobe.collect.live import NEW, SHED, Live, Strays, WindowTables, nothing_of
from netprobe.collect.reordering import Overtaking, Passings
from netprobe.collect.results import leg_result
from netprobe.collect.segments import (
    LegTables,
    end_to_end,
    known_copies,
    passings_between,
    segment_results,
)
from netprobe.collect.session import BlindWindow, LegOutcome
from netprobe.collect.totals import Pair, Totals
from netprobe.errors import UsageError
from netprobe.model.points import Stop
from netprobe.model.records import NO_TIME, HopBatch
from netprobe.model.results import LegResult

MAX_LIVE = 1 << 20
"""Probes that may be live by default: four seconds of 250,000 probes/s."""

SPAN = 1 << 14
"""Probes a window by default: its tables fit into a second-level cache."""


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that is settled; what is found out about it later is in the totals only.

    Attributes:
        first, end: its probes.
        from_ns, until_ns: when the first and the last of them left, 0 where none did.
        result: its ledger and segments.
        is_shed: there was no room for it: its probes are unobserved.
        hops: its records, those of one point in the order in which they came; None where they were not asked for.
    """

    first: int
    end: int
    from_ns: int
    until_ns: int
    result: LegResult
    is_shed: bool
    hops: HopBatch | None


class Windows:
    """One leg of one session, settled window by window.

    All points share one clock. Before the watermark passes a time, everything until then has been told: what was sent,
    what was seen, and when points were blind. Probes are sent in the order of their numbers, and pass the stops in that
    of the path: otherwise some reordering across windows may not be noticed.

    Args:
        stops: in travel order; the first is where probes are sent.
        points: index of each stop's point in the hop records.
        count: planned probes.
        tmax_ns: waiting time of each.
        max_live: probes that may be live, rounded down to whole windows. A window without room is shed.
        span: probes a window, a power of two.
        unwatched: ids of points where nobody looks.
        keeps_hops: whether closed windows come with their records; at most two a live probe and stop are kept.

    Attributes:
        counters: records that were not kept, by why: `shed` (no room for their window), `copies_shed`, `hops_shed`,
            `forged`, `untimed`, and `after_close` (nobody waited for them any longer).
        totals: of all closed windows.

    Raises:
        UsageError: the window or the bound is no such number.
    """

    def __init__(
        self,
        stops: Sequence[Stop],
        points: Sequence[int],
        *,
        count: int,
        tmax_ns: int,
        max_live: int = MAX_LIVE,
        span: int = SPAN,
        unwatched: frozenset[str] = frozenset(),
        keeps_hops: bool = False,
    ) -> None:
        if span < 1 or span & (span - 1):
            raise UsageError("windows", f"span is {span}", allowed="a power of two")
        if max_live < 2 * span:
            raise UsageError("windows", f"max_live is {max_live}", allowed=f">= {2 * span}, two windows")
        ways = [(point, int(stop.direction)) for point, stop in zip(points, stops, strict=True)]
        self.stops, self.points, self.unwatched = tuple(stops), tuple(points), unwatched
        self.totals = Totals(self.stops, unwatched)
        self._live = Live(ways, count=count, tmax_ns=tmax_ns, span=span, slots=max_live // span)
        self.counters = self._live.counters
        self._next = 0
        self._until_ns = np.zeros(self._live.windows, np.int64)
        self._shed_sent: Counter[int] = Counter()
        self._blind: list[BlindWindow] = []
        self._overtaking = {pair: Overtaking() for pair in {*self.totals.neighbours, (0, len(stops) - 1)}}
        self._lost: dict[int, np.ndarray[tuple[int], np.dtype[np.int8]]] = {}
        self._max_lost = max_live // span
        self._kept: dict[int, list[HopBatch]] | None = {} if keeps_hops else None
        self._room = 2 * max_live * (len(stops) - 1)

    @property
    def told(self) -> int:
        """Of how many probes the sender has told."""
        return self._live.told

    @property
    def live(self) -> int:
        """Probes that were told of and are not settled."""
        return max(self.told - self._next * self._live.span, 0)

    def sent(self, first: int, times_ns: Times, stamped: Flags | None = None) -> None:
        """What was sent, in the order of the probes' numbers.

        Args:
            first: number of the first probe told about: `told`.
            times_ns: shape (n,), int64; 0 for unsent.
            stamped: shape (n,); which times are the sender's own stamps, from which delays may be counted. None: all.

        Raises:
            UsageError: a probe is left out, told again, or was never planned.
        """
        live, end = self._live, first + len(times_ns)
        if first != live.told or end > live.count:
            told = f"probes {first} to {end - 1} were told"
            raise UsageError("windows", told, allowed=f"from {live.told} on, below {live.count}")
        for window in range(first // live.span, -(-end // live.span)):
            start = window * live.span
            low, high = max(first, start), min(end, start + live.span)
            times = times_ns[low - first : high - first]
            self._until_ns[window] = max(self._until_ns[window], times.max(initial=0))
            if live.open(window):
                stamps = None if stamped is None else stamped[low - first : high - first]
                live.sent(window, slice(low - start, high - start), times, stamps)
            else:
                self._shed_sent[window] += int(np.count_nonzero(times > 0))
        live.told = end

    def blind(self, window: BlindWindow) -> None:
        """When a point may have lost sight of probes."""
        self._blind.append(window)

    def feed(self, hops: HopBatch) -> None:
        """More records of this leg of this session, those of one point in the order in which they came."""
        shift = self._live.renumber()
        if shift:
            for (first, _), overtaking in self._overtaking.items():
                overtaking.renumber(shift if first else 0, shift)
        for low in range(0, len(hops), BLOCK):
            block = HopBatch(hops.rows[low : low + BLOCK])
            strays = self._live.put(block)
            if strays is not None:
                self._take_strays(strays)
            if self._kept is not None:
                self._keep(block, self._kept)

    def _keep(self, block: HopBatch, kept: dict[int, list[HopBatch]]) -> None:
        windows = block.seq // np.uint32(self._live.span)
        for window in np.unique(windows).tolist():
            if window >= self._live.windows or self._live.slot[window] < 0:
                continue
            mine = block.where(windows == window)
            if len(mine) > self._room:
                self.counters["hops_shed"] += len(mine)
                continue
            self._room -= len(mine)
            kept.setdefault(window, []).append(mine)

    def _take_strays(self, strays: Strays) -> None:
        """A lost probe that comes after all to where it was missed, or further, is late."""
        self.counters["after_close"] += len(strays.seq)
        windows = strays.seq // self._live.span
        for window in np.unique(windows).tolist():
            first_missing = self._lost.get(window)
            if first_missing is not None:
                here = windows == window
                place = strays.seq[here] - window * self._live.span
                came = np.unique(place[(first_missing[place] >= 0) & (strays.stop[here] >= first_missing[place])])
                self.totals.late += len(came)
                first_missing[came] = -1

    def advance(self, watermark_ns: int) -> list[ClosedWindow]:
        """Settle the windows whose waiting time is over.

        Args:
            watermark_ns: everything before was told.
        """
        live, closed = self._live, []
        while self._next < live.windows:
            window = self._next
            is_told = live.told_of(window) == live.size_of(window)
            if not is_told or int(self._until_ns[window]) + live.tmax_ns >= watermark_ns:
                break
            one = self._settle(window, watermark_ns)
            if one is None:
                break
            closed.append(one)
        return closed

    def finish(self, now_ns: int, *, is_sender_lost: bool = False) -> list[ClosedWindow]:
        """Settle all that is left; what was not told about is unsent.

        Args:
            now_ns: the present; probes whose waiting time is not over are pending.
            is_sender_lost: nobody knows of the probes that were not told about: they are unobserved.
        """
        live, closed = self._live, []
        while self._next < live.windows:
            if live.slot[self._next] == NEW:
                fate = Fate.UNOBSERVED if is_sender_lost else Fate.UNSENT
                self.totals.add_untouched(fate, live.size_of(self._next))
                live.close(self._next)
                self._next += 1
            else:
                one = self._settle(self._next, now_ns, is_last=True, is_sender_lost=is_sender_lost)
                closed += [one] if one is not None else []
        return closed

    def _settle(
        self, window: int, now_ns: int, *, is_last: bool = False, is_sender_lost: bool = False
    ) -> ClosedWindow | None:
        """Settle the next window; None where a probe that its sender knows nothing of is not over yet."""
        live = self._live
        size, is_shed = live.size_of(window), live.slot[window] == SHED
        tables = nothing_of(self._shed_sent[window], size, len(self.stops)) if is_shed else live.tables(window, size)
        if not is_last and int(tables.deadline_ns.max()) >= now_ns:
            return None
        arrivals = tables.arrivals
        ledger = settle(
            arrivals,
            started=tables.left_ns > 0,
            blind=np.ones(arrivals.seen.shape, np.bool_) if is_shed else self._blindness(tables),
            deadline_ns=tables.deadline_ns,
            now_ns=now_ns,
            untold=np.arange(size) >= live.told_of(window) if is_sender_lost else None,
        )
        copies = known_copies(self.stops, arrivals, np.ones(size, np.int64))
        horizon_ns = self._horizon_ns(window, now_ns)
        self._blind = [w for w in self._blind if w.end_ns >= horizon_ns]
        reordered = {} if is_shed else self._reordered(window, arrivals, horizon_ns)
        leg = LegTables(self.stops, arrivals, ledger, copies, None, self.unwatched, reordered)
        self.totals.add(leg)
        self._remember_lost(window, arrivals, ledger)
        self._next += 1
        live.close(window)
        left = np.zeros(1, np.int64) if is_shed else tables.left_ns
        first = window * live.span
        return ClosedWindow(
            first=first,
            end=first + size,
            from_ns=int(left[left > 0].min(initial=np.iinfo(np.int64).max)) if left.any() else 0,
            until_ns=int(left.max()),
            result=leg_result(LegOutcome(self.stops, arrivals, ledger, segment_results(leg), end_to_end(leg))),
            is_shed=bool(is_shed),
            hops=self._hops_of(window),
        )

    def _hops_of(self, window: int) -> HopBatch | None:
        if self._kept is None:
            return None
        hops = HopBatch.concat(self._kept.pop(window, []))
        self._room += len(hops)
        return hops

    def _blindness(self, tables: WindowTables) -> Flags:
        """Where silence proves nothing: shape (stops, count). See collect.session, of which this is the simple case."""
        arrivals = tables.arrivals
        blind = np.zeros(arrivals.seen.shape, np.bool_)
        sent_ns = np.where(tables.sent_ns > 0, tables.sent_ns, NO_TIME)
        for i, stop in enumerate(self.stops):
            if not stop.is_observed_by_ring or stop.point.id in self.unwatched:
                blind[i] = True
                continue
            for window in self._blind:
                if window.point == self.points[i]:
                    earlier = np.maximum(arrivals.first_ns[:i].max(axis=0, initial=0), sent_ns)
                    blind[i] |= (window.end_ns >= earlier) & (window.start_ns <= tables.deadline_ns)
        return blind

    def _reordered(self, window: int, arrivals: Arrivals, horizon_ns: int) -> Mapping[Pair, int]:
        """How many probes of a window each segment reordered."""
        later = self._later(window, int(arrivals.first_ns.max()))
        return {
            pair: overtaking.count(
                _passings(arrivals, pair), Passings.concat([_passings(a, pair) for a in later]), horizon_ns
            )
            for pair, overtaking in self._overtaking.items()
        }

    def _later(self, window: int, until_ns: int) -> list[Arrivals]:
        """What is known of probes of later windows that were sent before this time; an empty table at the end."""
        live, found = self._live, []
        for other in range(window + 1, live.windows):
            if not live.told_of(other):
                break
            if live.slot[other] >= 0:
                sent_ns = live.sent_ns(other)
                before = np.flatnonzero((sent_ns > 0) & (sent_ns <= until_ns))
                if len(before):
                    found.append(live.tables(other, int(before[-1]) + 1).arrivals)
                elif sent_ns.any():
                    break
        return [*found, nothing_of(0, 0, len(self.stops)).arrivals]

    def _horizon_ns(self, window: int, now_ns: int) -> int:
        """No probe of a later window was sent before this time."""
        live = self._live
        for other in range(window + 1, live.windows):
            if not live.told_of(other):
                break
            if live.slot[other] >= 0:
                sent_ns = live.sent_ns(other)
                if sent_ns.any():
                    return int(sent_ns[sent_ns > 0].min())
        return now_ns

    def _remember_lost(self, window: int, arrivals: Arrivals, ledger: Ledger) -> None:
        """Where the lost probes of as many windows as may be live were missed, as long as they have not come late."""
        self._lost.pop(window - self._max_lost, None)
        first_missing = ledger.first_missing
        if first_missing.max(initial=-1) < 0:
            return
        beyond = np.arange(len(self.stops))[:, None] >= first_missing
        came_late = (arrivals.late & beyond).any(axis=0)
        self._lost[window] = np.where(came_late, -1, first_missing).astype(np.int8)


def _passings(arrivals: Arrivals, pair: Pair) -> Passings:
    both = np.flatnonzero((arrivals.number[pair[0]] >= 0) & (arrivals.number[pair[1]] >= 0))
    return passings_between(arrivals, *pair, both)
