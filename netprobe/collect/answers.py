"""What answers tell about a guest that has no report channel.

A STAMP reply carries T2 and T3 (RFC 8762 §4.3), so the probe's arrival at the reflector and the answer's departure are
hop records too. A missing reply does not prove forward loss; the stateful reflector's own sequence number can
(RFC 8762 §4.2: it counts what it reflects).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Flags
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


def proved_unreflected(arrived: npt.NDArray[np.int64], answers: Answers, count: int) -> Flags:
    """Probes that the reflector certainly never reflected, though no answer says so.

    Between two answered probes whose reflector sequence numbers leave no gap that was not seen, the reflector answered
    nothing: every unanswered probe between them was lost before it. A gap proves nothing (the answer may be what was
    lost, and a stateless reflector copies our own numbers), so those stay unobserved.

    Args:
        arrived: shape (m,); seqs in order of arrival at the last point that looked before the reflector.
        answers: all answers seen.
        count: probes in the session.

    Returns:
        Shape (count,), bool.
    """
    flags = np.zeros(count, np.bool_)
    numbered = answers.reflector_seq >= 0
    if not len(arrived) or not numbered.any():
        return flags
    own = np.full(count, -1, np.int64)
    back = slice(None, None, -1)  # the first answer to a probe wins
    order = np.argsort(answers.reflector_seq[numbered], kind="stable")[back]
    own[answers.seq[numbered][order]] = answers.reflector_seq[numbered][order]
    seen = np.unique(answers.reflector_seq[numbered])
    answered = np.flatnonzero(own[arrived] >= 0)
    if not len(answered):
        return flags
    numbers = own[arrived[answered]]
    rank = np.searchsorted(seen, numbers)
    # Before the first answer: a session starts at 0.
    before = np.concatenate([[-1], numbers[:-1]])
    rank_before = np.concatenate([[-1], rank[:-1]])
    gap = (numbers - before - 1) - (rank - rank_before - 1)  # numbers in between that nobody saw
    is_tight = (gap == 0) & (numbers > before)
    position = np.arange(len(arrived))
    nearest = np.searchsorted(answered, position)  # index of the next answered probe
    inside = nearest < len(answered)
    silent = np.zeros(len(arrived), np.bool_)
    silent[inside] = is_tight[nearest[inside]]
    silent[answered] = False
    flags[arrived[silent]] = True
    return flags


def timed(values_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Times as a decoder gives them (0 for none) as hop records want them (NO_TIME for none)."""
    return np.where(values_ns > 0, values_ns, NO_TIME)
