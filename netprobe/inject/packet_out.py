"""Probes from the vswitch vantage: OpenFlow packet-outs at planned times, as if a guest's port had sent them.

Paced by inject.pacer and held back by barriers, so that the switch never has more than MAX_OUTSTANDING of ours in its
queue and never sheds one silently. Blocking: call it in a worker thread. The connection is host.openflow's, below.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import NetprobeError, UsageError
from netprobe.host.openflow import MAX_OUTSTANDING, OpenFlowClient
from netprobe.inject.pacer import PacingStats, pace
from netprobe.plan.budget import check_rate


def _never() -> bool:
    return False


def _all() -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class PacketOutResult:
    """What was sent.

    Attributes:
        times_ns: shape (n,), int64: CLOCK_REALTIME just before each message was written; 0 where unsent, HELD where it
            was held back.
        pacing: how far from the plan.
        unconfirmed: packet-outs at the end of those sent that no barrier has confirmed; 0 when all went well.
        failure: why sending ended early, None when it did not fail.
    """

    times_ns: npt.NDArray[np.int64]
    pacing: PacingStats
    unconfirmed: int
    failure: NetprobeError | None


class PacketOutSender:
    """Writes packet-outs, with a barrier after every MAX_OUTSTANDING; after a failure it sends nothing more.

    Attributes:
        outstanding: packet-outs that no barrier has confirmed yet.
        failure: why it sends nothing more.
    """

    def __init__(self, client: OpenFlowClient) -> None:
        self._client = client
        self.outstanding = 0
        self.failure: NetprobeError | None = None

    def send(self, in_port: int, frame: bytes) -> int:
        """Send a frame by a port; the time just before, CLOCK_REALTIME ns, 0 when it could not be sent."""
        if self.failure is not None:
            return 0
        try:
            if self.outstanding >= MAX_OUTSTANDING:
                self.confirm()
            t_ns = time.time_ns()
            self._client.packet_out_nowait(in_port, frame)
        except NetprobeError as error:
            self.failure = error
            return 0
        self.outstanding += 1
        return t_ns

    def confirm(self) -> None:
        """Wait until the switch has worked off what was sent."""
        if self.outstanding:
            self._client.barrier()
            self.outstanding = 0

    def finish(self) -> None:
        """The last barrier; a failure is kept, not raised: what was sent before must be told."""
        if self.failure is None:
            try:
                self.confirm()
            except NetprobeError as error:
                self.failure = error


def send_packet_outs(
    client: OpenFlowClient,
    frames: npt.NDArray[np.uint8],
    in_port: int,
    due_ns: Sequence[int] | npt.NDArray[np.int64],
    *,
    cap_pps: float,
    stopped: Callable[[], bool] = _never,
    share: Callable[[], float] = _all,
) -> PacketOutResult:
    """Send frames through a bridge's pipeline at planned times.

    Args:
        client: the bridge.
        frames: shape (n, size), uint8: whole Ethernet frames without FCS.
        in_port: OpenFlow number of the port that is played; it must be bound on this host.
        due_ns: shape (n,), not decreasing, CLOCK_MONOTONIC ns.
        cap_pps: what the host's allowlist permits (Allowlist.cap_pps).
        stopped: asked before each frame; once it says True nothing more is sent.
        share: which part of the frames is sent, asked as each is due.

    Returns:
        What was sent and when. A switch that dies on the way does not raise: `failure` says it, and which frames were
        sent before is still told.

    Raises:
        RefusedError: the schedule is faster than cap_pps, or bursts. Nothing was sent.
        UsageError: the arrays don't fit each other.
    """
    if frames.ndim != 2 or len(frames) != len(due_ns):
        raise UsageError("packet-out", f"{frames.shape} frames for {len(due_ns)} times", allowed="(n, size) for n")
    due = [int(t) for t in due_ns]
    check_rate(due, cap_pps, f"packet-out in port {in_port}")
    if not due:
        return PacketOutResult(np.zeros(0, np.int64), pace([], lambda _i: 0).stats, 0, None)
    sender = PacketOutSender(client)
    paced = pace(
        due,
        lambda i: sender.send(in_port, frames[i].tobytes()),
        stopped=lambda: stopped() or sender.failure is not None,
        share=share,
    )
    sender.finish()
    times = np.array(paced.times_ns, np.int64)
    return PacketOutResult(times, paced.stats, sender.outstanding, sender.failure)


def paced_sender(
    client: OpenFlowClient, frames: npt.NDArray[np.uint8], in_port: int, *, cap_pps: float
) -> Callable[[int], int]:
    """A function that sends the next n of `frames` at no more than `cap_pps`, for a counter pattern's bursts.

    Args:
        client: the bridge.
        frames: shape (total, size), uint8.
        in_port: OpenFlow number of the port that is played.
        cap_pps: what the host's allowlist permits.

    Returns:
        It takes n, returns once the switch has worked the frames off, and says how many were sent; it raises
        HostNotReadyError or RefusedError when the switch fails.
    """
    gap_ns = math.ceil(1e9 / cap_pps)
    first = 0
    free_ns = 0

    def send(count: int) -> int:
        nonlocal first, free_ns
        part = frames[first : first + count]
        start = max(time.monotonic_ns(), free_ns)
        due = [start + i * gap_ns for i in range(len(part))]
        free_ns = start + len(part) * gap_ns
        first += len(part)
        done = send_packet_outs(client, part, in_port, due, cap_pps=cap_pps)
        if done.failure is not None:
            raise done.failure
        return int(np.count_nonzero(done.times_ns))

    return send
