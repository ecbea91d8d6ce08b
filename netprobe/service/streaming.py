"""A stream: one session of any length and rate, settled window by window while it runs.

For sessions that are too long to be one order, or too fast for a guest's agent: a transmit ring sends (a process of
its own, service.stream_sender), rings look, and collect.windows keeps the ledger of what is under way and the totals of
what is over, in memory that does not grow with the stream. One leg, one clock, one host.
"""

import gc
import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import trio

from netprobe.collect.session import BlindWindow
from netprobe.collect.windows import MAX_LIVE, ClosedWindow, Windows
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.inject.ring_sender import RingSent
from netprobe.model.observations import Blind, Hops, Report, Tallies, Tally, Unwatched, Watermark
from netprobe.model.points import Leg, Stop
from netprobe.model.results import LegResult
from netprobe.observe.ring import blocks_for
from netprobe.service.looking import Looker
from netprobe.service.stream_sender import SenderProcess, Sending, open_sender

DRAIN_S = 0.03
"""How often the rings are read: a decode costs the same for one frame as for hundreds."""

FLAT_OUT_PPS = 500_000
"""What the rings are made for when nobody says how fast."""


@dataclass(frozen=True, slots=True)
class StreamOrder:
    """What to stream, and where to look.

    Attributes:
        sending: who sends what.
        stops: of the forward leg; the first is the sender.
        tmax_ns: waiting time.
        max_live: probes whose fate may be open at a time; see collect.windows.
        unobserved: why no ring can see what passes a point, by its id.
        keeps_hops: whether closed windows come with their records.
    """

    sending: Sending
    stops: tuple[Stop, ...]
    tmax_ns: int
    max_live: int = MAX_LIVE
    unobserved: dict[str, str] = field(default_factory=dict)
    keeps_hops: bool = False


@dataclass(frozen=True, slots=True)
class StreamOutcome:
    """What became of a stream.

    Attributes:
        result: ledger and segments of all of it.
        sent: what the sender says, None where it died.
        failure: why sending ended early, "" when it did not.
        unwatched: why nobody looked at a point, by its id.
        counters: records that were not kept, by why (collect.windows).
        tallies: what was counted at each point, by its id.
        max_rss_bytes: the most memory that this process had until then.
        cpu_s: processor seconds of the looking half.
    """

    result: LegResult
    sent: RingSent | None
    failure: str
    unwatched: dict[str, str]
    counters: dict[str, int]
    tallies: dict[str, Tally]
    max_rss_bytes: int
    cpu_s: float

    @property
    def residue(self) -> int:
        """What the ledger does not account for: 0, always (design §2)."""
        one = self.result
        return one.planned - (one.unsent + one.delivered + one.lost + one.unobserved + one.pending)


def _ignore(_window: ClosedWindow) -> None:
    pass


class _Settling:
    """Reports in, closed windows out."""

    def __init__(self, order: StreamOrder, on_window: Callable[[ClosedWindow], object]) -> None:
        self._order, self._on_window = order, on_window
        self._session = order.sending.probe.session
        self.unwatched: dict[int, str] = {}
        self.tallies: dict[int, Tally] = {}
        self.watermark_ns = 0
        self.windows: Windows | None = None

    def begin(self) -> Windows:
        """All rings are open, or not to be had."""
        order = self._order
        self.windows = Windows(
            order.stops,
            range(len(order.stops)),
            count=order.sending.probe.count,
            tmax_ns=order.tmax_ns,
            max_live=order.max_live,
            unwatched=frozenset(order.stops[i].point.id for i in self.unwatched),
            keeps_hops=order.keeps_hops,
        )
        return self.windows

    def take(self, report: Report) -> None:
        """One report of the looker."""
        windows = self.windows
        if isinstance(report, Hops) and windows is not None:
            batch = report.hops
            is_ours = (batch.session == self._session) & (batch.leg == Leg.FORWARD)
            windows.feed(batch if is_ours.all() else batch.where(is_ours))
        elif isinstance(report, Blind) and windows is not None:
            windows.blind(BlindWindow(report.point, report.start_ns, report.end_ns))
        elif isinstance(report, Unwatched) and report.why:
            self.unwatched[report.point] = report.why
        elif isinstance(report, Tallies):
            self.tallies |= report.by_point
        elif isinstance(report, Watermark):
            self.watermark_ns = report.until_ns

    def close_windows(self, closed: Sequence[ClosedWindow]) -> None:
        for window in closed:
            self._on_window(window)


