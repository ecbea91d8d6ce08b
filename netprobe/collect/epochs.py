"""A session whose path changed on the way (a guest moved): each epoch has a path of its own, and is settled by itself.

Which epoch a probe belongs to is decided by when it was sent: from the moment on at which the new path was watched.
Numbers are dense from 0 within an epoch too, so an epoch is settled just as a session is. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netprobe.collect.answers import Answers
from netprobe.collect.arrivals import Times
from netprobe.collect.session import SessionInput
from netprobe.model.points import Path
from netprobe.model.records import HopBatch


@dataclass(frozen=True, slots=True)
class Epoch:
    """A time in which a session had one path.

    Attributes:
        from_ns: when the path began to be watched, by the collector's clock; 0 for the first one.
        because: what changed, in words; "" for the first one.
        noticed_ns: when the change was noticed.
    """

    path: Path
    from_ns: int = 0
    because: str = ""
    noticed_ns: int = 0


def epoch_bounds(epochs: Sequence[Epoch], left_ns: Times) -> list[tuple[int, int]]:
    """The probes of each epoch, as half-open ranges of their numbers; together all of them, none twice.

    Args:
        epochs: in order of time; the first starts at 0.
        left_ns: shape (count,); when each probe was sent, or was due where it was not.
    """
    running = np.maximum.accumulate(left_ns) if len(left_ns) else left_ns
    starts = [0, *(int(np.searchsorted(running, e.from_ns, side="left")) for e in epochs[1:])]
    ends = [*starts[1:], len(left_ns)]
    return list(zip(starts, ends, strict=True))


def epoch_input(given: SessionInput, path: Path, bounds: tuple[int, int]) -> SessionInput:
    """What is known of the probes of one epoch, numbered from 0.

    Args:
        given: what is known of the whole session.
        path: of the epoch.
        bounds: first number, and the first one behind.
    """
    first, end = bounds
    if (first, end) == (0, len(given.sent_ns)):
        return replace(given, path=path)
    rows = given.hops.rows[(given.hops.seq >= first) & (given.hops.seq < end)].copy()
    rows["seq"] -= np.uint32(first)
    a = given.answers
    mine = (a.seq >= first) & (a.seq < end)
    # A stateless reflector copies our own numbers, which begin anew here. A stateful one's count of the whole session
    # stays: what it gave out before is not known to be missing, so that it proves less, and never too much.
    is_stateful = bool(((a.reflector_seq >= 0) & (a.reflector_seq != a.seq)).any())
    numbers = a.reflector_seq[mine] - (0 if is_stateful else first)
    answers = Answers(
        seq=(a.seq[mine] - np.uint32(first)).astype(np.uint32),
        t2_ns=a.t2_ns[mine],
        t3_ns=a.t3_ns[mine],
        reflector_seq=np.maximum(numbers, -1),
        seen_ns=a.seen_ns[mine],
        point=None if a.point is None else a.point[mine],
    )
    return replace(
        given,
        path=path,
        sent_ns=given.sent_ns[first:end],
        sender_ns=given.sender_ns[first:end],
        untold=None if given.untold is None else given.untold[first:end],
        hops=HopBatch(rows),
        answers=answers,
    )
