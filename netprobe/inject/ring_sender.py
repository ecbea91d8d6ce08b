"""Sends the probes of a session by a transmit ring, a block at a time: paced by a schedule, or flat out.

Every frame has its own identity, keyed tag and checksum (wire.frames), and a STAMP packet its T1, written when it is
sent. Memory does not depend on how many probes are sent. Blocking: call it in a worker thread, or in a process of its
own where the rate is high: while it sends, its thread holds the interpreter most of the time.

    with RingSender.open(session, build_template(session), netns, device) as sender:
        done = sender.send(0, 15_000_000, EvenSchedule(start_ns, 250_000), burst_frames=1024, gather_ns=200_000)
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from netprobe.inject.pacer import BURST_FRAMES, MAX_SLEEP_NS, SPIN_NS, PacingStats, wait_until
from netprobe.inject.ring_pacing import BurstWindow, PacingTally, Schedule
from netprobe.inject.tx_ring import SLOTS, TxRing
from netprobe.model.probes import ProbeSession
from netprobe.wire.frames import Columns, FrameEncoder, patch_t1, patch_t1_rows
from netprobe.wire.stamp import ns_to_ntp

I64 = npt.NDArray[np.int64]

BLOCK_FRAMES = 1024
"""Frames in the ring before the kernel is called: a call costs 20 us of Python, and slots stay in the CPU's cache."""

COLUMN_FRAMES = 8192
"""Probes whose tags are computed at once: 65 ns each, against 160 at 1,024. That takes 0.6 ms, during which nothing is
sent, so a paced sender takes fewer (0.13 ms), while it waits if that is long enough."""
PACED_COLUMN_FRAMES = 512
MOST_PATCH_NS, MOST_FRAME_NS = 100_000, 2_000  # what took longer was the machine, and says nothing of the next call
SCALAR_FRAMES = 8  # 3 us for the T1 of one frame by itself, 25 us for those of any few at once


@dataclass(frozen=True, slots=True)
class SentBlock:
    """What became of consecutive probes.

    Attributes:
        first_seq: number of the first.
        times_ns: shape (n,), CLOCK_REALTIME ns: when the call began that handed each to the kernel, with others: it did
            not leave before. T1 of a STAMP packet is closer to when it left, but may lie behind that: what the frames
            in front of it take is foreseen. Either is within the 1 ms of the packet's Error Estimate.
        errors_ns: shape (n,): how long after its due time the kernel had taken each probe, at the latest. No probe is
            early. None when sent flat out.
    """

    first_seq: int
    times_ns: I64
    errors_ns: I64 | None


@dataclass(frozen=True, slots=True)
class RingSent:
    """What `RingSender.send` did. planned = sent + unsent, always.

    Attributes:
        planned: probes that were to be sent: first_seq, first_seq + 1 and so on.
        sent: so many of them, from the first on, were taken by the kernel.
        unsent: those behind: stopped before, or refused.
        given_back: how often the device had no room (ENOBUFS) and a frame was tried again; a ring on the sending device
            may have seen such a frame more than once.
        refused: frames that the kernel will not send at all; 0 or 1, since the first one ends the send.
        start_ns: CLOCK_MONOTONIC, before the first frame; `end_ns` after the last.
        pacing: error against the schedule over what was sent, each an upper bound (SentBlock.errors_ns); None when
            sent flat out.
        pauses: how often the burst limit held back frames that were due.
        failure: why sending ended early, "" when it did not fail. That a device lost its carrier or has a smaller MTU
            than before is noticed within COLUMN_FRAMES probes; nobody knows how many of those sent it dropped.
    """

    planned: int
    sent: int
    unsent: int
    given_back: int
    refused: int
    start_ns: int
    end_ns: int
    pacing: PacingStats | None
    pauses: int
    failure: str


def _never() -> bool:
    return False


def _ignore(_block: SentBlock) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Clocks:
    """What a sender knows of time; a test has its own.

    Attributes:
        monotonic: CLOCK_MONOTONIC, ns.
        realtime: CLOCK_REALTIME, ns.
        sleep: takes seconds.
    """

    monotonic: Callable[[], int] = time.monotonic_ns
    realtime: Callable[[], int] = time.time_ns
    sleep: Callable[[float], object] = time.sleep


