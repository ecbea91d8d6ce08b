"""An agent's spool: blocks that the collector has not acknowledged, on disk. Bounded; oldest first out, and counted.

Segments of checked records (host.record_file); each begins with a snapshot of what is known of every part, so that an
old one is simply deleted. What `append` returns from has outlived a `kill -9`; a loss of power takes what came after
the last `sync`. Numbers begin at 0 with each life of the program (`boot`), so one that was lost is never used again.
Blocking calls, one task. Below: host.spool_book; wire.link, which sends what is in here (`pump`).
"""

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from netprobe.errors import HostNotReadyError, UsageError, WireError
from netprobe.host.record_file import RecordFile, sync_folder
from netprobe.host.spool_book import (
    DAMAGED,
    AckHead,
    BlockHead,
    Book,
    Head,
    Part,
    Place,
    Segment,
    ShedHead,
    ShedRange,
    Span,
    encode_note,
    join,
)
from netprobe.wire.framing import MAX_BODY_BYTES
from netprobe.wire.link import AgentLink
from netprobe.wire.report import PartKey

MIN_LIMIT_BYTES: Final = 1 << 20
SEGMENTS: Final = 16  # that a full spool has; what is shed at once is one of them
_SUFFIX = ".spool"


class SpoolTakenError(HostNotReadyError):
    """Another program has the spool."""


@dataclass(frozen=True, slots=True)
class SpooledBlock:
    """A block that waits: its octets, and the time that it stands for."""

    number: int
    octets: bytes
    span_ns: Span


@dataclass(frozen=True, slots=True)
class SpoolCounters:
    """What a spool holds and has lost.

    Attributes:
        size_bytes: on disk.
        waiting: blocks that are not acknowledged.
        shed_blocks: since it was opened, for want of room or because the disk failed; the collector may have got some.
        cut_bytes: of torn or damaged records, found when it was opened.
        write_errors: writes that the disk refused.
    """

    size_bytes: int
    limit_bytes: int
    waiting: int
    shed_blocks: int
    cut_bytes: int
    write_errors: int


