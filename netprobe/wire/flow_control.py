"""Flow control of the agents' links: a window of unacknowledged blocks, and a rate. Values and arithmetic only.

Both ends count with the same code, so an agent that keeps to it can never be taken for a flood. Above: wire.link.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from netprobe.wire.report import MAX_PARTS, PartKey

SECOND_NS: Final = 1_000_000_000
FRAME_COST_BYTES: Final = 4096  # what a frame costs beyond its octets, so that many small ones are bounded too


@dataclass(frozen=True, slots=True)
class Limits:
    """What a collector lets one link do.

    Attributes:
        window_bytes: blocks that it has not acknowledged yet.
        bytes_per_s: blocks, FRAME_COST_BYTES for each among them; the agent paces itself by it.
    """

    window_bytes: int = 4 << 20
    bytes_per_s: int = 32 << 20


class Bucket:
    """A token bucket. One that is full lets even a larger amount pass, and is then in debt."""

    def __init__(self, per_s: int, burst: int, now_ns: int) -> None:
        self._per_s = per_s
        self._burst_ns = burst * SECOND_NS  # tokens are counted in 1e-9, so that no rounding loses any
        self._level_ns = self._burst_ns
        self._now_ns = now_ns

    def take(self, amount: int, now_ns: int) -> bool:
        """Whether `amount` may pass now; if so it is taken."""
        if self.ready_ns(amount, now_ns) > now_ns:
            return False
        self._level_ns -= amount * SECOND_NS
        return True

    def ready_ns(self, amount: int, now_ns: int) -> int:
        """When `amount` may pass: `now_ns` or later."""
        if now_ns > self._now_ns:
            self._level_ns = min(self._burst_ns, self._level_ns + (now_ns - self._now_ns) * self._per_s)
            self._now_ns = now_ns
        missing = min(amount * SECOND_NS, self._burst_ns) - self._level_ns
        return now_ns if missing <= 0 else now_ns - (-missing // self._per_s)


class Flight:
    """Blocks that are on the way: sent and not acknowledged. Both ends count alike."""

    def __init__(self) -> None:
        self.bytes = 0
        self._parts: dict[PartKey, deque[tuple[int, int]]] = {}
        self._done: dict[PartKey, int] = {}

    def has_room(self, cost: int, window_bytes: int) -> bool:
        """Whether a block of this cost may be sent; one that is larger than the window goes alone."""
        return not self.bytes or self.bytes + cost <= window_bytes

    def add(self, part: PartKey, number: int, cost: int) -> None:
        """A block, or a range that ends below `number + 1`, was sent."""
        if number < self._done.get(part, 0):
            return  # an earlier link had brought it; the other end has the acknowledgement and counts it no more
        self.bytes += cost
        self._parts.setdefault(part, deque()).append((number, cost))

    def acknowledge(self, part: PartKey, next_number: int) -> None:
        """Everything of a part below `next_number` is done with."""
        self._done[part] = max(next_number, self._done.pop(part, 0))
        if len(self._done) > MAX_PARTS:  # a peer may name parts that never were, without end
            del self._done[next(iter(self._done))]
        waiting = self._parts.get(part)
        while waiting and waiting[0][0] < next_number:
            self.bytes -= waiting.popleft()[1]
        if waiting is not None and not waiting:
            del self._parts[part]


def cost_of(octets: bytes) -> int:
    """What a block takes of window and rate."""
    return len(octets) + FRAME_COST_BYTES
