"""What a spool knows of its blocks: which wait, which are acknowledged, which are lost; and how that stands on disk.

Bookkeeping only; host.spool, above, owns the files. Every change is noted in a segment (BlockHead, AckHead, ShedHead)
or repeated in the next segment's snapshot, so that replaying the segments in order gives the same book again.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import msgspec

from netprobe.host.record_file import Record, RecordFile, encode_record
from netprobe.wire.framing import Frame
from netprobe.wire.report import PartKey

Span = tuple[int, int]
"""CLOCK_REALTIME, ns: from, to."""

DAMAGED: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What replaying a damaged record raises."""


class BlockHead(msgspec.Struct, frozen=True, array_like=True):
    """Header of a block's record; its body is the block."""

    run: str
    boot: str
    number: int
    from_ns: int
    to_ns: int


class AckHead(msgspec.Struct, frozen=True, array_like=True):
    """Everything of (run, boot) below `next` is the collector's."""

    run: str
    boot: str
    next: int


class ShedHead(msgspec.Struct, frozen=True, array_like=True):
    """Blocks from `first` to below `end` are lost."""

    run: str
    boot: str
    first: int
    end: int
    from_ns: int
    to_ns: int


class PartHead(msgspec.Struct, frozen=True, array_like=True):
    """All that is known of one part, but for its waiting blocks."""

    run: str
    boot: str
    acked: int
    end: int
    acked_span: Span | None
    shed: list[tuple[int, int, int, int]]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """All that was known when a segment was begun; a part that is not in it was done with."""

    parts: list[PartHead]


Head = BlockHead | AckHead | ShedHead | Snapshot
_HEADS: Final[dict[int, type[Head]]] = {1: BlockHead, 2: AckHead, 3: ShedHead, 4: Snapshot}
_KINDS = {head: kind for kind, head in _HEADS.items()}
_ENCODER = msgspec.msgpack.Encoder()


def encode_note(head: Head, octets: bytes = b"") -> bytes:
    """The record of a change.

    Raises:
        UsageError: it is too long.
    """
    return encode_record(Frame(_KINDS[type(head)], _ENCODER.encode(head), octets))


@dataclass(frozen=True, slots=True)
class ShedRange:
    """Blocks from `first` to below `end` that are lost, and the time that they stood for."""

    first: int
    end: int
    span_ns: Span


@dataclass(slots=True, eq=False)
class Segment:
    """One file, and which blocks in it still wait."""

    file: RecordFile
    waiting: dict[tuple[PartKey, int], None] = field(default_factory=dict)


@dataclass(slots=True)
class Place:
    """Where a block stands."""

    segment: Segment
    offset: int
    size_bytes: int
    span_ns: Span


@dataclass(slots=True)
class Part:
    """What is known of one part.

    Attributes:
        acked: everything below is the collector's.
        end: number of the next block.
        acked_span: what was acknowledged stood for this time.
        blocks: waiting ones, by number, ascending.
        shed: lost ranges that are not acknowledged, ascending.
        is_finished: no more blocks come.
    """

    acked: int = 0
    end: int = 0
    acked_span: Span | None = None
    blocks: OrderedDict[int, Place] = field(default_factory=OrderedDict)
    shed: list[ShedRange] = field(default_factory=list)
    is_finished: bool = True

    def hole_at(self, number: int) -> ShedRange:
        """The range from `number` on in which no block stands."""
        for lost in self.shed:
            if lost.first <= number < lost.end:
                return ShedRange(number, lost.end, lost.span_ns)
        # The collector had it once and asks again, so it lost its log; so have we.
        later = [self.end, *(n for n in self.blocks if n > number), *(r.first for r in self.shed if r.first > number)]
        return ShedRange(number, min(later), self.acked_span or (0, 0))


def join(ranges: list[ShedRange], lost: ShedRange) -> list[ShedRange]:
    """Lost ranges with one more, joined to those that it touches, ascending."""
    touching = [lost, *(r for r in ranges if r.first <= lost.end and lost.first <= r.end)]
    others = [r for r in ranges if r.first > lost.end or lost.first > r.end]
    whole = ShedRange(
        min(r.first for r in touching), max(r.end for r in touching), _hull([r.span_ns for r in touching])
    )
    return sorted([*others, whole], key=lambda r: r.first)


def _hull(spans: list[Span]) -> Span:
    return min(span[0] for span in spans), max(span[1] for span in spans)