class Spool:
    """The blocks of one agent that wait for the collector. Use `Spool.open`, and close it.

    Attributes:
        shed_by_run: blocks lost since it was opened, by run.
    """

    def __init__(self, folder: Path, limit_bytes: int, boot: str) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._boot = boot
        self._segment_bytes = limit_bytes // SEGMENTS
        self._lock = -1
        self._segments: list[Segment] = []  # the last one is written to
        self._sequence = 0
        self._book = Book()
        self._cut_bytes = 0
        self._write_errors = 0
        self.shed_by_run: dict[str, int] = {}

    @classmethod
    def open(cls, folder: Path, limit_bytes: int, boot: str) -> Self:
        """Open a spool, and take up what an earlier life of the program left in it.

        Args:
            folder: made when missing; nobody else's.
            limit_bytes: of all files in it, give or take some notes.
            boot: this life of the program (wire.report.Boot).

        Raises:
            UsageError: the limit is too small, or `boot` has been here before.
            HostNotReadyError: the folder cannot be used, or another program has it.
        """
        if limit_bytes < MIN_LIMIT_BYTES:
            raise UsageError("spool", f"a limit of {limit_bytes} octets", allowed=f"{MIN_LIMIT_BYTES} or more")
        spool = cls(folder, limit_bytes, boot)
        try:
            spool._take()
            spool._recover()
            spool._rotate()
        except OSError as error:
            spool.close()
            advice = "is it this program's own, and the disk full?"
            raise HostNotReadyError(f"spool {folder}", f"cannot be used: {error.strerror}", advice=advice) from error
        except BaseException:
            spool.close()
            raise
        return spool

    def append(self, run: str, octets: bytes, span_ns: Span) -> int:
        """Keep a block of this life until it is acknowledged; the oldest go where there is no room.

        Where the disk takes nothing at all the block is lost, and told as shed: an agent goes on.

        Args:
            run: whose.
            octets: the block.
            span_ns: the time that it stands for, CLOCK_REALTIME.

        Returns:
            Its number.

        Raises:
            UsageError: it is longer than any block may be.
        """
        if len(octets) > MAX_BODY_BYTES:
            raise UsageError("block", f"it has {len(octets)} octets", allowed=f"up to {MAX_BODY_BYTES}")
        key = PartKey(run, self._boot)
        part = self._book.parts.setdefault(key, Part())
        part.is_finished = False
        number = part.end
        part.end += 1
        record = encode_note(BlockHead(run, self._boot, number, *span_ns), octets)
        place = None
        if len(record) <= self._limit_bytes // 2:  # one huge block is not worth all others
            self._make_room(len(record))
            place = self._write(record, span_ns)
        if place is None:
            self._lose(key, ShedRange(number, number + 1, span_ns))
        else:
            self._book.add_block(key, number, place)
        return number

    def parts(self) -> dict[PartKey, int]:
        """Every part of which something waits or may still come, with the number of its next block."""
        return {key: part.end for key, part in self._book.parts.items()}

    def acked(self, key: PartKey) -> int:
        """Number of the first block of a part that is not acknowledged."""
        part = self._book.parts.get(key)
        return 0 if part is None else part.acked

    def item(self, key: PartKey, number: int) -> SpooledBlock | ShedRange | None:
        """What stands at a number: the block, or a range of lost ones from there on; None where nothing is yet."""
        part = self._book.parts.get(key)
        if part is None or number >= part.end:
            return None
        place = part.blocks.get(number)
        if place is not None:
            try:
                frame = place.segment.file.read_untrusted(place.offset, place.size_bytes)
            except WireError:  # the disk lost it
                self._lose(key, ShedRange(number, number + 1, self._book.release(key, number)))
            else:
                return SpooledBlock(number, frame.body, place.span_ns)
        return part.hole_at(number)

    def size_of(self, key: PartKey, number: int) -> int:
        """Octets that sending what stands at a number takes, at most."""
        part = self._book.parts.get(key)
        place = None if part is None else part.blocks.get(number)
        return 0 if place is None else place.size_bytes

    def ack(self, key: PartKey, next_number: int) -> None:
        """Forget everything of a part below `next_number`."""
        part = self._book.parts.get(key)
        if part is None or next_number <= part.acked:
            return
        self._book.acknowledge(key, min(next_number, part.end))
        self._note(AckHead(key.run, key.boot, part.acked))
        self._book.drop_if_done(key)
        if self._segments[-1].file.size_bytes > self._segment_bytes:
            self._try_rotate()
        self._delete_done()

    def finish(self, run: str) -> None:
        """No more blocks of a run come in this life; when all are acknowledged, the part is forgotten."""
        key = PartKey(run, self._boot)
        part = self._book.parts.get(key)
        if part is not None:
            part.is_finished = True
            self._book.drop_if_done(key)

    def shed(self, key: PartKey) -> tuple[ShedRange, ...]:
        """Lost ranges of a part that are not acknowledged."""
        part = self._book.parts.get(key)
        return () if part is None else tuple(part.shed)

    def counters(self) -> SpoolCounters:
        """What it holds and has lost."""
        return SpoolCounters(
            size_bytes=self._size_bytes(),
            limit_bytes=self._limit_bytes,
            waiting=sum(len(part.blocks) for part in self._book.parts.values()),
            shed_blocks=sum(self.shed_by_run.values()),
            cut_bytes=self._cut_bytes,
            write_errors=self._write_errors,
        )

    def sync(self) -> None:
        """Wait until everything is on the disk, so that a loss of power takes none of it. Errors are counted."""
        try:
            self._segments[-1].file.sync()
        except OSError:
            self._write_errors += 1

    def close(self) -> None:
        """Close the files; they stay."""
        for segment in self._segments:
            segment.file.close()
        self._segments.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _size_bytes(self) -> int:
        return sum(segment.file.size_bytes for segment in self._segments)

    def _make_room(self, record_bytes: int) -> None:
        last = self._segments[-1]
        if last.waiting and last.file.size_bytes + record_bytes > self._segment_bytes:
            self._try_rotate()
        while len(self._segments) > 1 and self._size_bytes() + record_bytes > self._limit_bytes:
            self._shed_oldest()

    def _shed_oldest(self) -> None:
        segment = self._segments[0]
        lost: dict[PartKey, list[ShedRange]] = {}  # joined first, so that one note tells of all that belongs together
        for key, number in list(segment.waiting):
            span_ns = self._book.release(key, number)
            lost[key] = join(lost.get(key, []), ShedRange(number, number + 1, span_ns))
        for key, ranges in lost.items():
            for each in ranges:
                self._lose(key, each)
        self._delete(segment)

    def _lose(self, key: PartKey, lost: ShedRange) -> None:
        self._book.lose(key, lost)
        self.shed_by_run[key.run] = self.shed_by_run.get(key.run, 0) + lost.end - lost.first
        self._note(ShedHead(key.run, key.boot, lost.first, lost.end, *lost.span_ns))

    def _delete_done(self) -> None:
        for segment in self._segments[:-1]:
            if not segment.waiting:
                self._delete(segment)

    def _delete(self, segment: Segment) -> None:
        self._segments.remove(segment)
        segment.file.close()
        segment.file.path.unlink(missing_ok=True)

    def _take(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpoolTakenError(
                f"spool {self._folder}", "another program is using it", advice="give each agent a spool of its own"
            ) from error

    def _recover(self) -> None:
        """Replay all segments, oldest first.

        Raises:
            OSError: one cannot be read.
            UsageError: this boot has been here before.
        """
        found = {int(path.stem): path for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdigit()}
        for self._sequence in sorted(found):
            segment = Segment(RecordFile(found[self._sequence]))
            self._segments.append(segment)
            for record in segment.file.recover():
                try:
                    self._book.replay_untrusted(segment, record)
                except DAMAGED:
                    self._cut_bytes += record.size_bytes
            self._cut_bytes += segment.file.cut_bytes
        for key, lost in list(self._book.holes()):
            self._lose(key, lost)
        for key in list(self._book.parts):
            if key.boot == self._boot:
                raise UsageError(f"spool {self._folder}", f"boot {key.boot} was here before", advice="draw another")
            self._book.drop_if_done(key)

    def _rotate(self) -> None:
        """Begin a new segment with a snapshot.

        Raises:
            OSError: the disk refuses.
        """
        if self._segments:
            self._segments[-1].file.sync()
        self._sequence += 1
        path = self._folder / f"{self._sequence:08d}{_SUFFIX}"
        segment = Segment(RecordFile(path))
        try:
            segment.file.append(encode_note(self._book.snapshot()))
            sync_folder(self._folder)
        except OSError:
            segment.file.close()
            path.unlink(missing_ok=True)
            raise
        self._segments.append(segment)
        self._delete_done()

    def _try_rotate(self) -> None:
        try:
            self._rotate()
        except OSError:
            self._write_errors += 1

    def _write(self, record: bytes, span_ns: Span) -> Place | None:
        """Append to the last segment, once more after the oldest made room; None when the disk refuses."""
        for _ in range(2):
            segment = self._segments[-1]
            try:
                return Place(segment, segment.file.append(record), len(record), span_ns)
            except OSError as error:
                self._write_errors += 1
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(self._segments) == 1:
                    return None
                self._shed_oldest()
        return None

    def _note(self, head: Head) -> None:
        """Note a change; where the disk refuses it, the next snapshot has it."""
        try:
            self._segments[-1].file.append(encode_note(head))
        except OSError:
            self._write_errors += 1


def pump(spool: Spool, link: AgentLink, now_ns: int) -> int:
    """Give a link what waits in the spool, as far as it has room; parts take turns.

    Call it after every `append`, after every event, and at the link's deadline.

    Returns:
        How many blocks and lost ranges were sent.
    """
    sent = 0
    keys = list(spool.parts())
    while keys:
        for key in list(keys):
            number = link.next_to_send(key)
            if not link.has_room(spool.size_of(key, number), now_ns):
                return sent
            item = spool.item(key, number)
            if item is None:
                keys.remove(key)
                continue
            if isinstance(item, ShedRange):
                link.send_shed(key, item.first, item.end, item.span_ns, now_ns)
            else:
                link.send_block(key, number, item.octets, now_ns)
            sent += 1
    return sent
