"""Everything that looks during one run: a ring on every observed point, and what guests' agents report.

Owned by service.run: it opens the rings, reads them in its nursery and asks at the end for hop records and answers.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import trio

from netprobe.collect.answers import Answers, concat, timed
from netprobe.collect.session import BlindWindow
from netprobe.errors import HostNotReadyError
from netprobe.host.clock import StepDetector, realtime_ns
from netprobe.host.guest_agent import GuestFrames
from netprobe.model.points import Leg, Point, Vantage
from netprobe.model.records import HopBatch
from netprobe.observe.observer import Decoding, Observer, Sightings
from netprobe.service.prepare import Prepared
from netprobe.wire.bpf import probe_filter
from netprobe.wire.decode import Decoder


class Completion:
    """Tells when every probe that was sent has been seen at the last stop that it can be seen at."""

    def __init__(self, prepared: Iterable[Prepared], point_index: dict[str, int]) -> None:
        self._seen: dict[int, npt.NDArray[np.bool_]] = {}
        self._stop: dict[int, tuple[int, int, int]] = {}
        self._sent: dict[int, npt.NDArray[np.bool_]] = {}
        for one in prepared:
            leg = Leg.RETURN if one.path.returned else Leg.FORWARD
            last = [s for s in one.path.leg(leg) if s.is_observed_by_ring][-1]
            number = one.probe.session
            self._seen[number] = np.zeros(one.probe.count, np.bool_)
            self._stop[number] = (point_index[last.point.id], int(last.direction), int(leg))

    def note_sent(self, session: int, was_sent: npt.NDArray[np.bool_]) -> None:
        """What has been sent of a session; shape (count,)."""
        self._sent[session] = was_sent

    def note(self, batch: HopBatch) -> None:
        """Hop records that came in."""
        if not len(batch):
            return
        for session, (point, direction, leg) in self._stop.items():
            here = (batch.session == session) & (batch.point == point)
            here &= (batch.direction == direction) & (batch.leg == leg)
            self._seen[session][batch.seq[here]] = True

    @property
    def is_complete(self) -> bool:
        """Whether nothing is outstanding; False until all sessions are sent."""
        if len(self._sent) < len(self._seen):
            return False
        return all(bool((self._seen[s] | ~sent).all()) for s, sent in self._sent.items())


class Watch:
    """The observers of one run.

    Args:
        prepared: its sessions; their paths say where to look.
    """

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        stops = [s for one in prepared for leg in (one.path.forward, one.path.returned) for s in leg]
        places = {s.point.id: s.point for s in stops}
        self.points = list(places)
        self.point_index = {name: i for i, name in enumerate(self.points)}
        probes = [one.probe for one in prepared]
        self.program = probe_filter(probes)
        self.decoder = Decoder(probes)
        self.dscp = {p.session: p.type_p.dscp for p in probes if p.type_p.dscp is not None}
        self.completion = Completion(prepared, self.point_index)
        self.unwatched: dict[str, str] = {}
        self.unwatched_since: dict[str, str] = {}
        self.steps = StepDetector()
        self.changed = trio.Event()
        self._sent_at: dict[str, frozenset[int]] = {}
        for one in prepared:
            if one.plan.vantage is Vantage.VSWITCH:
                continue  # the guest that is played is no observer
            own = one.sender.chain[0].id
            self._sent_at[own] = self._sent_at.get(own, frozenset()) | {one.probe.session}
        self.ring_places = [
            places[s.point.id]
            for s in {s.point.id: s for s in stops if s.is_observed_by_ring}.values()
            if s.point.id not in self._sent_at
        ]
        self._observers: list[Observer] = []
        self._agent_windows: list[BlindWindow] = []
        self._decodings: dict[str, Decoding] = {}

    def open_rings(self, stack: ExitStack) -> None:
        """Open a ring on every point that has a device; a point that has none is unobserved, and the result says so."""
        for place in self.ring_places:
            decoding = self.decoding(place)
            try:
                observer = Observer(place, self.program, decoding)
            except HostNotReadyError as error:
                self.unwatched[place.id] = str(error)
                continue
            stack.callback(observer.close)
            self._observers.append(observer)

    def decoding(self, place: Point) -> Decoding:
        """Where frames of a point go."""
        if place.id not in self._decodings:
            sent_here = self._sent_at.get(place.id)
            self._decodings[place.id] = Decoding(self.point_index[place.id], self.decoder, self.dscp, sent_here)
        return self._decodings[place.id]

    def read_rings(self, nursery: trio.Nursery) -> None:
        """Start a reader for each ring in `nursery`; they run until it is cancelled."""
        for observer in self._observers:
            nursery.start_soon(self._read, observer)

    async def _read(self, observer: Observer) -> None:
        while not observer.failure:  # a ring whose device is down would be readable for ever
            await trio.lowlevel.wait_readable(observer)
            self.took(observer.drain())
            if observer.failure:
                self.unwatched_since[observer.place.id] = f"its device failed meanwhile: {observer.failure}"

    def decode_agent_frames(self, place: Point, batches: Sequence[GuestFrames]) -> HopBatch:
        """Decode what a guest's agent saw at its own NIC."""
        starts = np.cumsum([0, *(len(b.buf) for b in batches[:-1])])
        return self.decoding(place).feed(
            np.concatenate([b.buf for b in batches]),
            np.concatenate([b.offsets + start for b, start in zip(batches, starts, strict=True)]),
            np.concatenate([b.lengths for b in batches]),
            np.concatenate([b.t_ns for b in batches]),
            np.concatenate([b.direction for b in batches]),
        )

    def lost_sight(self, point: str, since_ns: int) -> None:
        """Frames were shed at a guest's own point, or its agent died: for the whole run its silence proves nothing."""
        if point in self.point_index:
            self._agent_windows.append(BlindWindow(self.point_index[point], since_ns, realtime_ns()))

    def took(self, batch: HopBatch) -> None:
        """New hop records came in; wakes whoever waits for completion."""
        self.completion.note(batch)
        self.changed.set()
        self.changed = trio.Event()

    def drain(self) -> None:
        """Read what is left in the rings, at the end."""
        self.steps.check()
        for observer in self._observers:
            self.completion.note(observer.drain())

    @property
    def windows(self) -> list[BlindWindow]:
        """When points may have lost sight of probes."""
        return [w for observer in self._observers for w in observer.windows] + self._agent_windows

    @property
    def decodings(self) -> list[tuple[str, Decoding]]:
        """All decodings by point id."""
        return list(self._decodings.items())

    def hops(self) -> HopBatch:
        """All hop records, those of one point in arrival order."""
        return HopBatch.concat(b for d in self._decodings.values() for b in d.batches)

    def answers(self, session: int) -> Answers:
        """The distinct answers to one session's probes."""
        return concat([_of(s, session) for d in self._decodings.values() for s in d.sightings]).unique()


def _of(sightings: Sightings, session: int) -> Answers:
    mine = sightings.session == session
    return Answers(
        seq=sightings.seq[mine],
        t2_ns=timed(sightings.t2_ns[mine]),
        t3_ns=timed(sightings.t3_ns[mine]),
        reflector_seq=sightings.reflector_seq[mine],
        seen_ns=sightings.seen_ns[mine],
    )
