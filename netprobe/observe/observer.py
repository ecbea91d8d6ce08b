"""An observer: one ring on one point, decoded a block at a time into hop records and answers.

The ring is below, wire.decode beside; service.run reads `drain` whenever the ring is readable and asks for `report` at
the end. Whatever the ring or the decoder shed is counted here and ends up in the result.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from netprobe.collect.session import BlindWindow
from netprobe.host.clock import realtime_ns
from netprobe.model.points import Leg, Point
from netprobe.model.records import HopBatch
from netprobe.observe.ring import RxRing
from netprobe.wire.decode import Decoded, Decoder, Kind

FOR_EVER_NS = 2**62

GUEST_PRESENCE = (Kind.STAMP_REPLY, Kind.ECHO_REPLY, Kind.SYN_ACK, Kind.RST)
"""Answers that only the probed guest can have given; an ICMP error may come from anywhere on the way."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """What one decoded block showed, beyond hop records: answers, as columns of shape (n,)."""

    session: npt.NDArray[np.uint32]
    seq: npt.NDArray[np.uint32]
    t2_ns: npt.NDArray[np.int64]
    t3_ns: npt.NDArray[np.int64]
    reflector_seq: npt.NDArray[np.int64]
    seen_ns: npt.NDArray[np.int64]


@dataclass(slots=True)
class Tally:
    """Counts of one observer."""

    forged: int = 0
    unknown_session: int = 0
    foreign: int = 0
    merged: int = 0
    weak: int = 0
    unstamped: int = 0
    dropped: int = 0
    icmp_errors: int = 0
    remarked: dict[int, int] = field(default_factory=dict)


class Decoding:
    """Decoded frames of one point, as hop records, answers and counts; fed by a ring or by a guest's agent.

    Args:
        point: index of the point in the run.
        decoder: for the sessions of the run.
        dscp: the class mark of each session that has one.
        only_answers_of: keep only answers, and of these sessions: what a guest's agent sees of others' probes is told
            by their answers already.
    """

    def __init__(
        self, point: int, decoder: Decoder, dscp: dict[int, int], only_answers_of: frozenset[int] | None = None
    ) -> None:
        self.point = point
        self._only = None if only_answers_of is None else np.array(sorted(only_answers_of), np.uint32)
        self.tally = Tally()
        self.batches: list[HopBatch] = []
        self.sightings: list[Sightings] = []
        self._decoder = decoder
        self._dscp = dscp

    def feed(
        self,
        buffer: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        t_ns: npt.NDArray[np.int64],
        direction: npt.NDArray[np.uint8],
    ) -> HopBatch:
        """Decode frames; nothing of `buffer` is kept.

        Args:
            buffer: octets.
            offsets: shape (n,); where each Ethernet header starts.
            lengths: shape (n,); captured octets.
            t_ns: shape (n,); stamps.
            direction: shape (n,); model.points.Direction.

        Returns:
            The hop records among them, kept too.
        """
        decoded = self._decoder.decode(buffer, offsets, lengths)
        self._count(decoded)
        batch = HopBatch.from_columns(
            t_ns=t_ns[decoded.index],
            session=decoded.session,
            seq=decoded.seq,
            point=self.point,
            direction=direction[decoded.index],
            leg=decoded.leg,
        )
        if self._only is not None:
            batch = batch.where((batch.leg == Leg.RETURN) & np.isin(batch.session, self._only))
        self.batches.append(batch)
        is_answer = np.isin(decoded.kind, GUEST_PRESENCE)
        if is_answer.any():
            self.sightings.append(
                Sightings(
                    session=decoded.session[is_answer],
                    seq=decoded.seq[is_answer],
                    t2_ns=decoded.t2_ns[is_answer],
                    t3_ns=decoded.t3_ns[is_answer],
                    reflector_seq=decoded.reflector_seq[is_answer],
                    seen_ns=t_ns[decoded.index[is_answer]],
                )
            )
        return batch

    def _count(self, decoded: Decoded) -> None:
        tally = self.tally
        tally.forged += decoded.forged
        tally.unknown_session += decoded.unknown
        tally.foreign += decoded.foreign
        tally.merged += decoded.merged
        tally.weak += int(np.count_nonzero(decoded.weak))
        tally.icmp_errors += int(np.count_nonzero(decoded.kind == Kind.ICMP_ERROR))
        for session, dscp in self._dscp.items():
            is_probe = (decoded.session == session) & (decoded.leg == Leg.FORWARD) & (decoded.kind == Kind.PROBE)
            changed = int(np.count_nonzero(is_probe & (decoded.dscp != dscp)))
            if changed:
                tally.remarked[session] = tally.remarked.get(session, 0) + changed


class Observer:
    """One ring and its decoding, open until `close`.

    Args:
        place: the point with its device.
        program: classic BPF that passes probes only.
        decoding: where its frames go.

    Raises:
        HostNotReadyError: the ring cannot be opened.
    """

    def __init__(self, place: Point, program: bytes, decoding: Decoding) -> None:
        self.place = place
        self.decoding = decoding
        self.windows: list[BlindWindow] = []
        self._ring = RxRing(place.netns, place.device, program)
        self.failure = ""  # why the ring sees nothing any more
        self._checked_ns = realtime_ns()

    def fileno(self) -> int:
        """For select and trio."""
        return self._ring.fileno()

    def drain(self) -> HopBatch:
        """Decode every block that the kernel has handed over.

        If frames were dropped since the last call, the point was blind in between; if its device went down, from then
        on. The time is read after the drops, so that the window holds them all.
        """
        blocks = self._ring.blocks()
        batches = []
        for block in blocks:
            self.decoding.tally.unstamped += block.unstamped
            batches.append(self.decoding.feed(block.buffer, block.offsets, block.lengths, block.t_ns, block.direction))
        self._ring.release(len(blocks))
        dropped = self._ring.drops()
        failure = self._ring.failure()
        now_ns = realtime_ns()
        if dropped:
            self.decoding.tally.dropped += dropped
            self.windows.append(BlindWindow(self.decoding.point, self._checked_ns, now_ns))
        if failure and not self.failure:
            self.failure = failure
            self.windows.append(BlindWindow(self.decoding.point, self._checked_ns, FOR_EVER_NS))
        self._checked_ns = now_ns
        return HopBatch.concat(batches)

    def close(self) -> None:
        """Take the ring down."""
        self._ring.close()
