"""One session from hop records to outcome: both legs, their ledgers and segments. Pure; called by service.run.

The data flow of a leg: arrivals (scatter) -> blindness (what silence proves) -> ledger (fates) -> segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netprobe.collect.answers import Answers, proved_unreflected
from netprobe.collect.arrivals import Arrivals, Flags, Times, tabulate
from netprobe.collect.ledger import Fate, Ledger, settle
from netprobe.collect.segments import end_to_end, segment_results
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
    """

    forward: LegOutcome
    returned: LegOutcome | None
    forged: int


@dataclass(frozen=True, slots=True)
class SessionInput:
    """Everything that is known of a session when it is settled.

    Attributes:
        session: its number.
        path: its stops; stop 0 of the forward leg is where it is sent.
        point_index: index of each point id, as in the hop records.
        sent_ns: shape (count,), int64; when each probe was sent, 0 for unsent.
        tmax_ns: waiting time of a probe and of its answer, from the sending of the probe.
        now_ns: the present.
        hops: verified records of this session, rings and guests alike.
        answers: its answers.
        windows: when points may have lost sight.
        unwatched: ids of points where nobody looked.
    """

    session: int
    path: Path
    point_index: Mapping[str, int]
    sent_ns: Times
    tmax_ns: int
    now_ns: int
    hops: HopBatch
    answers: Answers
    windows: Sequence[BlindWindow] = ()
    unwatched: frozenset[str] = frozenset()


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


def _outcome(stops: tuple[Stop, ...], arrivals: Arrivals, ledger: Ledger) -> LegOutcome:
    segments = segment_results(stops, arrivals, ledger)
    return LegOutcome(stops, arrivals, ledger, segments, end_to_end(stops, arrivals, ledger))


def _forward(given: SessionInput, hops: HopBatch, deadline_ns: Times) -> tuple[LegOutcome, int]:
    stops = given.path.forward
    arrivals = _tabulate(given, hops, Leg.FORWARD, deadline_ns)
    arrivals.first_ns[0] = np.where(given.sent_ns > 0, given.sent_ns, NO_TIME)
    by_time = np.argsort(given.sent_ns, kind="stable")
    arrivals.order[0][by_time] = np.arange(len(by_time))
    arrivals.order[0][given.sent_ns == 0] = -1
    blind = _blindness(given, stops, arrivals, deadline_ns)
    if len(stops) > 1 and not stops[-1].is_observed_by_ring:
        before = len(stops) - 2
        here = np.flatnonzero(arrivals.order[before] >= 0)
        arrived = here[np.argsort(arrivals.order[before][here], kind="stable")]
        blind[-1] &= ~proved_unreflected(arrived, given.answers, len(deadline_ns))
    ledger = settle(arrivals, started=given.sent_ns > 0, blind=blind, deadline_ns=deadline_ns, now_ns=given.now_ns)
    return _outcome(stops, arrivals, ledger), arrivals.forged


def _returned(given: SessionInput, hops: HopBatch, deadline_ns: Times, delivered: Flags) -> tuple[LegOutcome, int]:
    stops = given.path.returned
    arrivals = _tabulate(given, hops, Leg.RETURN, deadline_ns)
    blind = _blindness(given, stops, arrivals, deadline_ns)
    ledger = settle(arrivals, started=delivered, blind=blind, deadline_ns=deadline_ns, now_ns=given.now_ns)
    return _outcome(stops, arrivals, ledger), arrivals.forged


def settle_session(given: SessionInput) -> SessionOutcome:
    """Settle both legs of a session.

    The return leg's ledger plans one answer for each delivered probe; its waiting time ends with the probe's own.
    """
    hops = given.hops
    if given.path.returned and len(given.answers.seq):
        guest = given.point_index[given.path.forward[-1].point.id]
        hops = HopBatch.concat([hops, given.answers.hop_records(given.session, guest)])
    deadline_ns = np.where(given.sent_ns > 0, given.sent_ns + given.tmax_ns, 0)
    forward, forged = _forward(given, hops, deadline_ns)
    if not given.path.returned:
        return SessionOutcome(forward, None, forged)
    delivered = forward.ledger.fate == Fate.DELIVERED
    returned, more = _returned(given, hops, deadline_ns, delivered)
    return SessionOutcome(forward, returned, forged + more)
