"""One session from hop records to outcome: both legs, their ledgers and segments. Pure; called by service.run.

The data flow of a leg: arrivals (scatter) -> blindness (what silence proves) -> ledger (fates) -> segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from netprobe.collect.answers import Answers, by_one_clock, guest_records, proved_unreflected
from netprobe.collect.arrivals import Arrivals, Flags, Times, tabulate
from netprobe.collect.clock_rows import UNBOUNDED_NS
from netprobe.collect.domains import Carried, ClockMap
from netprobe.collect.ledger import Fate, Ledger, settle
from netprobe.collect.segments import LegTables, end_to_end, known_copies, segment_results
from netprobe.model.points import Leg, Path, Point, Stop
from netprobe.model.records import NO_TIME, HopBatch
from netprobe.model.results import SegmentResult


@dataclass(frozen=True, slots=True)
class BlindWindow:
    """A time in which a point may have lost sight of probes (its ring overflowed), ns by the point's own clock."""

    point: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class LegOutcome:
    """What became of one leg."""

    stops: tuple[Stop, ...]
    arrivals: Arrivals
    ledger: Ledger
    segments: tuple[SegmentResult, ...]
    end_to_end: SegmentResult


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """What became of one session.

    Attributes:
        returned: None where no answer is expected.
        forged: records off the session's path.
        imitated: probes that somebody else answered in the guest's name.
        clock_doubts: answers whose T2 and T3 do not fit our own times: the guest's clock is another one, or wrong.
    """

    forward: LegOutcome
    returned: LegOutcome | None
    forged: int
    clock_doubts: int
    imitated: int = 0


@dataclass(frozen=True, slots=True)
class SessionInput:
    """Everything that is known of a session when it is settled.

    Attributes:
        session: its number.
        path: its stops; stop 0 of the forward leg is where it is sent.
        point_index: index of each point id, as in the hop records.
        sent_ns: shape (count,), int64; when each probe was sent by the sending host's clock, 0 for unsent.
        sender_ns: shape (count,), int64; the sender's own stamp, by the clock of its point (a virtual machine's is its
            own), 0 where there is none that can be used.
        tmax_ns: waiting time of a probe and of its answer, from the sending of the probe.
        now_ns: the present, by the clock that is the reference of `clocks`.
        hops: verified records of this session, rings and guests alike, by their points' own clocks.
        answers: its answers; with `clocks` sightings, each with its point.
        windows: when points may have lost sight.
        unwatched: ids of points where nobody looked.
        is_numbered: the session has one 5-tuple, so that a stateful reflector counts its probes in one row.
        untold: shape (count,), bool; nobody knows whether these left (their sender was lost); None for none.
        clocks: whose clock stamps where, and how far they are apart; None: one clock stamps everywhere.
    """

    session: int
    path: Path
    point_index: Mapping[str, int]
    sent_ns: Times
    sender_ns: Times
    tmax_ns: int
    now_ns: int
    hops: HopBatch
    answers: Answers
    windows: Sequence[BlindWindow] = ()
    unwatched: frozenset[str] = frozenset()
    is_numbered: bool = True
    untold: Flags | None = None
    clocks: ClockMap | None = None

    @property
    def sender(self) -> Point:
        """Where it is sent."""
        return self.path.forward[0].point

    def by_keeper(self, t_ns: Times, source: Point) -> Carried:
        """Times of a point's clock as the sending host's clock shows them, which decides what is late."""
        if self.clocks is None:
            return Carried(t_ns, np.zeros_like(t_ns))
        return self.clocks.convert(t_ns, self.clocks.domain(source), self.clocks.keeper(self.sender))

    def from_keeper(self, t_ns: Times, target: Point) -> Carried:
        """Times of the sending host's clock as a point's clock shows them."""
        if self.clocks is None:
            return Carried(t_ns, np.zeros_like(t_ns))
        return self.clocks.convert(t_ns, self.clocks.keeper(self.sender), self.clocks.domain(target))

    def carried(self, t_ns: Times, source: Point, target: Point) -> Carried:
        """Times of one point's clock as another point's clock shows them."""
        if self.clocks is None:
            return Carried(t_ns, np.zeros_like(t_ns))
        return self.clocks.convert(t_ns, self.clocks.domain(source), self.clocks.domain(target))

    @property
    def points(self) -> dict[int, Point]:
        """The points of both legs by index."""
        stops = (*self.path.forward, *self.path.returned)
        return {self.point_index[s.point.id]: s.point for s in stops}

    def is_on_path(self, hops: HopBatch) -> Flags:
        """Records of points of the path, shape (n,): others prove nothing, whoever reports them."""
        return np.isin(hops.point, np.array(list(self.points), np.uint16))


