"""What answers tell about a guest that has no report channel.

A STAMP reply carries T2 and T3 (RFC 8762 §4.3), so the probe's arrival at the reflector and the answer's departure are
hop records too. A missing reply does not prove forward loss; the stateful reflector's own sequence number can
(RFC 8762 §4.2: it counts what it reflects).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Flags, Times
from netprobe.model.points import Direction, Leg
from netprobe.model.records import NO_TIME, HopBatch


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one session's probes, as columns of shape (n,); a reply seen at several points counts once.

    Attributes:
        seq: uint32; the probe that is answered.
        t2_ns: int64; arrival at the reflector, or NO_TIME (an echo reply, a SYN-ACK: presence without a time).
        t3_ns: int64; departure of the answer, or NO_TIME.
        reflector_seq: int64; the reflector's own sequence number, or -1.
    """

    seq: npt.NDArray[np.uint32]
    t2_ns: npt.NDArray[np.int64]
    t3_ns: npt.NDArray[np.int64]
    reflector_seq: npt.NDArray[np.int64]

    @classmethod
    def unique(
        cls,
        seq: npt.NDArray[np.uint32],
        t2_ns: npt.NDArray[np.int64],
        t3_ns: npt.NDArray[np.int64],
        reflector_seq: npt.NDArray[np.int64],
    ) -> "Answers":
        """The distinct answers among sightings of answers."""
        if not len(seq):
            return cls(seq, t2_ns, t3_ns, reflector_seq)
        table = np.stack([seq.astype(np.int64), t2_ns, t3_ns, reflector_seq], axis=1)
        rows = np.unique(table, axis=0)
        columns = (np.ascontiguousarray(column) for column in rows.T)
        first, second, third, fourth = columns
        return cls(first.astype(np.uint32), second, third, fourth)

    def hop_records(self, session: int, guest: int) -> HopBatch:
        """The hop records at the answering guest: the probe in, the answer out.

        Args:
            session: the session's number.
            guest: index of the guest's point.
        """
        sessions = np.full(len(self.seq), session, np.uint32)
        # In order of time, since records of one point stand in arrival order.
        arrived, left = np.argsort(self.t2_ns, kind="stable"), np.argsort(self.t3_ns, kind="stable")
        return HopBatch.concat(
            HopBatch.from_columns(
                t_ns=t_ns[order],
                session=sessions,
                seq=self.seq[order],
                point=guest,
                direction=int(direction),
                leg=int(leg),
            )
            for t_ns, order, direction, leg in (
                (self.t2_ns, arrived, Direction.IN, Leg.FORWARD),
                (self.t3_ns, left, Direction.OUT, Leg.RETURN),
            )
        )


def proved_unreflected(first_ns: Times, last_ns: Times, answers: Answers, reach_ns: int) -> Flags:
    """Probes that the reflector certainly never reflected, though no answer says so.

    A stateful reflector numbers what it reflects. Answers to probes that passed the last point well before this one
    have smaller numbers than it would have got, answers to those that passed well after it have larger ones. Where every
    number in between was seen, in answers to others, none is left for this probe: it was lost before the reflector. A
    number that nobody saw proves nothing (its answer may be what was lost, and a stateless reflector copies our own
    numbers); such probes stay unobserved.

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
    if not len(seqs) or not silent.any():
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
