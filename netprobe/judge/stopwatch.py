"""How long a change of the rules took to hold, and what passed or was dropped wrongly meanwhile. Pure; numpy columns.

A stream is a row of packets of one class that all should have one fate. An arrival proves that a packet passed. A miss
proves little, it may be loss; so a run of misses counts as a phase in which packets were dropped only where it is too
long for loss: the likelihood ratio of n misses in a row, "they pass, and are lost as others are" to "they are dropped",
is loss ** n (judge.proof). Given the phases, the moment of a change is its maximum-likelihood estimate: the last packet
with the old verdict and the first with the new one, for nothing else explains an arrival. Controls, which every policy
lets pass, tell a path that is dead for a while from a policy that drops: what was sent then says nothing.

service.stopwatch sends; docs/verify.md explains the words.
"""

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np
import numpy.typing as npt

from netprobe.judge.proof import MAX_LOSS, LossBound, loss_bound

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = npt.NDArray[np.int8]

DEAD_CONTROLS = 3
"""Controls that are missed on end where the path is taken for dead; a lone loss among them is frequent."""

BLIND_PACKETS, BLIND_SHARE = 10, 0.1
"""A verdict is that of the last packet that says anything, unless more than this after it say nothing: packets, or of
all on that side of the change."""

NEAR = 25
"""Passing packets on each side of a change whose delays bound what the path added."""


class Fate(IntEnum):
    """What became of one packet, and of what was sent around it."""

    UNKNOWN = 0  # lost, or nobody can say
    PASSED = 1
    DROPPED = 2