async def stream(
    order: StreamOrder, stop: StopRequest, on_window: Callable[[ClosedWindow], object] = _ignore
) -> StreamOutcome:
    """Send a stream, look, and settle it.

    Args:
        order: what, where.
        stop: once asked, nothing more is sent; what was sent is settled all the same.
        on_window: takes each window as it is closed: for a store, or a table. Keep it short.

    Raises:
        HostNotReadyError: the sender's device is not there, or packet sockets are not permitted.
    """
    settling = _Settling(order, on_window)
    looker = Looker([order.sending.probe], settling.take, blocks=_ring_blocks(order))
    cpu_before_s = _cpu_s()
    with ExitStack() as stack:
        sender = stack.enter_context(open_sender(order.sending))
        await trio.to_thread.run_sync(sender.wait_ready)
        places = {i: s.point for i, s in enumerate(order.stops) if i and s.is_observed_by_ring}
        looker.open_rings(places, stack, order.unobserved)
        windows = settling.begin()
        gc.freeze()  # what is there stays there: a collection in the middle would only cost time
        sender.go()
        await _follow(sender, looker, settling, stop)
        await _wait_out(order, windows, looker, settling, sender)
        settling.close_windows(windows.finish(realtime_ns(), is_sender_lost=sender.done is None))
    return _outcome(order, settling, sender, _cpu_s() - cpu_before_s)


def _ring_blocks(order: StreamOrder) -> int:
    """Rings that bear half a second without a reader."""
    pps = order.sending.pps or FLAT_OUT_PPS
    return blocks_for(pps, frame_bytes=order.sending.probe.type_p.size_bytes)


def _tell_sent(sender: SenderProcess, windows: Windows) -> None:
    for first, times_ns in sender.told():
        # No probe left before its time; how long after is not known to the microsecond, so no delay is made of it.
        windows.sent(first, times_ns, np.zeros(len(times_ns), np.bool_))


async def _follow(sender: SenderProcess, looker: Looker, settling: _Settling, stop: StopRequest) -> None:
    """Read rings and sender until all is sent."""
    windows = settling.windows
    assert windows is not None
    while not sender.is_over:
        await trio.sleep(DRAIN_S)
        if stop.asked():
            sender.stop()
        _tell_sent(sender, windows)
        looker.flush()
        # What is under way may not be judged by what is known of the rings alone.
        until_ns = settling.watermark_ns if sender.is_over else min(settling.watermark_ns, sender.until_ns)
        settling.close_windows(windows.advance(until_ns))


async def _wait_out(
    order: StreamOrder, windows: Windows, looker: Looker, settling: _Settling, sender: SenderProcess
) -> None:
    """Until the last window is closed: at the latest when its waiting time is over by the watermark."""
    over_ns = realtime_ns() + order.tmax_ns
    while windows.live and settling.watermark_ns <= over_ns:
        await trio.sleep(DRAIN_S)
        _tell_sent(sender, windows)
        looker.flush()
        settling.close_windows(windows.advance(settling.watermark_ns))


def _outcome(order: StreamOrder, settling: _Settling, sender: SenderProcess, cpu_s: float) -> StreamOutcome:
    windows = settling.windows
    assert windows is not None
    ids = [stop.point.id for stop in order.stops]
    return StreamOutcome(
        result=windows.totals.result(),
        sent=sender.done,
        failure=sender.failure or (sender.done.failure if sender.done else ""),
        unwatched={ids[i]: why for i, why in settling.unwatched.items()},
        counters={name: count for name, count in windows.counters.items() if count},
        tallies={ids[i]: tally for i, tally in settling.tallies.items()},
        max_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        cpu_s=cpu_s,
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
