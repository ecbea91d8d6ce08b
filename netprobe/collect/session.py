"""One session from hop records to outcome: both legs, their ledgers and segments. Pure; called by service.run.

The data flow of a leg: arrivals (scatter) -> blindness (what silence proves) -> ledger (fates) -> segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netprobe.collect.answers import Answers, guest_records, proved_unreflected
from netprobe.collect.arrivals import Arrivals, Flags, Times, tabulate
from netprobe.collect.ledger import Fate, Ledger, settle
from netprobe.collect.segments import LegTables, end_to_end, known_copies, segment_results
from netprobe.model.points import Leg, Path, Stop
from netprobe.model.records import NO_TIME, HopBatch
from netprobe.model.results import SegmentResult


@dataclass(frozen=True, slots=True)
class BlindWindow:
    """A time in which a point may have lost sight of probes (its ring overflowed), ns."""

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
        clock_doubts: answers whose T2 and T3 do not fit our own times: the guest's clock is another one, or wrong.
    """

    forward: LegOutcome
    returned: LegOutcome | None
    forged: int
    clock_doubts: int


@dataclass(frozen=True, slots=True)
class SessionInput:
    """Everything that is known of a session when it is settled.

    Attributes:
        session: its number.
        path: its stops; stop 0 of the forward leg is where it is sent.
        point_index: index of each point id, as in the hop records.
        sent_ns: shape (count,), int64; when each probe was sent by this host's clock, 0 for unsent.
        sender_ns: shape (count,), int64; the sender's own stamp, 0 where there is none that can be used.
        tmax_ns: waiting time of a probe and of its answer, from the sending of the probe.
        now_ns: the present.
        hops: verified records of this session, rings and guests alike.
        answers: its answers.
        windows: when points may have lost sight.
        unwatched: ids of points where nobody looked.
        is_numbered: the session has one 5-tuple, so that a stateful reflector counts its probes in one row.
        untold: shape (count,), bool; nobody knows whether these left (their sender was lost); None for none.
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


@dataclass(frozen=True, slots=True)
class Clock:
    """When each probe left, for certain, and when its waiting time is over: shape (count,) each."""

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
        earlier = arrivals.first_ns[:i].max(axis=0, initial=0)
        for window in given.windows:
            if window.point == point:
                blind[i] |= (window.end_ns >= earlier) & (window.start_ns <= deadline_ns)
    return blind


def _tabulate(given: SessionInput, hops: HopBatch, leg: Leg, deadline_ns: Times) -> Arrivals:
    stops = [(given.point_index[s.point.id], int(s.direction)) for s in given.path.leg(leg)]
    return tabulate(hops.where(hops.leg == leg), stops, deadline_ns)


def _outcome(stops: tuple[Stop, ...], arrivals: Arrivals, ledger: Ledger, base: Times) -> LegOutcome:
    leg = LegTables(stops, arrivals, ledger, known_copies(stops, arrivals, base))
    return LegOutcome(stops, arrivals, ledger, segment_results(leg), end_to_end(leg))


def _reach_ns(forward: Arrivals, returned: Arrivals | None) -> int:
    """How long a probe may take from the last ring to the reflector: twice the slowest turnaround that was seen."""
    if returned is None or len(forward.first_ns) < 2:
        return 0
    there, back = forward.first_ns[-2], returned.first_ns[1]
    both = (there != NO_TIME) & (back != NO_TIME)
    return 2 * int((back[both] - there[both]).max(initial=0))


def _stamp_sending(given: SessionInput, arrivals: Arrivals) -> None:
    """Stop 0 is where probes are sent: known from the sender, not from records."""
    times = given.sender_ns
    arrivals.first_ns[0] = np.where(times > 0, times, NO_TIME)
    arrivals.order[0][np.argsort(times, kind="stable")] = np.arange(len(times))
    arrivals.order[0][times <= 0] = -1


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
        now_ns=given.now_ns,
        untold=given.untold,
    )
    return _outcome(stops, arrivals, ledger, np.ones(len(blind[0]), np.int64))


def _returned(given: SessionInput, arrivals: Arrivals, deadline_ns: Times, forward: LegOutcome) -> LegOutcome:
    stops = given.path.returned
    blind = _blindness(given, stops, arrivals, deadline_ns)
    delivered = forward.ledger.fate == Fate.DELIVERED
    ledger = settle(arrivals, started=delivered, blind=blind, deadline_ns=deadline_ns, now_ns=given.now_ns)
    return _outcome(stops, arrivals, ledger, forward.arrivals.copies[-2])


def _clock(given: SessionInput) -> Clock:
    """A probe that some point saw was sent, whatever became of its sender's report."""
    count = len(given.sent_ns)
    earliest = np.full(count, np.iinfo(np.int64).max)
    ours = given.hops.where((given.hops.seq < count) & (given.hops.t_ns != NO_TIME))
    np.minimum.at(earliest, ours.seq, ours.t_ns)
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
    doubts = 0
    hops = given.hops
    if given.path.returned and len(given.answers.seq):
        records, doubts = guest_records(
            given.answers,
            session=given.session,
            guest=given.point_index[given.path.forward[-1].point.id],
            earliest_ns=np.maximum(there.first_ns[-2], np.where(given.sender_ns > 0, given.sender_ns, NO_TIME)),
            was_late=np.asarray(there.late.any(axis=0)),
        )
        hops = HopBatch.concat([hops, records])
        there = _tabulate(given, hops, Leg.FORWARD, clock.deadline_ns)
    back = _tabulate(given, hops, Leg.RETURN, clock.deadline_ns) if given.path.returned else None
    _stamp_sending(given, there)
    forward = _forward(given, there, clock, _reach_ns(there, back))
    if back is None:
        return SessionOutcome(forward, None, there.forged, doubts)
    returned = _returned(given, back, clock.deadline_ns, forward)
    return SessionOutcome(forward, returned, there.forged + back.forged, doubts)