class RingSender:
    """One session's probes by one device. Use it as a context manager: it closes its ring at the end.

    Args:
        session: what to send.
        template: `inject.templates.build_template(session)`.
        ring: of frames as long as the template; see `open`.
        clocks: time.

    Raises:
        UsageError: the session does not fit the wire.
    """

    def __init__(self, session: ProbeSession, template: bytes, ring: TxRing, *, clocks: Clocks | None = None) -> None:
        self._encoder = FrameEncoder(session, template)
        self._clocks = clocks or Clocks()
        self._ring = ring
        ring.frames[:] = self._encoder.template

    @classmethod
    def open(
        cls, session: ProbeSession, template: bytes, netns: str, device: str, *, slots: int = SLOTS
    ) -> "RingSender":
        """A sender by a device of a namespace ("" for the caller's own), with a ring of so many slots.

        Raises:
            HostNotReadyError: the device is not there, not up, or does not take such frames (see TxRing).
            UsageError: the session does not fit the wire.
        """
        ring = TxRing(netns, device, len(template), slots=slots)
        try:
            return cls(session, template, ring)
        except BaseException:
            ring.close()
            raise

    def close(self) -> None:
        """Let go of the ring. Twice is fine."""
        self._ring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(
        self,
        first_seq: int,
        count: int,
        schedule: Schedule | None = None,
        *,
        burst_frames: int | None = BURST_FRAMES,
        gather_ns: int = 0,
        on_block: Callable[[SentBlock], object] = _ignore,
        stopped: Callable[[], bool] = _never,
    ) -> RingSent:
        """Send the probes first_seq .. first_seq + count - 1 in order.

        Args:
            first_seq: number of the first.
            count: how many.
            schedule: when; its own count starts at 0 with first_seq. None for flat out. A late sender catches up.
            burst_frames: at most so many in any millisecond. The default is what a userspace vswitch bears; it also
                bounds "flat out", to 64,000/s. Give more, or None for no limit, only where the kernel alone stands
                between here and the destination.
            gather_ns: wake up no more often than this, and without spinning: what became due in between goes at once,
                late by so much at most (and what a sleep is late). 0 spins for each probe's own time, which takes a
                whole CPU.
            on_block: called with what was sent, in order, some hundreds of probes at a time; keep it short, nothing is
                sent meanwhile. The arrays are the callee's own.
            stopped: asked at least before each call of the kernel; once it says True nothing more is sent.

        Returns:
            What was sent. A device that fails on the way does not raise: `failure` says it.

        Raises:
            UsageError: numbers outside the session, a burst limit below 1.
        """
        self._encoder.check_range(first_seq, count)
        sending = _Sending(self._encoder, self._ring, self._clocks, schedule, BurstWindow(burst_frames))
        sending.gather_ns, sending.on_block, sending.stopped = gather_ns, on_block, stopped
        return sending.run(first_seq, count)


