"""Readings on their way to a database: from whoever has them, through a spool on disk, to one writer in a thread.

`Sink.put` never waits for the database: readings are written down, and a task of `open_sink` sends them, oldest first,
again and again until they are taken. The spool is bounded; what it has no room for is counted. What a program could not
send waits for the next one that writes to the same database. Below: host.spool, store.influx.
"""

import hashlib
import random
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.host.spool import Spool, SpooledBlock
from netprobe.host.spool_book import ShedRange
from netprobe.model.metric_catalogue import SINK
from netprobe.model.metrics import Reading
from netprobe.service.spool_places import note_database
from netprobe.store.influx import Answer, InfluxTarget, InfluxWriter, Taking
from netprobe.wire.line_protocol import lines_of
from netprobe.wire.report import PartKey

DEFAULT_FOLDER = Path("/var/lib/netprobe/influx")
DEFAULT_SPOOL_BYTES = 512 << 20
"""An hour at 1,000 readings a second takes some 100 MB (docs/metrics.md)."""

BATCH_LINES = 1_000
"""Of one block of the spool."""

REQUEST_LINES = 5_000
REQUEST_BYTES = 2 << 20
MAX_BLOCK_BYTES = 16 << 20  # of what a block unpacks to; a whole one is BATCH_LINES lines of some hundred octets
BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FLUSH_S = 5.0
"""A program that ends gives the database so long; what is left waits in the spool."""

ROUND_REQUESTS = 64
"""Requests that are spent in a row to find the lines that a database refuses; the next ones come after a pause."""

ROUND_PAUSE_S = 0.2

SYNC_S = 1.0
SLOTS = 64
"""Programs that may write to one database at a time."""

RUN = "readings"
Write = Callable[[bytes], Answer]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """How a sink is set up.

    Attributes:
        folder: of the spools.
        spool_bytes: how large this program's may get.
    """

    target: InfluxTarget
    folder: Path = DEFAULT_FOLDER
    spool_bytes: int = DEFAULT_SPOOL_BYTES

    @property
    def place(self) -> Path:
        """Folder of the spools for this database."""
        target = self.target
        words = f"{target.url}\n{target.org}\n{target.bucket}"
        return self.folder / hashlib.sha256(words.encode()).hexdigest()[:16]


@dataclass(slots=True)
class SinkCounters:
    """What became of readings since the program began; `written` has those that earlier programs left, too."""

    put: int = 0
    written: int = 0
    shed: int = 0
    refused: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Batch:
    """What goes in one request: blocks of one part, up to below `end`. They wait in the spool until all is decided.

    Attributes:
        first: number of its first block.
        lines: of all its blocks.
        undecided: lines that the database has neither taken nor refused, by requests; the next one is the last.
    """

    spool: Spool
    key: PartKey
    first: int
    end: int
    lines: list[bytes] = field(default_factory=list)
    undecided: list[list[bytes]] = field(default_factory=list)