class Flow(Enum):
    """What a stream's packets are."""

    EXISTING = "existing"  # of one flow that was there before
    NEW = "new"  # each begins a connection


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets of one stream, in the order in which they were sent; columns of shape (n,).

    Attributes:
        sent_ns: CLOCK_REALTIME just before each was handed over, not decreasing.
        arrived_ns: when it was seen at its receiver, same clock, 0 where it never was.
    """

    sent_ns: I64
    arrived_ns: I64

    @property
    def arrived(self) -> Bools:
        """Which arrived."""
        return self.arrived_ns > 0


@dataclass(frozen=True, slots=True)
class Command:
    """The change: when its command began, and when it had ended (the commit), CLOCK_REALTIME."""

    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Packets on end with one fate.

    Attributes:
        first_ns, last_ns: when the first and the last of them were sent.
        packets: how many, without those that say nothing.
    """

    fate: Fate
    first_ns: int
    last_ns: int
    packets: int


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one stream.

    Attributes:
        old: the verdict before the command began; UNKNOWN where that is not proved.
        new: the verdict at the end.
        last_old_ns: when the last packet with the old verdict was sent; 0 where the verdict did not change.
        first_new_ns: when the first packet with the new verdict was sent.
        interval_ns: from the last packet with the old verdict to the next one that says anything.
        delay_ns: at most so long a packet was under way near the change, before it was seen.
        leaked: packets that passed though they should not: after the commit where the new verdict is "drop"; since the
            beginning of the command where both are.
        blocked: packets that were dropped though they should pass, likewise.
        mixed: packets with the old verdict that were sent after the first with the new one.
        flaps: changes of the verdict beyond the first one, after the command began.
        sent, passed, dropped: packets; the rest of those sent says nothing.
        phases: from beginning to end.
    """

    old: Fate
    new: Fate
    last_old_ns: int = 0
    first_new_ns: int = 0
    interval_ns: int = 0
    delay_ns: int = 0
    leaked: int = 0
    blocked: int = 0
    mixed: int = 0
    flaps: int = 0
    sent: int = 0
    passed: int = 0
    dropped: int = 0
    phases: tuple[Phase, ...] = ()

    @property
    def is_decided(self) -> bool:
        """Whether both verdicts are known."""
        return Fate.UNKNOWN not in (self.old, self.new)

    @property
    def is_changed(self) -> bool:
        """Whether the verdict changed."""
        return self.is_decided and self.old is not self.new

    @property
    def uncertainty_ns(self) -> int:
        """How much later than `last_old_ns` the last old verdict may have been spoken."""
        return self.interval_ns + self.delay_ns


class Connection(Enum):
    """What became of the flow that was there before."""

    CUT = "cut"
    LIVES_ON = "lives on"  # new connections are dropped, it is not: a stale conntrack entry
    KEPT = "kept"  # it passed before and after, as new ones do
    LET_IN = "let in"
    STAYS_OUT = "stays out"  # new connections pass now, it does not
    KEPT_OUT = "kept out"
    UNKNOWN = "unknown"


def measured_loss(controls: Stream, streams: tuple[Stream, ...], command: Command) -> LossBound:
    """How much is lost of what surely passes: controls, and streams that passed before the command.

    Args:
        controls: what every policy lets pass.
        streams: all others.
        command: what was sent before it is counted.
    """
    trials = len(controls.sent_ns)
    misses = int(np.count_nonzero(~controls.arrived))
    for stream in streams:
        came = stream.arrived[stream.sent_ns < command.begin_ns]
        if np.count_nonzero(came) * 2 > len(came):
            trials += len(came)
            misses += int(np.count_nonzero(~came))
    return loss_bound(trials, misses)


def misses_needed(loss: LossBound, packets: int, alpha: float) -> int:
    """Misses in a row that are no loss any more.

    Args:
        loss: of what passes.
        packets: of all streams: a run may begin at any of them (Bonferroni).
        alpha: bound of the probability that anything at all is called dropped that was lost.

    Returns:
        0 where no number is enough.
    """
    if loss.upper > MAX_LOSS:
        return 0
    return max(1, math.ceil(math.log(alpha / max(packets, 1)) / math.log(loss.upper)))


def fates(stream: Stream, controls: Stream | None, needed: int, begin_ns: int) -> States:
    """What became of each packet, shape (n,), as Fate.

    Args:
        stream: of one class.
        controls: on the same way, at the same time; None where there can be none.
        needed: misses_needed.
        begin_ns: when the command began. Misses just before it may be loss that the first drops follow: few of them say
            nothing, however long the run goes on.
    """
    found = np.full(len(stream.sent_ns), Fate.UNKNOWN, np.int8)
    found[stream.arrived] = Fate.PASSED
    if needed <= 0:
        return found
    firsts, ends = _runs(~stream.arrived)
    begin = int(np.searchsorted(stream.sent_ns, begin_ns))
    firsts = np.where((firsts < begin) & (begin < ends) & (begin - firsts < needed), begin, firsts)
    long = ends - firsts >= needed
    for first, end in zip(firsts[long].tolist(), ends[long].tolist(), strict=True):
        if controls is None:
            found[first:end] = Fate.DROPPED
        else:
            found[first:end][_is_alive(stream.sent_ns[first:end], controls, needed)] = Fate.DROPPED
    return found


def _runs(wanted: Bools) -> tuple[I64, I64]:
    """First places of the runs of True, and the places after their ends."""
    edges = np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _is_alive(sent_ns: I64, controls: Stream, needed: int) -> Bools:
    """Which packets of a run of misses were sent while controls passed; all none where no control vouches for it."""
    vouched = controls.sent_ns[controls.arrived]
    low, high = np.searchsorted(vouched, [sent_ns[0], sent_ns[-1]], side="left")
    alive = np.full(len(sent_ns), high > low, np.bool_)
    firsts, ends = _runs(~controls.arrived)
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        if end - first >= DEAD_CONTROLS:
            alive &= (sent_ns < controls.sent_ns[first]) | (sent_ns > controls.sent_ns[end - 1])
    return alive if np.count_nonzero(alive) >= needed else np.zeros(len(sent_ns), np.bool_)


def judge_change(stream: Stream, found: States, command: Command) -> Change:
    """What happened to a stream.

    Args:
        stream: of one class.
        found: its `fates`.
        command: the change.
    """
    told = np.flatnonzero(found)
    sent_ns, fate = stream.sent_ns[told], found[told]
    counts = {
        "sent": len(stream.sent_ns),
        "passed": int(np.count_nonzero(fate == Fate.PASSED)),
        "dropped": int(np.count_nonzero(fate == Fate.DROPPED)),
    }
    before = int(np.searchsorted(sent_ns, command.begin_ns))
    begin = int(np.searchsorted(stream.sent_ns, command.begin_ns))
    old, new = _verdict(found[:begin]), _verdict(found[begin:])
    if Fate.UNKNOWN in (old, new):
        return Change(old, new, phases=_phases(sent_ns, fate), **counts)
    since = np.arange(len(told)) >= before
    late = sent_ns > (command.end_ns if old is not new else command.begin_ns)
    wrong = int(np.count_nonzero(late & since & (fate != new)))
    changes = int(np.count_nonzero(np.diff(fate[before - 1 :])))
    change = {
        "leaked": wrong if new is Fate.DROPPED else 0,
        "blocked": wrong if new is Fate.PASSED else 0,
        "flaps": max(changes - 1, 0) if old is not new else changes,
        "phases": _phases(sent_ns, fate),
        **counts,
    }
    if old is new:
        return Change(old, new, **change)  # type: ignore[arg-type]  # each value has its field's type
    last_old = int(np.flatnonzero(fate == old)[-1])
    first_new = before + int(np.flatnonzero(fate[before:] == new)[0])
    place = int(told[last_old])
    return Change(
        old,
        new,
        last_old_ns=int(sent_ns[last_old]),
        first_new_ns=int(sent_ns[first_new]),
        interval_ns=int(sent_ns[last_old + 1] - sent_ns[last_old]),
        delay_ns=_delay_near(stream, place),
        mixed=int(np.count_nonzero((fate == old) & (np.arange(len(told)) > first_new))),
        **change,  # type: ignore[arg-type]
    )


def _verdict(found: States) -> Fate:
    """The fate of the last packets; UNKNOWN where too many of them say nothing."""
    told = np.flatnonzero(found)
    if not len(told) or len(found) - 1 - told[-1] > max(BLIND_PACKETS, BLIND_SHARE * len(found)):
        return Fate.UNKNOWN
    return Fate(int(found[told[-1]]))


def _phases(sent_ns: I64, fate: States) -> tuple[Phase, ...]:
    if not len(fate):
        return ()
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(fate)) + 1))
    ends = np.append(firsts[1:], len(fate))
    return tuple(
        Phase(Fate(int(fate[first])), int(sent_ns[first]), int(sent_ns[end - 1]), end - first)
        for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)
    )


def _delay_near(stream: Stream, place: int) -> int:
    """The longest way of the passing packets next to a place; of those that are dropped nobody knows."""
    came = np.flatnonzero(stream.arrived)
    at = int(np.searchsorted(came, place))
    near = came[max(at - NEAR, 0) : at + NEAR]
    return int((stream.arrived_ns[near] - stream.sent_ns[near]).max()) if len(near) else 0


def connection(existing: Change | None, new: Change | None) -> Connection:
    """What became of the flow that was there before, seen beside what new connections met.

    Args:
        existing: of the flow; None where there was none.
        new: of new connections; None where the protocol has none to tell apart.
    """
    if existing is None or not existing.is_decided:
        return Connection.UNKNOWN
    others = None if new is None or not new.is_decided else new.new
    if existing.old is Fate.PASSED:
        if existing.new is Fate.DROPPED:
            return Connection.CUT
        return Connection.LIVES_ON if others is Fate.DROPPED else Connection.KEPT
    if existing.new is Fate.PASSED:
        return Connection.LET_IN
    return Connection.STAYS_OUT if others is Fate.PASSED else Connection.KEPT_OUT