class _Sending:
    """One call of `send`.

    Attributes:
        gather_ns, on_block, stopped: see `RingSender.send`.
        failure: why nothing more is sent, "" so far.
        is_stopped: nothing more is sent because `stopped` said so.
    """

    def __init__(
        self, encoder: FrameEncoder, ring: TxRing, clocks: Clocks, schedule: Schedule | None, window: BurstWindow
    ) -> None:
        self._encoder, self._ring, self._clocks = encoder, ring, clocks
        self._schedule, self._window = schedule, window
        self.gather_ns = 0
        self.on_block: Callable[[SentBlock], object] = _ignore
        self.stopped: Callable[[], bool] = _never
        self.failure = ""
        self.is_stopped = False
        self._tally = PacingTally()
        self._swept_ns = 0  # what was due until then may go
        self._first_seq = self._count = 0
        self._next = 0  # where the columns begin that come after those in work; `_ahead` are they, once computed
        self._ahead: Columns | None = None
        self._columns_ns = 0  # what computing them takes
        self._t1_offset = encoder.t1_offset
        self._patch_ns, self._frame_ns = 0, 700.0  # what T1 takes, and a frame in the kernel: learned on the way

    def run(self, first_seq: int, count: int) -> RingSent:
        ring, clock = self._ring, self._clocks.monotonic
        given_back, refused, start_ns, sent = ring.given_back, ring.refused, 0, 0
        self._first_seq, self._count = first_seq, count
        while sent < count and not self.failure and not self.is_stopped:
            columns = self._ahead or self._columns(sent)
            self._ahead, self._next = None, sent + len(columns)
            start_ns = start_ns or clock()
            sent += self._send_columns(columns, sent)
            self._check_link()
        ring.forget()
        return RingSent(
            planned=count,
            sent=sent,
            unsent=count - sent,
            given_back=ring.given_back - given_back,
            refused=ring.refused - refused,
            start_ns=start_ns or clock(),
            end_ns=clock(),
            pacing=None if self._schedule is None else self._tally.stats(count, sent, self._window.pauses),
            pauses=self._window.pauses,
            failure=self.failure,
        )

    def _check_link(self) -> None:
        if not self.failure and (problem := self._ring.link_problem()):
            self.failure = f"device {self._ring.device}: {problem}"

    def _columns(self, at: int) -> Columns:
        """What differs in the frames of the probes at, at + 1, ... of this call."""
        clock, most = self._clocks.monotonic, COLUMN_FRAMES if self._schedule is None else PACED_COLUMN_FRAMES
        began_ns = clock()
        columns = self._encoder.columns(self._first_seq + at, min(most, self._count - at))
        self._columns_ns = clock() - began_ns
        return columns

    def _look_ahead(self, until_ns: int) -> None:
        """Compute the next columns now if that is done before a time."""
        left_ns = until_ns - self._clocks.monotonic()
        if self._ahead is None and self._next < self._count and left_ns > self._columns_ns + SPIN_NS // 4:
            self._ahead = self._columns(self._next)

    def _send_columns(self, columns: Columns, at: int) -> int:
        """Send probes at, at + 1, ... of this call; how many of them were sent."""
        done = 0
        while done < len(columns) and not self.failure and not self.is_stopped:
            rows = self._ring.claim(min(BLOCK_FRAMES, len(columns) - done))
            if rows.start == rows.stop:
                self.failure = f"device {self._ring.device}: frames do not leave it"
                break
            frames = self._ring.frames[rows]
            columns.write(frames, done)
            block = self._send_block(frames, at + done)
            done += len(block.times_ns)
            if len(block.times_ns):
                self.on_block(block)
        return done

    def _send_block(self, frames: npt.NDArray[np.uint8], at: int) -> SentBlock:
        """Hand claimed slots over as they fall due; the block holds those that were sent."""
        due = None if self._schedule is None else self._schedule.due_ns(at, len(frames))
        listed = None if due is None else due.tolist()
        done, times, taken_ns, counts = 0, [], [], []
        while done < len(frames) and not self.failure:
            ready = self._wait_ready(listed, done, len(frames))
            if not ready:
                self.is_stopped = True
                break
            taken, times_ns, end_ns = self._hand_over(frames[done : done + ready])
            done += taken
            times.append(times_ns)
            taken_ns.append(end_ns)
            counts.append(taken)
        errors = None
        if due is not None:
            errors = np.repeat(np.array(taken_ns, np.int64), counts) - due[:done]
            self._tally.add(errors)
        return SentBlock(self._first_seq + at, np.concatenate(times) if times else np.empty(0, np.int64), errors)

    def _hand_over(self, frames: npt.NDArray[np.uint8]) -> tuple[int, I64, int]:
        """Send the next claimed slots: how many were sent, when (realtime), and when the last was (monotonic)."""
        clock, count = self._clocks.monotonic, len(frames)
        wall_ns, start_ns = self._clocks.realtime(), clock()
        if self._t1_offset is not None:
            steps_ns = (np.arange(count, dtype=np.int64) * self._frame_ns).astype(np.int64)
            self._stamp(frames, self._t1_offset, wall_ns + self._patch_ns + steps_ns)
            patched_ns = clock()
            self._patch_ns, start_ns = min(patched_ns - start_ns, MOST_PATCH_NS), patched_ns
        handed = self._ring.hand_over(count)
        end_ns = clock()
        self._window.sent(handed.taken, end_ns)
        self.failure = handed.failure
        self._frame_ns += (min((end_ns - start_ns) / count, MOST_FRAME_NS) - self._frame_ns) / 8
        return handed.taken, np.full(handed.taken, wall_ns, np.int64), end_ns

    def _stamp(self, frames: npt.NDArray[np.uint8], t1_offset: int, times_ns: I64) -> None:
        """Write T1: one by one where that is quicker."""
        checksum_offset = self._encoder.checksum_offset
        if len(frames) > SCALAR_FRAMES:
            patch_t1_rows(frames, t1_offset, checksum_offset, times_ns)
            return
        for row, t_ns in zip(frames, times_ns.tolist(), strict=True):
            patch_t1(row.data, t1_offset, checksum_offset, ns_to_ntp(t_ns))

    def _wait_ready(self, due_ns: list[int] | None, done: int, end: int) -> int:
        """Wait until some of the frames done..end-1 may go; how many, 0 when stopped."""
        clock = self._clocks.monotonic
        while not self.stopped():
            now_ns = clock()
            if due_ns is None:
                ready = end - done
            else:
                if not self.gather_ns:
                    self._swept_ns = now_ns
                ready = bisect_right(due_ns, self._swept_ns, done) - done
            if not ready:
                assert due_ns is not None
                self._wait_due(due_ns[done])
            elif (room := self._window.room(ready, now_ns)) > 0:
                return room
            else:
                self._wait(self._window.free_ns())
        return 0

    def _wait_due(self, due_ns: int) -> None:
        """All that was due is sent: wait for more, or until stopped."""
        until_ns = max(due_ns, self._swept_ns + self.gather_ns) if self.gather_ns else due_ns
        self._look_ahead(until_ns)
        if not self.gather_ns:
            self._wait(until_ns)
            return
        clock = self._clocks.monotonic
        while (left_ns := until_ns - clock()) > 0 and not self.stopped():
            self._clocks.sleep(min(left_ns, MAX_SLEEP_NS) / 1e9)
        self._swept_ns = clock()

    def _wait(self, until_ns: int) -> None:
        wait_until(until_ns, clock=self._clocks.monotonic, sleep=self._clocks.sleep, stopped=self.stopped)
