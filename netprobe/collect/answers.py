"""What answers tell about a guest that has no report channel.

A STAMP reply carries T2 and T3 (RFC 8762 §4.3), so the probe's arrival at the reflector and the answer's departure are
hop records too. A missing reply does not prove forward loss; the stateful reflector's own sequence number can
(RFC 8762 §4.2: it counts what it reflects).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Flags, Times
from netprobe.collect.domains import Carried
from netprobe.model.points import Direction, Leg
from netprobe.model.records import NO_TIME, HopBatch


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one session's probes, as columns of shape (n,); a reply seen at several points counts once.

    Attributes:
        seq: uint32; the probe that is answered.
        t2_ns: int64; arrival at the reflector by its own clock, or NO_TIME (an echo reply, a SYN-ACK: presence without
            a time).
        t3_ns: int64; departure of the answer by the reflector's clock, or NO_TIME.
        reflector_seq: int64; the reflector's own sequence number, or -1.
        seen_ns: int64; when a point of ours first saw the answer.
        point: uint16; the points that saw it, where their clocks may differ: then these are sightings, and one answer
            may be there several times. None where all points share a clock.
    """

    seq: npt.NDArray[np.uint32]
    t2_ns: Times
    t3_ns: Times
    reflector_seq: Times
    seen_ns: Times
    point: npt.NDArray[np.uint16] | None = None

    @classmethod
    def none(cls) -> "Answers":
        """No answer."""
        times = np.empty(0, np.int64)
        return cls(np.empty(0, np.uint32), times, times, times, times)

    def where(self, mask: Flags) -> "Answers":
        """The answers for which `mask` (shape (n,), bool) holds."""
        return Answers(
            seq=self.seq[mask],
            t2_ns=self.t2_ns[mask],
            t3_ns=self.t3_ns[mask],
            reflector_seq=self.reflector_seq[mask],
            seen_ns=self.seen_ns[mask],
            point=None if self.point is None else self.point[mask],
        )

    def unique(self) -> "Answers":
        """The distinct answers among sightings of answers, each with the earliest time at which it was seen."""
        if not len(self.seq):
            return replace(self, point=None)
        table = np.stack([self.seq.astype(np.int64), self.t2_ns, self.t3_ns, self.reflector_seq], axis=1)
        by_time = np.argsort(self.seen_ns, kind="stable")
        rows, first = np.unique(table[by_time], axis=0, return_index=True)
        seq, t2_ns, t3_ns, number = (np.ascontiguousarray(column) for column in rows.T)
        return Answers(seq.astype(np.uint32), t2_ns, t3_ns, number, self.seen_ns[by_time][first])


def concat(parts: Sequence[Answers]) -> Answers:
    """All sightings of several points."""
    if not parts:
        return Answers.none()
    return Answers(
        np.concatenate([p.seq for p in parts]),
        np.concatenate([p.t2_ns for p in parts]),
        np.concatenate([p.t3_ns for p in parts]),
        np.concatenate([p.reflector_seq for p in parts]),
        np.concatenate([p.seen_ns for p in parts]),
        None
        if any(p.point is None for p in parts)
        else np.concatenate([p.point for p in parts if p.point is not None]),
    )


def by_one_clock(sightings: Answers, seen: Carried) -> tuple[Answers, Times]:
    """The distinct answers among sightings whose times have been carried over to one clock.

    Args:
        sightings: as points saw them.
        seen: when, by the one clock.

    Returns:
        The answers, and when each had been seen at the latest; NO_TIME where that is not known.
    """
    latest = np.where(seen.is_known, seen.t_ns + seen.error_ns, NO_TIME)
    order = np.lexsort((latest, ~seen.is_known))  # what is known first, then the earliest
    columns = (sightings.seq.astype(np.int64), sightings.t2_ns, sightings.t3_ns, sightings.reflector_seq)
    rows, first = np.unique(np.stack(columns, axis=1)[order], axis=0, return_index=True)
    seq, t2_ns, t3_ns, number = (np.ascontiguousarray(column) for column in rows.T)
    return Answers(seq.astype(np.uint32), t2_ns, t3_ns, number, seen.t_ns[order][first]), latest[order][first]


