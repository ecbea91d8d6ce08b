"""The collector's log of one run: every block of every agent once, in the order that it arrived. Append-only.

A file of checked records (host.record_file). A block counts as delivered when `commit` says so: then it is on the disk,
and may be acknowledged. Whatever an agent sends twice, out of order or too much of is not written, and counted.
Above: the collector reads a log from its beginning when it starts again.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from netprobe.errors import HostNotReadyError
from netprobe.host.record_file import READ_BYTES, Record, RecordFile, encode_record, read_records, sync_folder
from netprobe.wire.framing import Frame

DEFAULT_AGENT_BYTES: Final = 16 << 30
MAX_BOOTS: Final = 1024  # of one agent in one run; each costs memory, and an honest one starts a few times
_BLOCK, _SHED = 1, 2
_DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)


class Source(NamedTuple):
    """An agent in one life of its program."""

    agent: str
    boot: str


class Outcome(Enum):
    """What became of a block."""

    NEW = "new"
    DUPLICATE = "duplicate"  # it, or the whole range, was there before
    GAP = "gap"  # one before it is missing; it was not written
    FULL = "full"  # the agent has used up what it may write; it was not written


class Appended(NamedTuple):
    """What became of a block, and which number is expected next."""

    outcome: Outcome
    expected: int


@dataclass(frozen=True, slots=True)
class LoggedBlock:
    """A block in the log."""

    source: Source
    number: int
    octets: bytes


@dataclass(frozen=True, slots=True)
class LoggedShed:
    """Blocks from `first` to below `end` that the agent lost, and the time (its CLOCK_REALTIME) they stood for."""

    source: Source
    first: int
    end: int
    span_ns: tuple[int, int]


class _BlockHead(msgspec.Struct, frozen=True, array_like=True):
    agent: str
    boot: str
    number: int


class _ShedHead(msgspec.Struct, frozen=True, array_like=True):
    agent: str
    boot: str
    first: int
    end: int
    from_ns: int
    to_ns: int


_ENCODER = msgspec.msgpack.Encoder()
_HEADS: Final[dict[int, type[_BlockHead | _ShedHead]]] = {_BLOCK: _BlockHead, _SHED: _ShedHead}


class Commit:
    """What had been appended when it was begun; `wait` once, in any thread, even if the log is closed meanwhile."""

    def __init__(self, file: RecordFile, expected: dict[Source, int]) -> None:
        self._path = file.path
        self._sync = file.begin_sync()
        self.expected = expected

    def wait(self) -> None:
        """Wait for the disk.

        Raises:
            HostNotReadyError: it failed; nothing of this may be acknowledged, and the log must be opened anew (a kernel
                tells of a failed write only once).
        """
        try:
            self._sync()
        except OSError as error:
            raise _not_ready(self._path, error) from error


class BlockLog:
    """The log of one run. Use `BlockLog.open`, and close it.

    Attributes:
        outcomes: how many blocks and lost ranges had which outcome, by agent, since it was opened.
        cut_bytes: of a torn record, found when it was opened.
    """

    def __init__(self, file: RecordFile, agent_bytes: int) -> None:
        self._file = file
        self._agent_bytes = agent_bytes
        self._expected: dict[Source, int] = {}
        self._durable: dict[Source, int] = {}
        self._changed: set[Source] = set()
        self._bytes: Counter[str] = Counter()
        self._boots: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()

    @classmethod
    def open(cls, path: Path, agent_bytes: int = DEFAULT_AGENT_BYTES) -> Self:
        """Open or make a log; a record that was torn at its end is cut off.

        Args:
            path: of the file.
            agent_bytes: that each agent may write.

        Raises:
            HostNotReadyError: it cannot be used.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = cls(RecordFile(path), agent_bytes)
        except OSError as error:
            raise _not_ready(path, error) from error
        try:
            for record in log._file.recover():
                log._replay(record)
            log._file.sync()
            sync_folder(path.parent)
        except OSError as error:
            log.close()
            raise _not_ready(path, error) from error
        log._durable.update(log._expected)
        log._changed.clear()
        return log

    @property
    def cut_bytes(self) -> int:
        """Octets of a torn record that were cut off when it was opened."""
        return self._file.cut_bytes

    @property
    def size_bytes(self) -> int:
        """Octets on disk."""
        return self._file.size_bytes

    def append(self, source: Source, number: int, octets: bytes) -> Appended:
        """Write a block, if it is the next one.

        Raises:
            HostNotReadyError: the disk refuses; the log is as before.
        """
        head = _BlockHead(source.agent, source.boot, number)
        return self._append(source, number, number + 1, Frame(_BLOCK, _ENCODER.encode(head), octets))

    def append_shed(self, source: Source, first: int, end: int, span_ns: tuple[int, int]) -> Appended:
        """Write that blocks are lost, those of them that are not here.

        Raises:
            HostNotReadyError: the disk refuses; the log is as before.
        """
        expected = self.expected(source)
        first = expected if first < expected < end else first
        head = _ShedHead(source.agent, source.boot, first, end, *span_ns)
        return self._append(source, first, end, Frame(_SHED, _ENCODER.encode(head)))

    def expected(self, source: Source) -> int:
        """The number of the next block that will be written; what is below need not be on the disk yet."""
        return self._expected.get(source, 0)

    def durable(self, source: Source) -> int:
        """All blocks below this number are on the disk."""
        return self._durable.get(source, 0)

    def sources(self) -> dict[Source, int]:
        """Everyone who has written, with the number that is expected next."""
        return dict(self._expected)

    def begin_commit(self) -> Commit | None:
        """What was appended since the last commit; None when nothing was. `Commit.wait`, then `finish_commit`."""
        if not self._changed:
            return None
        expected = {source: self._expected[source] for source in self._changed}
        self._changed.clear()
        return Commit(self._file, expected)

    def finish_commit(self, commit: Commit) -> dict[Source, int]:
        """A commit's wait is over: the numbers to acknowledge, by source."""
        for source, number in commit.expected.items():  # an older commit may come last
            self._durable[source] = max(number, self.durable(source))
        return {source: self._durable[source] for source in commit.expected}

    def commit(self) -> dict[Source, int]:
        """Wait until all that was appended is on the disk: the numbers to acknowledge, by source.

        Raises:
            HostNotReadyError: the disk failed.
        """
        commit = self.begin_commit()
        if commit is None:
            return {}
        commit.wait()
        return self.finish_commit(commit)

    def records(self) -> Iterator[LoggedBlock | LoggedShed]:
        """All that was appended, in that order, read from the disk.

        Raises:
            HostNotReadyError: it cannot be read.
        """
        try:
            with self._file.path.open("rb", buffering=READ_BYTES) as file:
                for record in read_records(file):
                    if record.offset >= self._file.size_bytes:
                        return
                    logged = _logged(record)
                    if logged is not None:
                        yield logged
        except OSError as error:
            raise _not_ready(self._file.path, error) from error

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, source: Source, first: int, end: int, frame: Frame) -> Appended:
        expected = self.expected(source)
        outcome = Outcome.NEW
        if end <= expected:
            outcome = Outcome.DUPLICATE
        elif first > expected:
            outcome = Outcome.GAP
        elif not self._has_room(source, frame.size_bytes):
            outcome = Outcome.FULL
        else:
            try:
                self._file.append(encode_record(frame))
            except OSError as error:
                raise _not_ready(self._file.path, error) from error
            self._count(source, frame.size_bytes, end)
        self.outcomes[source.agent, outcome] += 1
        return Appended(outcome, self.expected(source))

    def _has_room(self, source: Source, size_bytes: int) -> bool:
        is_known = source in self._expected or self._boots[source.agent] < MAX_BOOTS
        return is_known and self._bytes[source.agent] + size_bytes <= self._agent_bytes

    def _count(self, source: Source, size_bytes: int, end: int) -> None:
        self._boots[source.agent] += source not in self._expected
        self._bytes[source.agent] += size_bytes
        self._expected[source] = end
        self._changed.add(source)

    def _replay(self, record: Record) -> None:
        logged = _logged(record)
        if logged is not None:
            end = logged.number + 1 if isinstance(logged, LoggedBlock) else logged.end
            self._count(logged.source, record.frame.size_bytes, end)


def _logged(record: Record) -> LoggedBlock | LoggedShed | None:
    """What a record says; None for one of a kind that a later version wrote."""
    kind = _HEADS.get(record.frame.kind)
    if kind is None:
        return None
    try:
        head = msgspec.msgpack.decode(record.frame.header, type=kind)
    except _DAMAGED:
        return None
    source = Source(head.agent, head.boot)
    if isinstance(head, _BlockHead):
        return LoggedBlock(source, head.number, record.frame.body)
    return LoggedShed(source, head.first, head.end, (head.from_ns, head.to_ns))


def _not_ready(path: Path, error: OSError) -> HostNotReadyError:
    return HostNotReadyError(
        f"block log {path}", f"cannot be written: {error.strerror}", advice="is the disk full or broken?"
    )
