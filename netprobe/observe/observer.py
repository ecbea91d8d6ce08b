"""An observer: one ring on one point, decoded a block at a time into reports: hop records, answers, blind times.

The ring is below, wire.decode beside; service.looking drains it whenever it is readable and asks for the tally at the
end. Whatever the ring or the decoder shed is counted here and ends up in the result.
"""

import numpy as np
import numpy.typing as npt

from netprobe.host.clock import realtime_ns
from netprobe.model.contexts import HopContext
from netprobe.model.observations import FOR_EVER_NS, Blind, Hops, Report, Sightings, Tally, Unwatched
from netprobe.model.points import Direction, Leg, Point
from netprobe.model.records import NO_CONTEXT, HopBatch
from netprobe.observe.ring import BLOCK_BYTES, BLOCKS, RUN_RETIRE_MS, RxRing
from netprobe.wire.decode import Decoded, Decoder, Kind

MAX_CONTEXTS = 4_096
"""Different surroundings that are kept a point: a guest that spoofs must not fill the memory."""

FRAMES_AT_ONCE = 8_192
"""Frames that are decoded together. The costs of numpy's calls are spread over many, but what is worked on has to stay
in the processor's cache, and in memory that the C library does not give back at once."""

GUEST_PRESENCE = (Kind.STAMP_REPLY, Kind.ECHO_REPLY, Kind.SYN_ACK, Kind.RST)
"""Answers that only the probed guest can have given; an ICMP error may come from anywhere on the way."""
_IS_GUEST_PRESENCE = np.array([kind in GUEST_PRESENCE for kind in sorted(Kind)])


