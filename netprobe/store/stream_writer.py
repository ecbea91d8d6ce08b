"""Windows and hop records into the store while a run lasts, by a thread of its own, so that no ring waits for a disk.

Whoever has rows puts them into a bounded queue and goes on; what finds no room is shed and counted. The thread takes
them in large pieces, since DuckDB costs as much for a commit as for 50,000 rows, and opens the file for each piece
alone: others can read it in between.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from netprobe.model.records import HopBatch
from netprobe.store.duckdb_file import open_store
from netprobe.store.stream_tables import (
    CREATE,
    WINDOW_COLUMNS,
    WINDOW_SEGMENT_COLUMNS,
    Row,
    StreamedWindow,
    hop_columns,
    window_rows,
    window_segment_rows,
)

if TYPE_CHECKING:
    import duckdb

PIECE_ROWS = 1 << 19
"""Hop records that are written at once while they come fast."""

MAX_QUEUED = 1 << 22
"""Hop records that may wait: 92 MB, four seconds of a million a second."""

MAX_QUEUED_WINDOWS = 10_000
PAUSE_S = 2.0
"""How long the thread lets rows gather that come slowly."""

MAX_STREAMS = 20
"""Runs of which windows are kept."""

MAX_STREAM_HOPS = 50_000_000
"""Hop records that one run may store; 3 to 5 octets each on the disk."""

NICENESS = 10


@dataclass(slots=True)
class _Queue:
    """What waits to be written."""

    windows: list[StreamedWindow] = field(default_factory=list)
    hops: list[HopBatch] = field(default_factory=list)
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.windows or self.hops)


class StreamWriter:
    """The queue and its thread; made by `open_stream`.

    Args:
        path: the store's file.
        run_id: of the run; rows of an earlier stream of this name are replaced.
        started_ns: when the run began.
        points: names of the points, by index in the hop records.
        max_queued: hop records that may wait.
        max_hops: hop records that may be stored.
    """

    def __init__(
        self,
        path: Path,
        run_id: str,
        *,
        started_ns: int,
        points: Sequence[str],
        max_queued: int = MAX_QUEUED,
        max_hops: int = MAX_STREAM_HOPS,
    ) -> None:
        self._path, self._run_id, self._started_ns, self._points = path, run_id, started_ns, list(points)
        self._max_queued, self._max_hops = max_queued, max_hops
        self._queue = _Queue()
        self._waiting = 0  # hop records in the queue and in the hands of the thread
        self._accepted = 0
        self._changed = threading.Condition()
        self._is_over = False
        self._counters = {"windows_stored": 0, "hops_stored": 0, "windows_shed": 0, "hops_shed": 0}
        self._failure = ""
        self._stream = 0
        self._thread = threading.Thread(target=self._run, name="store-stream", daemon=True)

    @property
    def counters(self) -> dict[str, int]:
        """What was stored and what was shed: for the result."""
        with self._changed:
            return dict(self._counters)

    @property
    def failure(self) -> str:
        """Why nothing more is stored, "" while all is well."""
        with self._changed:
            return self._failure

    def put_windows(self, windows: Sequence[StreamedWindow]) -> None:
        """Windows to be stored; never waits."""
        with self._changed:
            room = 0 if self._failure else max(MAX_QUEUED_WINDOWS - len(self._queue.windows), 0)
            self._queue.windows += windows[:room]
            self._counters["windows_shed"] += max(len(windows) - room, 0)

    def put_hops(self, hops: HopBatch) -> None:
        """Hop records to be stored; never waits, and keeps the batch until it is written."""
        count = len(hops)
        with self._changed:
            too_many = self._waiting + count > self._max_queued or self._accepted + count > self._max_hops
            if self._failure or too_many:
                self._counters["hops_shed"] += count
                return
            self._waiting += count
            self._accepted += count
            self._queue.hops.append(hops)
            self._queue.rows += count
            if self._queue.rows >= PIECE_ROWS:
                self._changed.notify()

    def start(self) -> None:
        """Let the thread begin."""
        self._thread.start()

    def close(self) -> None:
        """Write what there is and end."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):  # a ring's reader goes first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        is_first = True
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or self._queue.rows >= PIECE_ROWS, PAUSE_S)
                queue, self._queue, is_over = self._queue, _Queue(), self._is_over
            if queue or is_first:
                self._write_or_shed(queue, is_first=is_first)
                is_first = False
            if is_over:
                return

    def _write_or_shed(self, queue: _Queue, *, is_first: bool) -> None:
        """Write; a store that fails is no reason to end a run: from then on all is shed, and the result says so."""
        failure = self.failure
        if not failure:
            try:
                with open_store(self._path) as store:
                    self._write(store.connection, queue, is_first=is_first)
            except Exception as error:  # noqa: BLE001  nobody is above this thread; what it is becomes the failure
                failure = str(error) or type(error).__name__
        end = "shed" if failure else "stored"
        with self._changed:
            self._failure = failure
            self._waiting -= queue.rows
            self._counters[f"windows_{end}"] += len(queue.windows)
            self._counters[f"hops_{end}"] += queue.rows

    def _write(self, db: "duckdb.DuckDBPyConnection", queue: _Queue, *, is_first: bool) -> None:
        db.execute("SET threads = 1")  # this one
        db.begin()
        if is_first:
            self._begin(db)
        _insert(db, "windows", WINDOW_COLUMNS, list(window_rows(self._run_id, queue.windows)))
        _insert(db, "window_segments", WINDOW_SEGMENT_COLUMNS, list(window_segment_rows(self._run_id, queue.windows)))
        if queue.rows:
            db.register("new_hops", hop_columns(HopBatch.concat(queue.hops)))
            db.execute(
                "INSERT INTO stream_hops SELECT ?, session, seq, point, direction, leg, t_ns FROM new_hops",
                [self._stream],
            )
            db.unregister("new_hops")
        db.commit()

    def _begin(self, db: "duckdb.DuckDBPyConnection") -> None:
        """The tables, without what is older than the bound."""
        db.execute(CREATE)
        others = "SELECT run_id FROM streams WHERE run_id <> ? ORDER BY started_ns DESC LIMIT ?"
        kept = [name for (name,) in db.execute(others, [self._run_id, MAX_STREAMS - 1]).fetchall()]
        for table in ("streams", "windows", "window_segments"):
            db.execute(f"DELETE FROM {table} WHERE NOT list_contains(?::VARCHAR[], run_id)", [kept])  # noqa: S608  own
        db.execute("DELETE FROM stream_hops WHERE stream NOT IN (SELECT stream FROM streams)")
        row = db.execute("SELECT coalesce(max(stream), 0) + 1 FROM streams").fetchone()
        self._stream = int(row[0]) if row else 1
        values = [self._run_id, self._stream, self._started_ns, self._points]
        db.execute("INSERT INTO streams VALUES (?, ?, ?, ?)", values)


def _insert(db: "duckdb.DuckDBPyConnection", table: str, columns: dict[str, str], rows: list[Row]) -> None:
    """Many rows at once, column by column."""
    if rows:
        places = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
        db.execute(f"INSERT INTO {table} SELECT {places}", [list(column) for column in zip(*rows, strict=True)])


@contextmanager
def open_stream(
    path: Path,
    run_id: str,
    *,
    started_ns: int,
    points: Sequence[str],
    max_queued: int = MAX_QUEUED,
    max_hops: int = MAX_STREAM_HOPS,
) -> Iterator[StreamWriter]:
    """A writer for one run; at the end everything that was put and not shed is on the disk. See StreamWriter.

    Nothing is raised when the store fails: a measurement goes on. `counters` and `failure` say so, also afterwards.
    """
    writer = StreamWriter(path, run_id, started_ns=started_ns, points=points, max_queued=max_queued, max_hops=max_hops)
    writer.start()
    try:
        yield writer
    finally:
        writer.close()
