"""Packet-outs by the block: tens of thousands a second, and still never more in the switch than it can hold.

One write carries a piece of the window and a barrier; while the switch works one piece off, the next is on its way.
Single probes at planned times are inject.packet_out's. The rate stays below the cap that the host's allowlist sets.
Blocking: call it in a worker thread. The connection is host.openflow's, below.
"""

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from netprobe.errors import NetprobeError, UsageError
from netprobe.host.openflow import MAX_OUTSTANDING, OpenFlowClient
from netprobe.inject.pacer import BURST_FRAMES, BURST_PAUSE_NS, MAX_SLEEP_NS
from netprobe.inject.ring_pacing import BurstWindow

PIECES = 2
"""Barriers in a window. With one the switch waits for us after each window: a quarter slower; with four no faster."""


def _never() -> bool:
    return False


class PacketOutBlocks:
    """Sends frames by one port of a bridge, as if they had come in there. After a failure it sends nothing more.

    Args:
        client: the bridge.
        in_port: OpenFlow number of the port that is played; it must be bound on this host.
        cap_pps: what the host's allowlist permits (Allowlist.cap_pps); packets go evenly, a millisecond's worth at a
            time. math.inf in a benchmark on a switch of its own.
        window: packet-outs that no barrier has confirmed, at most.
        burst_frames: at most so many in any millisecond, which makes 64,000/s; None only on a switch of one's own.
        clock: the time now, ns.
        sleep: takes seconds.

    Attributes:
        outstanding: packet-outs that no barrier has confirmed (yet).
        failure: why it sends nothing more, None so far. Which of the outstanding ones the switch took, nobody knows.

    Raises:
        UsageError: no packet-out is permitted, or the window holds less than one a piece.
    """

    def __init__(
        self,
        client: OpenFlowClient,
        in_port: int,
        *,
        cap_pps: float,
        window: int = MAX_OUTSTANDING,
        burst_frames: int | None = BURST_FRAMES,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not cap_pps > 0:
            raise UsageError(f"packet-out in port {in_port}", f"a cap of {cap_pps:g} packets/s", allowed="more than 0")
        if window < PIECES:
            raise UsageError(f"packet-out in port {in_port}", f"a window of {window}", allowed=f"{PIECES} or more")
        self._client, self._in_port = client, in_port
        self._clock, self._sleep = clock, sleep
        per_pause = math.inf if math.isinf(cap_pps) else max(1, int(cap_pps * BURST_PAUSE_NS / 1e9))
        self._piece = int(min(window // PIECES, per_pause))
        self._gap_ns = 0.0 if math.isinf(cap_pps) else 1e9 / cap_pps
        self._burst = BurstWindow(burst_frames)
        self._free_ns = 0  # when the next piece may go
        self._barriers: deque[tuple[int, int]] = deque()  # (xid, packet-outs before it), oldest first
        self.outstanding = 0
        self.failure: NetprobeError | None = None

    def send(self, frames: npt.NDArray[np.uint8], *, stopped: Callable[[], bool] = _never) -> npt.NDArray[np.int64]:
        """Send frames in order; call it as often as you like, then `finish`.

        Args:
            frames: shape (n, size), uint8: whole Ethernet frames without FCS.
            stopped: asked before each piece; once it says True nothing more is sent.

        Returns:
            Shape (n,), int64: CLOCK_REALTIME just before the write that carried each message; 0 where unsent. The
            switch may have taken it up to a window later.
        """
        times_ns = np.zeros(len(frames), np.int64)
        at = 0
        while at < len(frames) and self.failure is None and (room := self._wait_turn(len(frames) - at, stopped)):
            piece = frames[at : at + room]
            try:
                while len(self._barriers) >= PIECES:
                    self._confirm()
                now_ns = time.time_ns()
                self._barriers.append((self._client.packet_outs_nowait(self._in_port, piece), len(piece)))
            except NetprobeError as error:
                self.failure = error
                break
            self.outstanding += len(piece)
            times_ns[at : at + len(piece)] = now_ns
            at += len(piece)
            after_ns = self._clock()
            self._burst.sent(len(piece), after_ns)
            self._free_ns = after_ns + math.ceil(len(piece) * self._gap_ns)
        return times_ns

    def finish(self) -> None:
        """Wait until the switch has worked all off; a failure is kept, not raised: what was sent must be told.

        The connection can be used again afterwards, also after a refusal.
        """
        while self._barriers:
            try:
                self._confirm()
            except NetprobeError as error:
                self.failure = self.failure or error

    def _confirm(self) -> None:
        xid, count = self._barriers.popleft()
        self._client.wait_barrier(xid)
        self.outstanding -= count

    def _wait_turn(self, most: int, stopped: Callable[[], bool]) -> int:
        """Wait until some packet-outs may go: how many, 0 when stopped."""
        while not stopped():
            now_ns = self._clock()
            until_ns = self._free_ns
            if until_ns <= now_ns:
                if (room := self._burst.room(min(most, self._piece), now_ns)) > 0:
                    return room
                until_ns = self._burst.free_ns()
            self._sleep(min(max(until_ns - now_ns, 0), MAX_SLEEP_NS) / 1e9)
        return 0