class Sink:
    """Takes readings; made by `open_sink`.

    Attributes:
        trouble: what the database last complained of, "" for nothing.
    """

    def __init__(self, config: SinkConfig, spools: list[Spool], boot: str, say: Say = lambda _: None) -> None:
        self.config = config
        self.counters = SinkCounters()
        self.trouble = ""
        self._say = say
        self._spools = spools  # the first one is this program's own
        self._own = PartKey(RUN, boot)
        self._counts: dict[int, int] = {}  # readings of this program's blocks, by number
        self._news = trio.Event()
        self._is_idle = trio.Event()
        self._is_ending = trio.Event()
        self._said_shed = 0

    def put(self, readings: Iterable[Reading]) -> None:
        """Take readings, and return at once."""
        lines = lines_of(readings)
        now_ns = realtime_ns()
        for piece in _pieces(lines):
            number = self._spools[0].append(RUN, zlib.compress(b"\n".join(piece), 1), (now_ns, now_ns))
            self._counts[number] = len(piece)
            self.counters.put += len(piece)
        if lines:
            self._is_idle = trio.Event() if self._is_idle.is_set() else self._is_idle
            self._news.set()
        shed = self.shed_batches
        if shed > 2 * self._said_shed:  # each time that it has doubled: a log must not fill up, too
            self._said_shed = shed
            self._say(f"{self.config.place} is full: {self.shed} readings ({shed} batches) were shed so far")

    @property
    def shed(self) -> int:
        """Readings of this program that were lost for want of room."""
        lost = (n for r in self._spools[0].shed(self._own) for n in range(r.first, r.end))
        return self.counters.shed + sum(self._counts.get(number, 0) for number in lost)

    @property
    def shed_batches(self) -> int:
        """The same in batches; also those of earlier programs, of which nobody knows how many readings they held."""
        return sum(spool.counters().shed_blocks for spool in self._spools)

    @property
    def waiting(self) -> int:
        """Batches in the spool."""
        return sum(spool.counters().waiting for spool in self._spools)

    def reading(self, program: str) -> Reading:
        """How it stands."""
        counters, held = self.counters, [spool.counters() for spool in self._spools]
        return SINK.reading(
            realtime_ns(),
            {"program": program},
            written_readings=counters.written,
            waiting_batches=sum(one.waiting for one in held),
            spool_bytes=sum(one.size_bytes for one in held),
            spool_limit_bytes=self.config.spool_bytes,
            shed_readings=self.shed,
            shed_batches=sum(one.shed_blocks for one in held),
            refused_readings=counters.refused,
            failures=counters.failures,
        )

    def told(self) -> str:
        """What did not get there, for people; "" where all did."""
        counters, waiting = self.counters, self.waiting
        where = f"InfluxDB at {self.config.target.url}"
        texts = []
        if waiting:
            texts.append(f"{waiting} batches of readings wait in {self.config.place} for {where}: {self.trouble}")
        if self.shed_batches:
            texts.append(f"{self.shed} readings ({self.shed_batches} batches) were shed: the spool was full")
        if counters.refused:
            texts.append(f"{where} refused {counters.refused} readings: {self.trouble}")
        return "; ".join(texts)

    async def flush(self, seconds: float = FLUSH_S) -> None:
        """Wait until all has been sent, or one more write has failed, or the time is over; then no more is sent."""
        self._is_ending.set()
        with trio.move_on_after(seconds):
            await self._is_idle.wait()

    async def send(self, write: Write) -> None:
        """Send what waits, until `flush` ends it.

        Args:
            write: blocks while it writes lines.
        """
        failures = 0
        batch: _Batch | None = None
        while True:
            batch = self._still(batch) or self._next()
            if batch is None:
                self._is_idle.set()
                await self._news.wait()
                self._news = trio.Event()
                continue
            if await self._write(write, batch):
                if failures:
                    self._say(f"InfluxDB at {self.config.target.url} takes readings again")
                failures = 0
                if not batch.undecided:
                    self._acknowledge(batch)
                    batch = None
                else:
                    await self._pause(ROUND_PAUSE_S)
                continue
            failures += 1
            self.counters.failures += 1
            if failures == 1:
                self._say(f"InfluxDB at {self.config.target.url}: {self.trouble}; readings wait meanwhile")
            if self._is_ending.is_set():
                self._is_idle.set()
                return
            await self._pause(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1] * random.uniform(0.5, 1.0))

    async def _pause(self, seconds: float) -> None:
        """Unless the program ends."""
        with trio.move_on_after(seconds):
            await self._is_ending.wait()

    async def sync_spools(self) -> None:
        """A loss of power takes no more than this."""
        while True:
            await trio.sleep(SYNC_S)
            for spool in self._spools:
                await trio.to_thread.run_sync(spool.sync)

    async def _write(self, write: Write, batch: _Batch) -> bool:
        """Write a batch, or go on with one of which some is undecided; False: later.

        Of lines that are refused those that the database names are left out, else the wrong ones are looked for by
        halves. What ROUND_REQUESTS do not decide stays in `undecided`, and in the spool: no good line goes with them.

        Args:
            write: blocks.
            batch: its `undecided` is brought up to date.
        """
        for _ in range(ROUND_REQUESTS):
            if not batch.undecided:
                break
            lines = batch.undecided[-1]
            answer = await trio.to_thread.run_sync(write, b"\n".join(lines), abandon_on_cancel=True)
            self.trouble = answer.why or self.trouble
            if answer.taking is Taking.LATER:
                return False
            batch.undecided.pop()
            if answer.taking is Taking.TAKEN:
                dropped = min(answer.dropped, len(lines))
                self.counters.written += len(lines) - dropped
                self.counters.refused += dropped
                continue
            refused = len(lines) if len(lines) == 1 else sum(line in answer.named for line in lines)
            self.counters.refused += refused
            if not refused:
                middle = len(lines) // 2
                batch.undecided += [lines[middle:], lines[:middle]]
            elif refused < len(lines):
                batch.undecided.append([line for line in lines if line not in answer.named])
        return True

    def _still(self, batch: _Batch | None) -> _Batch | None:
        """A batch of which some is undecided, unless the spool has lost it meanwhile; else it is read anew."""
        if batch is None or batch.undecided == [batch.lines]:
            return None
        return None if isinstance(batch.spool.item(batch.key, batch.first), ShedRange) else batch

    def _next(self) -> _Batch | None:
        """The oldest blocks of some part that fit into a request."""
        for spool in self._spools:
            for key, end in sorted(spool.parts().items(), key=lambda part: part[0] == self._own):
                batch = self._collect(spool, key, end)
                if batch is not None:
                    return batch
        return None

    def _collect(self, spool: Spool, key: PartKey, end: int) -> _Batch | None:
        number = spool.acked(key)
        batch = _Batch(spool, key, number, number)
        size = 0
        while number < end:
            item = spool.item(key, number)
            if isinstance(item, ShedRange):
                number = batch.end = item.end
                batch.first = batch.first if batch.lines else number
                continue
            lines = _unpacked(item)
            size += sum(map(len, lines))
            if batch.lines and (len(batch.lines) + len(lines) > REQUEST_LINES or size > REQUEST_BYTES):
                break
            batch.lines += lines
            number = batch.end = number + 1
        if batch.end == spool.acked(key):
            return None
        batch.undecided = [batch.lines] if batch.lines else []
        return batch

    def _acknowledge(self, batch: _Batch) -> None:
        if batch.key == self._own:
            self.counters.shed = self.shed
            for number in range(batch.spool.acked(batch.key), batch.end):
                self._counts.pop(number, None)
        batch.spool.ack(batch.key, batch.end)


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Lines in blocks of BATCH_LINES, or less where they are long: what unpacks to too much would not be sent."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if len(piece) == BATCH_LINES or (piece and size + len(line) > REQUEST_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    if piece:
        yield piece