def guest_records(
    answers: Answers,
    *,
    session: int,
    guest: int,
    earliest_ns: Times,
    was_late: Flags,
    latest_ns: Times | None = None,
) -> tuple[HopBatch, int]:
    """The hop records at the answering guest: the probe in, the answer out.

    That the probe was there is proved by the answer. The guest's own times T2 and T3 are used only where they fit
    between ours (its clock may be another one); else presence has no time, unless the probe was late already before.

    Args:
        answers: distinct ones.
        session: the session's number.
        guest: index of the guest's point.
        earliest_ns: shape (count,); when each probe was last seen on its way to the guest, NO_TIME where unknown.
        was_late: shape (count,); the probe came late to a point before the guest, so it came late to the guest too.
        latest_ns: shape (n,); when each answer had been seen at the latest, by the guest's clock, NO_TIME where that is
            unknown; None: when it was seen.

    Returns:
        The records, and how many answers carried times that do not fit.
    """
    earliest = earliest_ns[answers.seq]
    has_times = (answers.t2_ns != NO_TIME) & (answers.t3_ns != NO_TIME)
    latest = answers.seen_ns if latest_ns is None else latest_ns
    is_ordered = (answers.t2_ns <= answers.t3_ns) & (answers.t3_ns <= latest)
    fits = has_times & (earliest != NO_TIME) & (earliest <= answers.t2_ns) & is_ordered
    otherwise = np.where(was_late[answers.seq], answers.seen_ns, NO_TIME)
    arrived = np.where(fits, answers.t2_ns, otherwise)
    left = np.where(fits, answers.t3_ns, otherwise)
    sessions = np.full(len(answers.seq), session, np.uint32)
    batches = []
    for t_ns, direction, leg in ((arrived, Direction.IN, Leg.FORWARD), (left, Direction.OUT, Leg.RETURN)):
        order = np.argsort(t_ns, kind="stable")  # records of one point stand in arrival order
        batches.append(
            HopBatch.from_columns(
                t_ns=t_ns[order],
                session=sessions,
                seq=answers.seq[order],
                point=guest,
                direction=int(direction),
                leg=int(leg),
            )
        )
    return HopBatch.concat(batches), int(np.count_nonzero(has_times & ~fits & (earliest != NO_TIME)))


def proved_unreflected(first_ns: Times, last_ns: Times, answers: Answers, reach_ns: int) -> Flags:
    """Probes that the reflector certainly never reflected, though no answer says so.

    A stateful reflector numbers what it reflects. Answers to probes that passed the last point well before this one
    have smaller numbers than it would have got, answers to those that passed well after it have larger ones. Where
    every number in between was seen, in answers to others, none is left for this probe: it was lost before the
    reflector. A number that nobody saw proves nothing (its answer may be what was lost), and neither do numbers that
    are the probes' own: a stateless reflector copies those. Such probes stay unobserved.

    Args:
        first_ns: shape (count,); first arrival of each probe at the last point that looks before the reflector, or
            NO_TIME.
        last_ns: shape (count,); last arrival there, of duplicates too.
        answers: all answers seen.
        reach_ns: how long a probe may take from that point to the reflector, at most.

    Returns:
        Shape (count,), bool.
    """
    flags = np.zeros(len(first_ns), np.bool_)
    numbered = (answers.reflector_seq >= 0) & (first_ns[answers.seq] != NO_TIME)
    seqs, numbers = answers.seq[numbered], answers.reflector_seq[numbered]
    silent = first_ns != NO_TIME
    silent[answers.seq] = False
    is_stateful = bool((numbers != seqs).any())
    if not is_stateful or not silent.any():
        return flags
    by_last = np.argsort(last_ns[seqs], kind="stable")
    largest_until = np.concatenate([[-1], np.maximum.accumulate(numbers[by_last])])  # a session starts at 0
    by_first = np.argsort(first_ns[seqs], kind="stable")
    smallest_from = np.minimum.accumulate(numbers[by_first][::-1])[::-1]
    before = np.searchsorted(last_ns[seqs][by_last], first_ns[silent] - reach_ns, side="left")
    behind = np.searchsorted(first_ns[seqs][by_first], last_ns[silent] + reach_ns, side="right")
    has_end = behind < len(seqs)
    low = largest_until[before]
    high = smallest_from[np.minimum(behind, len(seqs) - 1)]
    seen = np.unique(answers.reflector_seq[answers.reflector_seq >= 0])
    between = np.searchsorted(seen, high, side="left") - np.searchsorted(seen, low, side="right")
    flags[silent] = has_end & (high > low) & (between == high - low - 1)
    return flags


def timed(values_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Times as a decoder gives them (0 for none) as hop records want them (NO_TIME for none)."""
    return np.where(values_ns > 0, values_ns, NO_TIME)
