"""What a relay decides and when it sends: no socket, no clock, standard library only.

Frames come in with their receive stamp, copies come out when they are due, and each marked copy leaves one row of
truth. netprobe.lab.relay does the input and output around it.

Draws: every probe takes the same five numbers from a generator for probes (loss, duplicate, reorder, share, jitter), so
a probe's fate depends on the seed and on its place among the probes alone; answers and other frames have generators of
their own. Order: delayed frames keep the order in which they came, whatever the jitter, unless they are held back on
purpose (`reorder`). Frames that `share` spares are not delayed and may overtake.
"""

import heapq
import random
from dataclasses import dataclass, field
from typing import NamedTuple

from netprobe.lab.relay_frames import Mark, carried, destination, parse
from netprobe.lab.relay_rows import (
    FATE_DROPPED,
    FATE_DUPLICATE,
    FATE_FORWARDED,
    LEG_FORWARD,
    Row,
)

HOLD_NS = 3_000_000
"""How much longer a frame is held back to be overtaken."""

BACKLOG_MAX = 20_000
"""Frames waiting at most: a second of 20,000 frames/s, some 30 MB."""


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """What the relay does to frames that travel in `direction` (relay_rows.FROM_GUEST or TO_GUEST).

    Attributes:
        macs, addresses: only frames to one of these MACs or to one of these IP addresses are hit; both empty for all.
        inside: the frame that a Geneve one carries is looked at in its place.
        delay_ns, jitter_ns, loss, duplicate, reorder, seed, share: as in netprobe.lab.layout.FaultSpec.
    """

    direction: int
    macs: frozenset[bytes] = frozenset()
    addresses: frozenset[bytes] = frozenset()
    inside: bool = False
    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    seed: int = 0
    share: float = 1.0


class Copy(NamedTuple):
    """A frame that waits to be sent. Ordered by due time, then by arrival."""

    due_ns: int
    number: int
    t_in_ns: int
    frame: bytes
    direction: int
    mark: Mark | None
    fate: int
    held: bool
    faulted: bool


class _Draw(NamedTuple):
    """What chance decided for one frame."""

    is_lost: bool
    is_doubled: bool
    is_held: bool
    delay_ns: int


@dataclass(slots=True)
class Counters:
    """What the relay did, since it started."""

    frames: int = 0
    marked: int = 0
    dropped: int = 0
    backlog_dropped: int = 0
    send_failed: int = 0


@dataclass(slots=True)
class RelayCore:
    """The relay's decisions and its queue."""

    spec: RelaySpec
    counters: Counters = field(default_factory=Counters)
    rows: list[Row] = field(default_factory=list)
    _queue: list[Copy] = field(default_factory=list)
    _number: int = 0
    _last_due_ns: int = 0
    _draws: dict[str, random.Random] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("probe", "answer", "other"):
            self._draws[kind] = random.Random(f"{self.spec.seed}:{kind}")

    @property
    def next_due_ns(self) -> int | None:
        """When the next copy must go, None when nothing waits."""
        return self._queue[0].due_ns if self._queue else None

    def receive(self, frame: bytes, direction: int, t_in_ns: int) -> None:
        """Decide a frame's fate.

        Args:
            frame: a whole Ethernet frame.
            direction: relay_rows.FROM_GUEST or TO_GUEST.
            t_in_ns: when the kernel received it.
        """
        mark = parse(frame)
        self.counters.frames += 1
        self.counters.marked += mark is not None
        if direction != self.spec.direction or not self._is_meant(frame):
            self._push(Copy(t_in_ns, 0, t_in_ns, frame, direction, mark, FATE_FORWARDED, held=False, faulted=False))
            return
        draw = self._draw(mark)
        due_ns = self._due(t_in_ns, draw)
        copy = Copy(due_ns, 0, t_in_ns, frame, direction, mark, FATE_FORWARDED, held=draw.is_held, faulted=True)
        if draw.is_lost:
            self.counters.dropped += 1
            self._log_dropped(copy)
            return
        self._push(copy)
        if draw.is_doubled:
            self._push(copy._replace(fate=FATE_DUPLICATE))

    def _is_meant(self, frame: bytes) -> bool:
        spec = self.spec
        if not spec.macs and not spec.addresses:
            return True
        meant = (carried(frame) or frame) if spec.inside else frame
        return meant[:6] in spec.macs or destination(meant) in spec.addresses

    def pop(self) -> Copy:
        """Take out the copy that is due next."""
        return heapq.heappop(self._queue)

    def sent(self, copy: Copy, t_out_ns: int) -> None:
        """Note that a copy was handed over at `t_out_ns`."""
        if copy.mark is not None:
            self.rows.append(_row(copy, t_out_ns, copy.fate))

    def failed(self, copy: Copy) -> None:
        """Note that the kernel did not take a copy: it is lost."""
        self.counters.send_failed += 1
        self._log_dropped(copy)

    def _draw(self, mark: Mark | None) -> _Draw:
        spec = self.spec
        kind = "other" if mark is None else "probe" if mark.leg == LEG_FORWARD else "answer"
        chance = self._draws[kind].random
        loss, double, hold, share, jitter = chance(), chance(), chance(), chance(), chance()
        delay_ns = max(0, spec.delay_ns + round((2 * jitter - 1) * spec.jitter_ns)) if share < spec.share else 0
        return _Draw(loss < spec.loss, double < spec.duplicate, hold < spec.reorder, delay_ns)

    def _due(self, t_in_ns: int, draw: _Draw) -> int:
        due_ns = t_in_ns + draw.delay_ns
        if draw.is_held:
            return due_ns + HOLD_NS
        if draw.delay_ns and not draw.is_lost:
            due_ns = max(due_ns, self._last_due_ns)
            self._last_due_ns = due_ns
        return due_ns

    def _push(self, copy: Copy) -> None:
        if len(self._queue) >= BACKLOG_MAX:
            self.counters.backlog_dropped += 1
            self._log_dropped(copy)
            return
        self._number += 1
        heapq.heappush(self._queue, copy._replace(number=self._number))

    def _log_dropped(self, copy: Copy) -> None:
        if copy.mark is not None:
            self.rows.append(_row(copy, 0, FATE_DROPPED))


def _row(copy: Copy, t_out_ns: int, fate: int) -> Row:
    mark = copy.mark
    assert mark is not None
    return Row(
        copy.t_in_ns, t_out_ns, copy.due_ns - copy.t_in_ns,
        mark.session, mark.seq, mark.isn, mark.src_port, mark.proto, mark.leg,
        copy.direction, fate, int(copy.held), int(copy.faulted),
    )  # fmt: skip