def _unpacked(item: SpooledBlock | None) -> list[bytes]:
    """The lines of a block; none of one that the disk damaged, which its checksum would have told."""
    if item is None:
        return []
    try:
        inflate = zlib.decompressobj()
        octets = inflate.decompress(item.octets, MAX_BLOCK_BYTES)
    except zlib.error:
        return []
    return octets.split(b"\n") if octets and inflate.eof else []


def _open_spools(config: SinkConfig, boot: str) -> list[Spool]:
    """A spool of this program's own, and those that others have left something in.

    Raises:
        HostNotReadyError: the folder cannot be used, or too many programs write.
    """
    note_database(config.place, config.target.url, config.target.bucket)
    found: list[Spool] = []
    trouble: HostNotReadyError | None = None
    for slot in range(SLOTS):
        folder = config.place / f"{slot:02d}"
        if found and not folder.is_dir():
            break
        try:
            spool = Spool.open(folder, config.spool_bytes, boot)
        except HostNotReadyError as error:
            trouble = error
            continue
        if not found or spool.counters().waiting:
            found.append(spool)
        else:
            spool.close()
    if not found:
        raise trouble or HostNotReadyError(str(config.place), f"{SLOTS} programs write at a time", allowed="fewer")
    return found


@asynccontextmanager
async def open_sink(config: SinkConfig, say: Say = lambda _: None) -> AsyncIterator[Sink]:
    """A sink, with the task that sends. At the end what waits gets FLUSH_S, and `say` is told what did not get there.

    Raises:
        HostNotReadyError: the spool cannot be used.
    """
    boot = secrets.token_hex(16)
    spools = _open_spools(config, boot)
    writer: InfluxWriter | None = None
    try:
        writer = await trio.to_thread.run_sync(InfluxWriter, config.target)
        sink = Sink(config, spools, boot, say)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.send, writer.write)
            nursery.start_soon(sink.sync_spools)
            try:
                yield sink
            finally:
                with trio.CancelScope(shield=True):
                    await sink.flush()
                nursery.cancel_scope.cancel()
        text = sink.told()
        if text:
            say(text)
    finally:
        for spool in spools:
            spool.close()
        if writer is not None:
            writer.close()
