"""The looking part of a run, on the host or hosts that this process can reach: rings, and what guests' agents see.

Owned by service.part: it opens rings, reads them in its nursery, and hands every report on. What they mean is decided
where the collection is, here or on another machine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import StepDetector, realtime_ns
from netprobe.host.guest_messages import GuestFrames
from netprobe.host.ovs_mirror import IN, OUT
from netprobe.model.observations import FOR_EVER_NS, Blind, Contexts, Hops, Report, Tallies, Tally, Unwatched, Watermark
from netprobe.model.points import Direction, Point, PointKind, Stamp
from netprobe.model.probes import ProbeSession
from netprobe.observe.observer import Decoding, Observer
from netprobe.observe.ring import BLOCKS, RUN_RETIRE_MS
from netprobe.observe.vring import VringPlace, VringWatch
from netprobe.wire.bpf import probe_filter
from netprobe.wire.decode import Decoder

Emit = Callable[[Report], None]
GATHER_S, LONG_GATHER_S = 0.04, 0.06
"""Blocks are let gather for so long, the longer time while probes are sent; a ring holds 1.28 s of them. A decode costs
the same for one frame as for hundreds, and what it costs is taken from tenants."""

BUSY_RECORDS = 1_000
"""In one decode; with more of them a ring could get full meanwhile, which has room for some 10,000 frames."""

Vrings = Mapping[str, VringPlace | str]
NOBODY: Mapping[str, str] = {}
UNDERLAY = frozenset({PointKind.NIC, PointKind.FABRIC})
"""Where frames are in the cloud's own tunnels. Elsewhere a tunnel is a guest's, which could wrap what it likes."""

HANDED_OVER_NS = int(2.5 * RUN_RETIRE_MS * 1e6)
"""A frame that was stamped longer ago has been handed over by its ring, and a drain has seen it."""


def _rings_of(point: Point) -> tuple[tuple[str, Direction | None], ...]:
    """The devices on which rings look for one point, and which way what comes in there crossed it; None: as it is."""
    if point.stamp is not Stamp.MIRROR:
        return ((point.device, None),)
    return (point.device + IN, Direction.IN), (point.device + OUT, Direction.OUT)


class Looker:
    """Everything that looks in one part.

    Args:
        probes: the sessions to look for.
        emit: takes each report, in order.
        vrings: by host, its vswitch's vrings, or why they may not be looked at.
        blocks: of each ring; more where many probes a second are expected (observe.ring.blocks_for).
    """

    def __init__(
        self, probes: Sequence[ProbeSession], emit: Emit, vrings: Vrings | None = None, *, blocks: int = BLOCKS
    ) -> None:
        self.program = probe_filter(probes, tunnels=False)
        self._underlay_program = probe_filter(probes, tunnels=True)
        self.steps = StepDetector()
        self._emit = emit
        self._probes = probes
        self._blocks = blocks
        self._vrings = vrings or {}
        self._watches: dict[str, VringWatch] = {}
        self._decoder = Decoder(probes)
        self._dscp = {p.session: p.type_p.dscp for p in probes if p.type_p.dscp is not None}
        self._observers: list[Observer] = []
        self._reading: set[int] = set()
        self._watched: set[str] = set()
        self._decodings: dict[int, Decoding] = {}
        self._told: dict[int, int] = {}
        self._tallied: dict[int, str] = {}
        self._once: list[Blind | Unwatched] = []
        self._is_hurrying = trio.Event()

    def open_rings(
        self, places: Mapping[int, Point], stack: ExitStack, blind: Mapping[str, str] = NOBODY
    ) -> dict[int, Point]:
        """Open a ring on each point that has a device; of one that has none it is said that nobody looks.

        Args:
            places: points by their index in the run.
            stack: closes them.
            blind: why no ring can see what passes a point, by its id (Topology.unobserved).

        Returns:
            The points whose device is not there; it may yet come.
        """
        missing = {}
        for index, point in places.items():
            if point.id in blind:
                self._say_once(Unwatched(index, blind[point.id]))
            elif self._is_looking_at(index):
                continue
            elif point.stamp is Stamp.UPROBE:
                self._open_vring(index, point, stack)
            elif not self._open_ring(index, point, stack):
                missing[index] = point
        return missing

    def _is_looking_at(self, index: int) -> bool:
        looking: tuple[Observer | VringWatch, ...] = (*self._observers, *self._watches.values())
        return any(index in each.points and not each.failure for each in looking)

    def _open_vring(self, index: int, point: Point, stack: ExitStack) -> None:
        """Look at a vring, with the watch of its host's vswitch."""
        decoding = self.decoding(index)
        place = self._vrings.get(point.host, f"nobody looks at vrings of {point.host}")
        try:
            if point.host in self._watches:
                self._watches[point.host].add(point.socket, decoding)
            elif isinstance(place, str):
                self._say_once(Unwatched(index, place))
            else:
                watch = VringWatch(place, self._probes, {point.socket: decoding})
                stack.callback(watch.close)
                self._watches[point.host] = watch
        except HostNotReadyError as error:
            self._say_once(Unwatched(index, str(error)))

    def _open_ring(self, index: int, point: Point, stack: ExitStack) -> bool:
        is_underlay = point.kind in UNDERLAY
        is_again = index in self._decodings
        if not is_again:
            self._decodings[index] = Decoding(index, self._decoder, self._dscp, tunnels=is_underlay)
        program = self._underlay_program if is_underlay else self.program
        try:
            for device, direction in _rings_of(point):
                place = replace(point, device=device)
                observer = Observer(place, program, self._decodings[index], direction, blocks=self._blocks)
                stack.callback(observer.close)
                self._observers.append(observer)
        except HostNotReadyError as error:
            if not is_again:  # otherwise it was said when the ring failed, and until when it had looked
                self._say_once(Unwatched(index, str(error)))
            return False
        if is_again:  # a guest that went away has come back
            self._once = [r for r in self._once if r.point != index]
            self._emit(Unwatched(index, "", realtime_ns()))
        return True

    def _say_once(self, report: Blind | Unwatched) -> None:
        """What is said once is said again at the end: a block of an agent may have been lost."""
        self._once.append(report)
        self._emit(report)

    def dropped(self) -> int:
        """Frames that rings had no room for, so far."""
        return sum(decoding.tally.dropped for decoding in self._decodings.values())

    def repeat(self) -> None:
        """Say again where nobody looks."""
        self._tell(list(self._once))

    def decoding(self, point: int, only_answers_of: frozenset[int] | None = None) -> Decoding:
        """Where frames of a point go."""
        if point not in self._decodings:
            self._decodings[point] = Decoding(point, self._decoder, self._dscp, only_answers_of)
        return self._decodings[point]

    def read_rings(self, nursery: trio.Nursery) -> None:
        """Start a reader for each ring that has none yet; they run until `nursery` is cancelled."""
        for number, observer in enumerate(self._observers):
            if number not in self._reading:
                self._reading.add(number)
                nursery.start_soon(self._read, observer)
        for host, watch in self._watches.items():
            if host not in self._watched:
                self._watched.add(host)
                nursery.start_soon(self._read_vrings, watch)

    async def _read_vrings(self, watch: VringWatch) -> None:
        """Its programs may be gone for a while, with their vswitch, so nothing can be waited for but time."""
        while not watch.failure:
            await trio.sleep(GATHER_S)
            self._tell(watch.drain())

    async def _read(self, observer: Observer) -> None:
        is_busy = False
        while not observer.failure:  # a ring whose device is down would be readable for ever
            await trio.lowlevel.wait_readable(observer)
            await self.gather(is_busy=is_busy)
            reports = list(observer.drain())
            is_busy = sum(len(r.hops) for r in reports if isinstance(r, Hops)) > BUSY_RECORDS
            self._tell(reports)

    async def gather(self, *, is_busy: bool = False) -> None:
        """Let frames gather before they are decoded: long while probes are sent, less when their end is waited for.

        Args:
            is_busy: so many come that a ring could get full.
        """
        if is_busy or self._is_hurrying.is_set():
            await trio.sleep(GATHER_S)
        else:
            with trio.move_on_after(LONG_GATHER_S):
                await self._is_hurrying.wait()

    def hurry(self) -> None:
        """All has been sent, and somebody waits for what is still to be seen."""
        self._is_hurrying.set()

    def _tell(self, reports: Iterable[Report]) -> None:
        for report in reports:
            is_for_ever = isinstance(report, Unwatched) or (isinstance(report, Blind) and report.end_ns >= FOR_EVER_NS)
            if is_for_ever and report not in self._once:
                self._once.append(report)  # type: ignore[arg-type]
            self._emit(report)

    def take_agent_frames(self, point: int, batches: Sequence[GuestFrames]) -> None:
        """Decode what a guest's agent saw at its own NIC."""
        starts = np.cumsum([0, *(len(b.buf) for b in batches[:-1])])
        self._tell(
            self.decoding(point).feed(
                np.concatenate([b.buf for b in batches]),
                np.concatenate([b.offsets + start for b, start in zip(batches, starts, strict=True)]),
                np.concatenate([b.lengths for b in batches]),
                np.concatenate([b.t_ns for b in batches]),
                np.concatenate([b.direction for b in batches]),
            )
        )

    def lost_sight(self, point: int, since_ns: int, why: str) -> None:
        """Frames were shed at a guest's own point, or its agent died: its silence proves nothing from then on."""
        self._emit(Blind(point, since_ns, realtime_ns(), why))

    def unwatched(self, point: int, why: str, since_ns: int = 0) -> None:
        """Nobody looks at a point."""
        self._emit(Unwatched(point, why, since_ns))

    def flush(self) -> None:
        """Read what the rings hold, and say what has been counted until now and how far the reports go."""
        self.steps.check()
        until_ns = realtime_ns() - HANDED_OVER_NS
        for observer in self._observers:
            if not observer.failure:
                self._tell(observer.drain())
        for watch in self._watches.values():
            self._tell(watch.drain())
        self._tell(self._news())
        self._emit(Watermark(until_ns, self.steps.steps))

    def _news(self) -> Iterable[Report]:
        changed: dict[int, Tally] = {}
        for point, decoding in self._decodings.items():
            told = self._told.get(point, 0)
            if len(decoding.contexts) > told:
                yield Contexts(point, told, tuple(decoding.contexts[told:]))
                self._told[point] = len(decoding.contexts)
            now = repr(decoding.tally)
            if self._tallied.get(point) != now:
                self._tallied[point] = now
                changed[point] = decoding.tally
        if changed:
            yield Tallies(changed)
