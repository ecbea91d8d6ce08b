"""Who comes in at a collector's door, and how often: before anybody knows who it is, and after.

Whoever dials costs the collector a handshake, and whoever misbehaves may come again: both are bounded, by address and
by name, so that nobody keeps others out. Nothing here is I/O; the collector asks. Above: service.collector.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final

import trio

from netprobe.wire.flow_control import SECOND_NS, Bucket

KNOCKS_A_SECOND: Final = 20
KNOCKS_AT_ONCE: Final = 100
"""Connections from one address; a hundred agents behind one translator are let in within seconds."""

MAX_HANDSHAKES: Final = 256
"""Of connections that have not yet proved who they are; more, and the oldest of the busiest address is cut."""

MAX_KNOWN: Final = 4_096
FIRST_PENALTY_NS: Final = SECOND_NS
LAST_PENALTY_NS: Final = 16 * SECOND_NS
"""Less than the time after which an agent counts as lost: a run outlives the penalty of one that mends its ways."""

FORGIVEN_NS: Final = 60 * SECOND_NS
LINES_AT_ONCE: Final = 40


def whole(address: str) -> str:
    """The address, or the /64 that it is from: whoever has one has all of it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(IPv6Address(int(parsed) >> 64 << 64)) if isinstance(parsed, IPv6Address) else str(parsed)


@dataclass(eq=False, slots=True)
class _Waiting:
    """Somebody in his handshake."""

    address: str
    scope: trio.CancelScope


@dataclass(slots=True)
class _Penalty:
    """What somebody has done, and until when he stays outside; monotonic ns."""

    until_ns: int = 0
    lasts_ns: int = 0


@dataclass(slots=True)
class Door:
    """The door of one collector."""

    _buckets: dict[str, Bucket] = field(default_factory=dict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _penalties: dict[str, _Penalty] = field(default_factory=dict)

    def knock(self, address: str, now_ns: int) -> bool:
        """Whether somebody from there may try a handshake now."""
        place = whole(address)
        if place not in self._buckets:
            if len(self._buckets) >= MAX_KNOWN:  # the one that has been known longest
                del self._buckets[next(iter(self._buckets))]
            self._buckets[place] = Bucket(KNOCKS_A_SECOND, KNOCKS_AT_ONCE, now_ns)
        return self._buckets[place].take(1, now_ns)

    @contextmanager
    def handshake(self, address: str) -> Iterator[trio.CancelScope]:
        """For the time of a handshake; it is cancelled where others need the room."""
        if len(self._waiting) >= MAX_HANDSHAKES:
            busiest = Counter(w.address for w in self._waiting).most_common(1)[0][0]
            next(w for w in self._waiting if w.address == busiest).scope.cancel()
            self._waiting.remove(next(w for w in self._waiting if w.address == busiest))
        with trio.CancelScope() as scope:
            me = _Waiting(whole(address), scope)
            self._waiting.append(me)
            try:
                yield scope
            finally:
                if me in self._waiting:
                    self._waiting.remove(me)

    def strike(self, name: str, now_ns: int) -> None:
        """Somebody broke the protocol: he stays outside, the longer the more often."""
        penalty = self._penalties.setdefault(name, _Penalty())
        is_new = not penalty.lasts_ns or now_ns > penalty.until_ns + FORGIVEN_NS
        penalty.lasts_ns = FIRST_PENALTY_NS if is_new else min(2 * penalty.lasts_ns, LAST_PENALTY_NS)
        penalty.until_ns = now_ns + penalty.lasts_ns

    def stays_outside_ns(self, name: str, now_ns: int) -> int:
        """For how much longer somebody is not let in, 0 if he is."""
        penalty = self._penalties.get(name)
        return 0 if penalty is None else max(penalty.until_ns - now_ns, 0)


@dataclass(slots=True)
class LineLimit:
    """Lines for people about somebody: one a second in the long run, so that he cannot fill a log.

    Attributes:
        left_out: lines that were not said, by whom they are about.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def admit(self, about: str, text: str, now_ns: int) -> str | None:
        """The line as it may be said, None where it may not be."""
        bucket = self._buckets.setdefault(about, Bucket(1, LINES_AT_ONCE, now_ns))
        if not bucket.take(1, now_ns):
            self.left_out[about] += 1
            return None
        missing = self.left_out.pop(about, 0)
        return f"{text} ({missing} lines about {about} were left out)" if missing else text