class Book:
    """The parts of a spool."""

    def __init__(self) -> None:
        self.parts: dict[PartKey, Part] = {}

    def add_block(self, key: PartKey, number: int, place: Place) -> None:
        """A block waits from now on."""
        self.parts[key].blocks[number] = place
        place.segment.waiting[key, number] = None

    def release(self, key: PartKey, number: int) -> Span:
        """A block waits no more; the time that it stood for."""
        place = self.parts[key].blocks.pop(number)
        place.segment.waiting.pop((key, number), None)
        return place.span_ns

    def lose(self, key: PartKey, lost: ShedRange) -> None:
        """Blocks that do not wait (any more) are lost."""
        part = self.parts[key]
        part.shed = join(part.shed, lost)

    def acknowledge(self, key: PartKey, acked: int) -> None:
        """The collector has everything below `acked`."""
        part = self.parts[key]
        part.acked = max(part.acked, acked)
        spans = [] if part.acked_span is None else [part.acked_span]
        done = list(takewhile(lambda number: number < part.acked, part.blocks))
        spans += [self.release(key, number) for number in done]
        spans += [lost.span_ns for lost in part.shed if lost.first < part.acked]
        left = [lost for lost in part.shed if lost.end > part.acked]
        part.shed = [ShedRange(max(lost.first, part.acked), lost.end, lost.span_ns) for lost in left]
        part.acked_span = _hull(spans) if spans else None

    def drop_if_done(self, key: PartKey) -> None:
        """Forget a part that is finished and acknowledged."""
        part = self.parts[key]
        if part.is_finished and part.acked >= part.end:
            del self.parts[key]

    def snapshot(self) -> Snapshot:
        """All that must not go with an old segment."""
        heads = []
        for key, part in self.parts.items():
            shed = [(r.first, r.end, *r.span_ns) for r in part.shed]
            heads.append(PartHead(key.run, key.boot, part.acked, part.end, part.acked_span, shed))
        return Snapshot(heads)

    def replay_untrusted(self, segment: Segment, record: Record) -> None:
        """Make a change that was noted before.

        Raises:
            DAMAGED: it is none.
        """
        kind = _HEADS.get(record.frame.kind)
        if kind is None:
            raise ValueError(f"kind {record.frame.kind}")
        head = msgspec.msgpack.decode(record.frame.header, type=kind)
        if isinstance(head, Snapshot):
            self._replay_snapshot(head)
            return
        key = PartKey(head.run, head.boot)
        part = self.parts.setdefault(key, Part())
        if isinstance(head, BlockHead):
            part.end = max(part.end, head.number + 1)
            if head.number >= part.acked:
                span_ns = (head.from_ns, head.to_ns)
                self.add_block(key, head.number, Place(segment, record.offset, record.size_bytes, span_ns))
        elif isinstance(head, AckHead):
            part.end = max(part.end, head.next)
            self.acknowledge(key, head.next)
        else:
            self._replay_shed(key, ShedRange(head.first, head.end, (head.from_ns, head.to_ns)))

    def _replay_shed(self, key: PartKey, lost: ShedRange) -> None:
        part = self.parts[key]
        part.end = max(part.end, lost.end)
        for number in [n for n in part.blocks if lost.first <= n < lost.end]:
            self.release(key, number)
        self.lose(key, lost)

    def _replay_snapshot(self, snapshot: Snapshot) -> None:
        heads = {PartKey(head.run, head.boot): head for head in snapshot.parts}
        for key in [key for key in self.parts if key not in heads]:
            for number in list(self.parts[key].blocks):
                self.release(key, number)
            del self.parts[key]
        for key, head in heads.items():
            part = self.parts.setdefault(key, Part())
            part.end = max(part.end, head.end)
            self.acknowledge(key, head.acked)
            part.acked_span = head.acked_span
            for first, end, from_ns, to_ns in head.shed:
                self._replay_shed(key, ShedRange(first, end, (from_ns, to_ns)))

    def holes(self) -> Iterator[tuple[PartKey, ShedRange]]:
        """What stands nowhere though something later does: it was torn out. Its time is that between its neighbours."""
        for key, part in self.parts.items():
            at, until_ns = part.acked, None if part.acked_span is None else part.acked_span[1]
            items = [(number, number + 1, place.span_ns) for number, place in part.blocks.items()]
            items += [(lost.first, lost.end, lost.span_ns) for lost in part.shed]
            for first, end, span_ns in [*sorted(items), (part.end, part.end, None)]:
                if first > at:
                    known = [t for t in (until_ns, None if span_ns is None else span_ns[0]) if t is not None] or [0]
                    yield key, ShedRange(at, first, (known[0], known[-1]))
                at, until_ns = end, None if span_ns is None else span_ns[1]
