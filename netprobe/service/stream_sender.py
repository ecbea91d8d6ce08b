"""The sending half of a stream: a process of its own, so that it never waits for the interpreter of the looking half.

It opens a transmit ring, says that it is ready, waits for the word, sends, and tells what it sent as it goes on.
Started and read by service.streaming, the only one that it talks to: it dies when nobody reads any more.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.synchronize import Event

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.inject.ring_pacing import EvenSchedule
from netprobe.inject.ring_sender import RingSender, RingSent, SentBlock
from netprobe.model.probes import ProbeSession

GATHER_FRAMES = 4_096
GATHER_NS = 20_000_000
"""What was sent is told once so many probes, or so much time, came together: a message costs as much as thousands."""

PIPE_BYTES = 1 << 20  # half a second of 250,000 probes/s: a reader that is busy must not hold the sender up
F_SETPIPE_SZ = 1031  # linux/fcntl.h; the fcntl module of Python 3.11 has it, but not on all builds
LEAD_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Sending:
    """What to send, by which device, and how fast.

    Attributes:
        template: of its frames (inject.templates).
        pps: probes a second; 0 for flat out.
        burst_frames: at most so many in any millisecond, 0 for no limit; what stands in the way must bear it.
        gather_ns: how late a probe may be so that several go at once; 0 hits each time, and takes a whole processor.
        cpu: processor to run on, -1 for any.
    """

    probe: ProbeSession
    template: bytes
    netns: str
    device: str
    pps: float
    burst_frames: int
    gather_ns: int
    cpu: int = -1


Told = tuple[int, npt.NDArray[np.int64]]
"""(number of the first probe, shape (n,) times of sending by CLOCK_REALTIME)."""


class SenderProcess:
    """The parent's end; from `open_sender`.

    Attributes:
        done: what it did, once it is over.
        failure: why it ended early.
        until_ns: all that was sent before this time (CLOCK_REALTIME) has been told.
    """

    def __init__(self, process: SpawnProcess, reports: Connection, go: Event, stop: Event) -> None:
        self._process, self._reports, self._go, self._stop = process, reports, go, stop
        self.done: RingSent | None = None
        self.failure = ""
        self.until_ns = 0

    def fileno(self) -> int:
        """For trio: readable when there is news, also when the process is gone."""
        return self._reports.fileno()

    def wait_ready(self) -> None:
        """Wait until its ring is open.

        Raises:
            HostNotReadyError: it cannot be.
        """
        self._take_one([])
        if self.failure:
            raise HostNotReadyError("stream", self.failure)

    def go(self) -> None:
        """The observers look: send."""
        self._go.set()

    def stop(self) -> None:
        """Send nothing more."""
        self._stop.set()
        self._go.set()

    @property
    def is_over(self) -> bool:
        """Whether it will tell nothing more."""
        return self.done is not None or bool(self.failure)

    def told(self) -> list[Told]:
        """What it has told since the last call, in the order of the probes' numbers. Does not wait."""
        found: list[Told] = []
        while not self.is_over and self._reports.poll():
            self._take_one(found)
        return found

    def _take_one(self, found: list[Told]) -> None:
        try:
            kind, *rest = self._reports.recv()
        except (EOFError, OSError):
            self.failure = "the sending process died"
            return
        if kind == "sent":
            first, times_ns, self.until_ns = rest
            found.append((first, np.frombuffer(times_ns, np.int64)))
        elif kind == "failed":
            self.failure = rest[0]
        elif kind == "done":
            self.done = rest[0]


@contextmanager
def open_sender(order: Sending) -> Iterator[SenderProcess]:
    """Start the process; it is gone at the end, whatever happens."""
    context = SpawnContext()
    reports, far_end = context.Pipe(duplex=False)
    fcntl.fcntl(reports.fileno(), F_SETPIPE_SZ, PIPE_BYTES)
    go, stop = context.Event(), context.Event()
    process = context.Process(target=_serve, args=(order, far_end, go, stop), daemon=True)
    process.start()
    far_end.close()
    try:
        yield SenderProcess(process, reports, go, stop)
    finally:
        stop.set()
        go.set()
        reports.close()
        process.join(1.0)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(order: Sending, reports: Connection, go: Event, stop: Event) -> None:
    """The process."""
    if order.cpu >= 0:
        os.sched_setaffinity(0, {order.cpu})
    try:
        _send(order, reports, go, stop)
    except NetprobeError as error:
        reports.send(("failed", str(error)))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the other half is gone, or is told by the same Ctrl-C and stops us itself


def _send(order: Sending, reports: Connection, go: Event, stop: Event) -> None:
    teller = _Teller(reports)
    with RingSender.open(order.probe, order.template, order.netns, order.device) as sender:
        reports.send(("ready",))
        go.wait()
        schedule = EvenSchedule(time.monotonic_ns() + LEAD_NS, order.pps) if order.pps else None
        done = sender.send(
            0,
            order.probe.count,
            schedule,
            burst_frames=order.burst_frames or None,
            gather_ns=order.gather_ns,
            on_block=teller.add,
            stopped=stop.is_set,
        )
    teller.flush()
    reports.send(("done", done))


class _Teller:
    """Gathers what was sent into messages."""

    def __init__(self, reports: Connection) -> None:
        self._reports = reports
        self._held: list[SentBlock] = []
        self._count, self._since_ns = 0, 0

    def add(self, block: SentBlock) -> None:
        now_ns = time.monotonic_ns()
        if not self._held:
            self._since_ns = now_ns
        self._held.append(block)
        self._count += len(block.times_ns)
        if self._count >= GATHER_FRAMES or now_ns - self._since_ns >= GATHER_NS:
            self.flush()

    def flush(self) -> None:
        if self._held:
            times_ns = np.concatenate([block.times_ns for block in self._held])
            # A block is told as soon as it is sent, so what is not among these was sent after the last of them began.
            self._reports.send(("sent", self._held[0].first_seq, times_ns.tobytes(), int(times_ns[-1])))
        self._held, self._count = [], 0