class Decoding:
    """Decoded frames of one point, as reports and counts; fed by a ring or by a guest's agent.

    Args:
        point: index of the point in the run.
        decoder: for the sessions of the run.
        dscp: the class mark of each session that has one.
        only_answers_of: keep only answers, and of these sessions: what a guest's agent sees of others' probes is told
            by their answers already.
        tunnels: look into tunnels; only where no guest could have made them.
    """

    def __init__(
        self,
        point: int,
        decoder: Decoder,
        dscp: dict[int, int],
        only_answers_of: frozenset[int] | None = None,
        *,
        tunnels: bool = False,
    ) -> None:
        self.point = point
        self.tally = Tally()
        self.contexts: list[HopContext] = []
        self._only = None if only_answers_of is None else np.array(sorted(only_answers_of), np.uint32)
        self._decoder = decoder
        self._tunnels = tunnels
        self._dscp = dscp
        self._known: dict[HopContext, int] = {}

    def feed(
        self,
        buffer: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        t_ns: npt.NDArray[np.int64],
        direction: npt.NDArray[np.uint8],
        *,
        vlan: npt.NDArray[np.int64] | None = None,
    ) -> list[Report]:
        """Decode frames; nothing of `buffer` is kept.

        Args:
            buffer: octets.
            offsets: shape (n,); where each Ethernet header starts.
            lengths: shape (n,); captured octets.
            t_ns: shape (n,); stamps.
            direction: shape (n,); model.points.Direction.
            vlan: shape (n,); VLAN id that the kernel took off the frame, -1 where none; None for none at all.

        Returns:
            Hop records and answers among them.
        """
        decoded = self._decoder.decode(buffer, offsets, lengths, vlan, tunnels=self._tunnels)
        self._count(decoded)
        if not len(decoded):
            return []
        batch = HopBatch.from_columns(
            t_ns=t_ns.take(decoded.index),
            session=decoded.session,
            seq=decoded.seq,
            point=self.point,
            direction=direction.take(decoded.index),
            leg=decoded.leg,
            context=self._contexts(decoded),
        )
        if self._only is not None:
            batch = batch.where((batch.leg == Leg.RETURN) & np.isin(batch.session, self._only))
        found: list[Report] = [Hops(batch)] if len(batch) else []
        is_answer = _IS_GUEST_PRESENCE.take(decoded.kind)
        if is_answer.any():
            found.append(
                Sightings(
                    point=np.full(int(np.count_nonzero(is_answer)), self.point, np.uint16),
                    session=decoded.session[is_answer],
                    seq=decoded.seq[is_answer],
                    t2_ns=decoded.t2_ns[is_answer],
                    t3_ns=decoded.t3_ns[is_answer],
                    reflector_seq=decoded.reflector_seq[is_answer],
                    seen_ns=t_ns[decoded.index[is_answer]],
                )
            )
        return found

    def _contexts(self, decoded: Decoded) -> npt.NDArray[np.uint16]:
        """Indices of what was around each probe in this point's list, which grows by what is new."""
        own = np.full(len(decoded.contexts), NO_CONTEXT, np.uint16)
        for i, context in enumerate(decoded.contexts):
            number = self._known.get(context)
            if number is None and len(self.contexts) < MAX_CONTEXTS:
                number = self._known[context] = len(self.contexts)
                self.contexts.append(context)
            own[i] = NO_CONTEXT if number is None else number
        indices = own[decoded.context]
        self.tally.contexts_shed += int(np.count_nonzero(indices == NO_CONTEXT))
        return indices

    def _count(self, decoded: Decoded) -> None:
        tally = self.tally
        tally.forged += decoded.forged
        tally.unknown_session += decoded.unknown
        tally.foreign += decoded.foreign
        tally.merged += decoded.merged
        tally.weak += int(np.count_nonzero(decoded.weak))
        tally.icmp_errors += int(np.count_nonzero(decoded.kind == Kind.ICMP_ERROR))
        if len(set(self._dscp.values())) == 1 and (decoded.dscp == next(iter(self._dscp.values()))).all():
            return  # as it nearly always is, however many sessions
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
        mirrored: the device is a mirror's, to which what crosses the point in this direction comes in.
        block_bytes, blocks: the ring's size; see observe.ring.

    Raises:
        UsageError: too few blocks.
        HostNotReadyError: the ring cannot be opened.
    """

    def __init__(
        self,
        place: Point,
        program: bytes,
        decoding: Decoding,
        mirrored: Direction | None = None,
        *,
        block_bytes: int = BLOCK_BYTES,
        blocks: int = BLOCKS,
    ) -> None:
        self.place = place
        self.decoding = decoding
        self._mirrored = mirrored
        self._ring = RxRing(
            place.netns,
            place.device,
            program,
            incoming_only=mirrored is not None,
            block_bytes=block_bytes,
            blocks=blocks,
            retire_ms=RUN_RETIRE_MS,
        )
        self.failure = ""  # why the ring sees nothing any more
        self._checked_ns = realtime_ns()

    @property
    def points(self) -> frozenset[int]:
        """The point that it looks at."""
        return frozenset({self.decoding.point})

    def fileno(self) -> int:
        """For select and trio."""
        return self._ring.fileno()

    @property
    def memory_bytes(self) -> int:
        """What its ring takes."""
        return self._ring.memory_bytes

    def drain(self) -> list[Report]:
        """Decode every block that the kernel has handed over.

        If frames were dropped since the last call, the point was blind in between; if its device went down, from then
        on. The time is read after the drops, so that the window holds them all.
        """
        point, tally = self.decoding.point, self.decoding.tally
        found: list[Report] = []
        left = self._ring.ready()  # a ring that fills as fast as it is read has an end too
        while left > 0 and (frames := self._ring.frames(FRAMES_AT_ONCE)) is not None:
            tally.unstamped += frames.unstamped
            direction = frames.direction
            if self._mirrored is not None:
                direction = np.full_like(direction, self._mirrored)
            found += self.decoding.feed(
                frames.buffer, frames.offsets, frames.lengths, frames.t_ns, direction, vlan=frames.vlan
            )
            self._ring.release(frames.blocks)
            left -= frames.blocks
        dropped = self._ring.drops()
        failure = self._ring.failure()
        now_ns = realtime_ns()
        if dropped:
            tally.dropped += dropped
            found.append(Blind(point, self._checked_ns, now_ns, f"its ring had no room for {dropped} frames"))
        if failure and not self.failure:
            self.failure = failure
            found.append(Blind(point, self._checked_ns, FOR_EVER_NS, failure))
            found.append(Unwatched(point, f"its device failed meanwhile: {failure}", self._checked_ns))
        self._checked_ns = now_ns
        return found

    def close(self) -> None:
        """Take the ring down."""
        self._ring.close()