@dataclass(frozen=True, slots=True)
class Clock:
    """When each probe left, for certain, and when its waiting time is over, by the sending host's clock: (count,)."""

    started: Flags
    deadline_ns: Times


def _blindness(given: SessionInput, stops: Sequence[Stop], arrivals: Arrivals, deadline_ns: Times) -> Flags:
    """Where silence proves nothing: shape (stops, count).

    Only a ring that was open and did not overflow between the probe's last sighting and its deadline can say "no".
    """
    blind = np.zeros(arrivals.seen.shape, np.bool_)
    for i, stop in enumerate(stops):
        point = given.point_index[stop.point.id]
        if not stop.is_observed_by_ring or stop.point.id in given.unwatched:
            blind[i] = True
            continue
        windows = [w for w in given.windows if w.point == point]
        if not windows:
            continue
        earlier, until = _looked_for(given, stops, i, arrivals, deadline_ns)
        for window in windows:
            blind[i] |= (window.end_ns >= earlier) & (window.start_ns <= until)
    return blind


def _looked_for(
    given: SessionInput, stops: Sequence[Stop], i: int, arrivals: Arrivals, deadline_ns: Times
) -> tuple[Times, Times]:
    """From when until when stop `i` had to look out for each probe, by its own clock: at least that."""
    left_ns = np.where(given.sent_ns > 0, given.sent_ns, NO_TIME)
    if given.clocks is None:
        return np.maximum(arrivals.first_ns[:i].max(axis=0, initial=0), left_ns), deadline_ns
    here = stops[i].point
    earlier = np.zeros_like(deadline_ns)
    before = [given.carried(t_ns, s.point, here) for t_ns, s in zip(arrivals.first_ns[:i], stops, strict=False)]
    for seen in (given.from_keeper(left_ns, here), *before):
        earlier = np.maximum(earlier, np.where(seen.is_known, seen.t_ns - seen.error_ns, 0))
    until = given.from_keeper(deadline_ns, here)
    return earlier, np.where(until.is_known, until.t_ns + until.error_ns, UNBOUNDED_NS)


def _late(given: SessionInput, hops: HopBatch, deadline_ns: Times, was_late: Flags | None) -> Flags | None:
    """Which records came after their probe's deadline; None: compare as they are, one clock stamped all.

    A time that cannot be carried over to the sending host's clock is no proof of lateness; at the guest it is one for
    probes that were late before (`was_late`).
    """
    if given.clocks is None:
        return None
    late = np.zeros(len(hops), np.bool_)
    seq = np.minimum(hops.seq, len(deadline_ns) - 1)
    for index, point in given.points.items():
        here = np.flatnonzero(hops.point == index)
        came = given.by_keeper(hops.t_ns[here], point)
        late[here] = (came.t_ns > deadline_ns[seq[here]]) & came.is_known
        if was_late is not None and point == given.path.forward[-1].point:
            late[here] |= (came.t_ns != NO_TIME) & ~came.is_known & was_late[seq[here]]
    return late


def _tabulate(
    given: SessionInput, hops: HopBatch, leg: Leg, deadline_ns: Times, was_late: Flags | None = None
) -> Arrivals:
    stops = [(given.point_index[s.point.id], int(s.direction)) for s in given.path.leg(leg)]
    mine = hops.where(hops.leg == leg)
    return tabulate(mine, stops, deadline_ns, _late(given, mine, deadline_ns, was_late))


def _outcome(given: SessionInput, leg_name: Leg, arrivals: Arrivals, ledger: Ledger, base: Times) -> LegOutcome:
    stops = given.path.leg(leg_name)
    leg = LegTables(stops, arrivals, ledger, known_copies(stops, arrivals, base), given.clocks, given.unwatched)
    return LegOutcome(stops, arrivals, ledger, segment_results(leg), end_to_end(leg))


