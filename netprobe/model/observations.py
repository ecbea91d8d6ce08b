"""What one part of a run reports: hop records, answers, what was around probes, what was sent, when nobody looked.

A part is what one program does in a run, on the host or hosts that it can reach. Its reports come to the collection
(service.collection) in order, either straight from the same process or as numbered blocks from an agent. All times are
of the reporting host's clock.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from netprobe.model.contexts import HopContext
from netprobe.model.load import Backoff
from netprobe.model.records import HopBatch
from netprobe.model.results import Pacing

Times = npt.NDArray[np.int64]
FOR_EVER_NS = 2**62
"""An end that never comes."""


@dataclass(frozen=True, slots=True)
class Hops:
    """Hop records of any of the part's points; those of one point in arrival order."""

    hops: HopBatch


@dataclass(frozen=True, slots=True)
class Sightings:
    """Answers as points saw them, columns of shape (n,).

    Attributes:
        point: uint16; index of the point in the run.
        t2_ns, t3_ns: int64; the reflector's own times, 0 where there are none.
        reflector_seq: int64; the reflector's own number, -1 where there is none.
        seen_ns: int64.
    """

    point: npt.NDArray[np.uint16]
    session: npt.NDArray[np.uint32]
    seq: npt.NDArray[np.uint32]
    t2_ns: Times
    t3_ns: Times
    reflector_seq: Times
    seen_ns: Times


@dataclass(frozen=True, slots=True)
class Contexts:
    """More contexts of one point; the first has index `first` in that point's list."""

    point: int
    first: int
    contexts: tuple[HopContext, ...]


@dataclass(slots=True)
class Tally:
    """What one point's observer counted, from the beginning of the part until now.

    Attributes:
        forged: frames that claimed to be ours and were not.
        unknown_session: of these, those that name no session of the run.
        foreign: frames that claim nothing, and passed the filter all the same.
        merged: frames that held several probes.
        weak: answers without our tag.
        unstamped: frames that the kernel stamped late.
        dropped: frames that the ring had no room for.
        icmp_errors: errors about our probes.
        contexts_shed: records whose surroundings were not kept: too many different ones.
        behind: frames, anybody's, that the device dropped behind the ring: a tap that the guest did not empty.
        remarked: probes that did not carry their class mark, by session.
    """

    forged: int = 0
    unknown_session: int = 0
    foreign: int = 0
    merged: int = 0
    weak: int = 0
    unstamped: int = 0
    dropped: int = 0
    icmp_errors: int = 0
    contexts_shed: int = 0
    behind: int = 0
    remarked: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tallies:
    """The tallies of some points, by index; each replaces an older one of the same point."""

    by_point: dict[int, Tally]


@dataclass(frozen=True, slots=True)
class Blind:
    """A time in which a point may have lost sight of probes, ns."""

    point: int
    start_ns: int
    end_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A point at which nobody looks, from the beginning (`since_ns` 0) or from then on.

    With an empty `why` the opposite: from `since_ns` on somebody looks at it again (a guest came back).
    """

    point: int
    why: str
    since_ns: int = 0


@dataclass(frozen=True, slots=True)
class SentReport:
    """What was sent of one session.

    Attributes:
        first: number of the first probe told about.
        times_ns: shape (n,), int64; when, by the host's clock: the sender's stamp where that fits, else the plan; 0
            for unsent.
        stamps_ns: shape (n,), int64; the sender's stamp where it can be used, else 0.
        doubtful: stamps that cannot be right.
        failure: why sending ended early, "" when it did not.
        is_last: the sender is done with the session; what was not told about is unsent.
        held: how many of the unsent were held back by the governor.
    """

    session: int
    first: int
    times_ns: Times
    stamps_ns: Times
    pacing: Pacing | None = None
    doubtful: int = 0
    failure: str = ""
    is_last: bool = True
    held: int = 0


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Two-way exchanges with another host's clock (RFC 8762): columns of shape (n,), int64 ns.

    Attributes:
        peer: the other host.
        t1_ns, t4_ns: sent and received, by the reporting host's clock.
        t2_ns, t3_ns: received and answered, by the peer's.
    """

    peer: str
    t1_ns: Times
    t2_ns: Times
    t3_ns: Times
    t4_ns: Times


@dataclass(frozen=True, slots=True)
class Watermark:
    """Everything that the part's points saw before `until_ns` has been reported.

    Attributes:
        steps: how often the wall clock was stepped until then.
    """

    until_ns: int
    steps: int = 0


HOST_STOPPED = "host_stopped"
"""Counter of a part that its own host ended, for the sake of what tenants share."""


@dataclass(frozen=True, slots=True)
class PartDone:
    """The part is over; nothing comes after this.

    Attributes:
        counters: what it shed, dropped or tidied up, by name.
        why: why it ended early, "" when it did not.
    """

    counters: dict[str, int] = field(default_factory=dict)
    why: str = ""


Report = (
    Hops | Sightings | Contexts | Tallies | Blind | Unwatched | SentReport | Exchanges | Watermark | PartDone | Backoff
)