def _now_ns(given: SessionInput) -> int:
    """The present by the sending host's clock."""
    if given.clocks is None:
        return given.now_ns
    now = given.clocks.convert(np.array([given.now_ns]), given.clocks.reference, given.clocks.keeper(given.sender))
    return int(now.t_ns[0])


def _reach_ns(given: SessionInput, forward: Arrivals, returned: Arrivals | None) -> int:
    """How long a probe may take from the last ring to the reflector: twice the slowest turnaround that was seen."""
    if returned is None or len(forward.first_ns) < 2:
        return 0
    there, first_back = forward.first_ns[-2], given.path.returned[1].point
    back = given.carried(returned.first_ns[1], first_back, given.path.forward[-2].point)
    both = (there != NO_TIME) & (back.t_ns != NO_TIME) & back.is_known
    return 2 * int((back.t_ns[both] - there[both]).max(initial=0))


def _forward(given: SessionInput, arrivals: Arrivals, clock: Clock, reach_ns: int) -> LegOutcome:
    stops = given.path.forward
    blind = _blindness(given, stops, arrivals, clock.deadline_ns)
    if not stops[-1].is_observed_by_ring and given.is_numbered:
        first_ns, last_ns = arrivals.first_ns[-2], arrivals.last_ns[-2]
        blind[-1] &= ~proved_unreflected(first_ns, last_ns, given.answers, reach_ns)
    if not stops[-1].is_observed_by_ring:
        blind[-1] &= ~arrivals.late[-1]  # its late arrival says that it had not come in time
    ledger = settle(
        arrivals,
        started=clock.started,
        blind=blind,
        deadline_ns=clock.deadline_ns,
        now_ns=_now_ns(given),
        untold=given.untold,
        answered=_answered(given),
    )
    return _outcome(given, Leg.FORWARD, arrivals, ledger, np.ones(len(blind[0]), np.int64))


def _answered(given: SessionInput) -> Flags:
    """Probes that something came back for, if only an error: no use in waiting for them any longer; shape (count,)."""
    flags = np.zeros(len(given.sent_ns), np.bool_)
    back = (given.hops.leg == Leg.RETURN) & (given.hops.seq < len(flags)) & given.is_on_path(given.hops)
    flags[given.hops.seq[back]] = True
    return flags


def _returned(given: SessionInput, arrivals: Arrivals, deadline_ns: Times, forward: LegOutcome) -> LegOutcome:
    stops = given.path.returned
    blind = _blindness(given, stops, arrivals, deadline_ns)
    delivered = forward.ledger.fate == Fate.DELIVERED
    ledger = settle(arrivals, started=delivered, blind=blind, deadline_ns=deadline_ns, now_ns=_now_ns(given))
    return _outcome(given, Leg.RETURN, arrivals, ledger, forward.arrivals.copies[-2].astype(np.int64))


def _clock(given: SessionInput) -> Clock:
    """A probe that some point of its path saw was sent, whatever became of its sender's report."""
    count = len(given.sent_ns)
    earliest = np.full(count, np.iinfo(np.int64).max)
    ours = given.hops.where((given.hops.seq < count) & (given.hops.t_ns != NO_TIME) & given.is_on_path(given.hops))
    t_ns = ours.t_ns
    for index, point in given.points.items() if given.clocks is not None else ():
        here = np.flatnonzero(ours.point == index)
        t_ns[here] = given.by_keeper(t_ns[here], point).t_ns
    np.minimum.at(earliest, ours.seq, t_ns)
    reported = given.sent_ns > 0
    was_seen = earliest < np.iinfo(np.int64).max
    left = np.where(reported, given.sent_ns, np.where(was_seen, earliest, 0))
    return Clock(reported | was_seen, np.where(left > 0, left + given.tmax_ns, 0))


def settle_session(given: SessionInput) -> SessionOutcome:
    """Settle both legs of a session.

    The return leg's ledger plans one answer for each delivered probe; its waiting time ends with the probe's own.
    """
    clock = _clock(given)
    there = _tabulate(given, given.hops, Leg.FORWARD, clock.deadline_ns)
    doubts, was_late, imitated = 0, None, 0
    hops = given.hops
    if given.path.returned and len(given.answers.seq):
        given, imitated = _without_imitations(given, there, clock.deadline_ns)
        answers, latest_ns = _answers(given)
        given = replace(given, answers=answers)
        was_late = np.asarray(there.late.any(axis=0))
        records, doubts = guest_records(
            answers,
            session=given.session,
            guest=given.point_index[given.path.forward[-1].point.id],
            earliest_ns=_before_guest(given, there),
            was_late=was_late,
            latest_ns=latest_ns,
        )
        hops = HopBatch.concat([hops, records])
        there = _tabulate(given, hops, Leg.FORWARD, clock.deadline_ns, was_late)
    back = _tabulate(given, hops, Leg.RETURN, clock.deadline_ns, was_late) if given.path.returned else None
    there.stamp_first_stop(given.sender_ns, given.sender_ns > 0)
    forward = _forward(given, there, clock, _reach_ns(given, there, back))
    if back is None:
        return SessionOutcome(forward, None, there.forged, doubts, imitated)
    returned = _returned(given, back, clock.deadline_ns, forward)
    return SessionOutcome(forward, returned, there.forged + back.forged, doubts, imitated)


def _without_imitations(given: SessionInput, there: Arrivals, deadline_ns: Times) -> tuple[SessionInput, int]:
    """Leave out answers that somebody else gave in the guest's name, and count them.

    An ACL's `reject` sends RSTs, and an agent on the way may say that it saw an answer that never was. So an answer
    proves presence only where the guest's port saw the probe or the answer, or where nobody could look there; one that
    bears the guest's own times does so everywhere, as long as one program saw it all.
    """
    stops, returned = given.path.forward, given.path.returned
    if len(stops) < 3 or len(returned) < 2:
        return given, 0
    seen = there.seen[-2] | there.late[-2] | _blindness(given, stops, there, deadline_ns)[-2]
    port = given.point_index[returned[1].point.id]
    hops = given.hops
    out_of_it = (hops.leg == Leg.RETURN) & (hops.point == port) & (hops.direction == returned[1].direction)
    out_of_it &= hops.seq < len(seen)
    seen[hops.seq[out_of_it]] = True
    answers = given.answers
    if answers.point is None:
        is_real = seen[answers.seq] | (answers.t2_ns != NO_TIME)
    else:
        seen[answers.seq[answers.point == port]] = True
        is_real = seen[answers.seq]
    imitated = len(np.unique(answers.seq[~is_real]))
    return (given, 0) if is_real.all() else (replace(given, answers=answers.where(is_real)), imitated)


def _answers(given: SessionInput) -> tuple[Answers, Times | None]:
    """The distinct answers, and when each had been seen at the latest by the guest's clock, None: when it was seen."""
    sightings = given.answers
    if given.clocks is None or sightings.point is None:
        return sightings if sightings.point is None else sightings.unique(), None
    guest = given.path.forward[-1].point
    seen, error = np.empty_like(sightings.seen_ns), np.empty_like(sightings.seen_ns)
    for index in np.unique(sightings.point).tolist():
        here = sightings.point == index
        seen[here], error[here] = sightings.seen_ns[here], UNBOUNDED_NS  # off this path: by whatever clock
        if index in given.points:
            by_guest = given.carried(sightings.seen_ns[here], given.points[index], guest)
            seen[here], error[here] = by_guest.t_ns, by_guest.error_ns
    return by_one_clock(sightings, Carried(seen, error))


def _before_guest(given: SessionInput, there: Arrivals) -> Times:
    """When each probe was last seen on its way to the guest, by the guest's clock, at the earliest; else NO_TIME."""
    sent_ns = np.where(given.sender_ns > 0, given.sender_ns, NO_TIME)
    *_, before, guest = given.path.forward
    times = []
    for t_ns, point in ((there.first_ns[-2], before.point), (sent_ns, given.sender)):
        seen = given.carried(t_ns, point, guest.point)
        times.append(np.where((t_ns != NO_TIME) & seen.is_known, seen.t_ns - seen.error_ns, NO_TIME))
    return np.maximum(*times)
