"""The embedded store: one DuckDB file with runs, sessions, segment statistics, changes of state and hop records.

Hop records are kept for the newest runs only (MAX_HOPS); everything else for MAX_RUNS. The file carries the version of
its tables; a newer one is refused, never guessed at. What the live page asks is store.history's, the tables' words are
store.tables'. DuckDB is imported when a store is opened, not before: `--help` must not wait for it.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError, NoAnswerError, UsageError
from netprobe.model.results import Json, SessionResult
from netprobe.store.tables import (
    CHANGE_COLUMNS,
    SCHEMA_VERSION,
    SEGMENT_COLUMNS,
    SESSION_COLUMNS,
    TABLES,
    UPDATES,
    StoredRun,
    change_rows,
    path_key,
    segment_rows,
    session_rows,
)

if TYPE_CHECKING:
    import duckdb

MAX_RUNS = 10_000
MAX_HOPS = 5_000_000
LOCK_WAIT_S = 3.0
LOCK_LOOK_S = 0.05
_LOCKED = "lock on file"  # in DuckDB's words
_HOLDER = re.compile(r"\(PID (\d+)\)")
NEWEST = 200  # runs that are searched for an earlier result of a path
DEFAULT_PATH = Path("/var/lib/netprobe/netprobe.duckdb")

# Runs whose hop records, together with those of all newer runs, are more than the bound.
_FORGET_HOPS = """
DELETE FROM hops WHERE run_id IN (
    SELECT run_id FROM (
        SELECT run_id, sum(n) OVER (ORDER BY started_ns DESC) AS total
        FROM runs JOIN (SELECT run_id, count(*) AS n FROM hops GROUP BY run_id) USING (run_id))
    WHERE total > ?)
"""


class Store:
    """An open store; made by `open_store`."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", version: int = SCHEMA_VERSION) -> None:
        self._db = connection
        self.version = version

    @property
    def connection(self) -> "duckdb.DuckDBPyConnection":
        """For store.history, which asks of the same tables."""
        return self._db

    def save(self, run: StoredRun) -> None:
        """Write a run, all of it or nothing, and forget what is older than the bounds."""
        db = self._db
        db.begin()
        try:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?)",
                [run.run_id, run.started_ns, run.command, json.dumps(_without_sessions(run))],
            )
            self._insert("sessions", SESSION_COLUMNS, list(session_rows(run)))
            self._insert("segments", SEGMENT_COLUMNS, list(segment_rows(run)))
            self._insert("changes", CHANGE_COLUMNS, list(change_rows(run)))
            self._save_hops(run)
            self._forget()
            db.commit()
        except BaseException:
            with suppress(Exception):  # a failed commit has rolled back already; its own error is the one to tell
                db.rollback()
            raise

    def _insert(self, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> None:
        """Many rows at once, column by column: a mesh has a hundred thousand segments."""
        if rows:
            names = ", ".join(columns)
            places = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
            values = [list(column) for column in zip(*rows, strict=True)]
            self._db.execute(f"INSERT INTO {table} ({names}) SELECT {places}", values)

    def _save_hops(self, run: StoredRun) -> None:
        if not len(run.hops):
            return
        names = np.array(run.points, dtype=object)
        columns: dict[str, npt.NDArray[np.generic]] = {
            "session": run.hops.session,
            "seq": run.hops.seq,
            "point": names[run.hops.point],
            "direction": run.hops.direction,
            "leg": run.hops.leg,
            "t_ns": run.hops.t_ns,
        }
        self._db.register("new_hops", columns)
        self._db.execute(
            "INSERT INTO hops SELECT ?, session, seq, point, direction, leg, t_ns FROM new_hops", [run.run_id]
        )
        self._db.unregister("new_hops")

    def _forget(self) -> None:
        newest = "SELECT run_id FROM runs ORDER BY started_ns DESC"
        for table in ("runs", "sessions", "segments", "changes", "hops"):
            self._db.execute(f"DELETE FROM {table} WHERE run_id NOT IN ({newest} LIMIT {MAX_RUNS})")  # noqa: S608  ditto
        self._db.execute(_FORGET_HOPS, [MAX_HOPS])

    def last_document(self) -> Json | None:
        """The newest run's document."""
        return next(self._documents(1), None)

    def last_session(self, like: SessionResult) -> Json | None:
        """The newest stored session of the same path, vantage, Type-P and rate, as it was printed."""
        wanted = _comparable(like.to_json())
        for document in self._documents(NEWEST):
            sessions = document.get("sessions", [document])
            for session in sessions if isinstance(sessions, list) else []:
                if isinstance(session, dict) and _comparable(session) == wanted:
                    return session
        return None

    def _documents(self, limit: int) -> Iterator[Json]:
        query = "SELECT run_id, document FROM runs ORDER BY started_ns DESC, rowid DESC LIMIT ?"
        for run_id, text in self._db.execute(query, [limit]).fetchall():
            yield self._whole(run_id, json.loads(text))

    def _whole(self, run_id: str, document: Json) -> Json:
        """A document with its sessions, which have rows of their own."""
        if document.get("sessions", ()) is None:
            query = "SELECT document FROM sessions WHERE run_id = ? ORDER BY rowid"
            document["sessions"] = [json.loads(text) for (text,) in self._db.execute(query, [run_id]).fetchall()]
        return document

    def document(self, run_id: str) -> Json | None:
        """The document of a run, None where there is none of that id."""
        row = self._db.execute("SELECT document FROM runs WHERE run_id = ?", [run_id]).fetchone()
        return None if row is None else self._whole(run_id, json.loads(row[0]))


def _without_sessions(run: StoredRun) -> Json:
    """A document whose sessions stand in rows of their own, where they are all there."""
    sessions = run.document.get("sessions")
    is_twice = isinstance(sessions, list) and len(sessions) == len(run.sessions) > 0
    return {**run.document, "sessions": None} if is_twice else run.document


def _comparable(session: Json) -> list[object]:
    """What must be the same for two sessions to be compared."""
    return [*path_key(session), session.get("rate_pps"), session.get("schedule")]


def _prepare(db: "duckdb.DuckDBPyConnection", path: Path, *, read_only: bool) -> int:
    """The version that the tables have; they are made, or brought up to date, unless they may only be read."""
    known = db.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = 'meta'").fetchone()
    if known and known[0]:
        row = db.execute("SELECT max(version) FROM meta").fetchone()
        version = row[0] if row else None
        if version != SCHEMA_VERSION and version not in UPDATES:
            raise UsageError(
                f"store {path}",
                f"its tables are of version {version}",
                allowed=f"version {SCHEMA_VERSION}",
                advice="use the netprobe that wrote it, or name another file with --store",
            )
        if version in UPDATES and not read_only:
            db.begin()
            for update in range(version, SCHEMA_VERSION):
                db.execute(UPDATES[update])
            db.execute("UPDATE meta SET version = ?", [SCHEMA_VERSION])
            db.commit()
            return SCHEMA_VERSION
        return int(version)
    if read_only:
        raise NoAnswerError(f"store {path}", "holds no result", advice="run `netprobe trace` first")
    db.begin()
    db.execute(TABLES)
    db.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])
    db.commit()
    return SCHEMA_VERSION


def _connect(path: Path, *, read_only: bool) -> "duckdb.DuckDBPyConnection":
    """Connect; while another process writes, try again for a moment."""
    import duckdb  # noqa: PLC0415  50 ms that only those pay who store

    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only)
        except duckdb.IOException as error:
            if _LOCKED not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOCK_LOOK_S)


_TURN = threading.RLock()
"""Held while this process has a store open: DuckDB opens a file once a process, to write or only to read, not both."""


@contextmanager
def open_store(path: Path = DEFAULT_PATH, *, read_only: bool = False) -> Iterator[Store]:
    """Open the store, and make it where there is none.

    Args:
        path: the file; only the default one's folder is made.
        read_only: look only; there must be one.

    Raises:
        HostNotReadyError: the file cannot be opened or written (disk full, locked, no permission, no DuckDB file).
        UsageError: its tables are of another version.
    """
    with _TURN:
        yield from _opened(path, read_only=read_only)


def _opened(path: Path, *, read_only: bool) -> Iterator[Store]:
    import duckdb  # noqa: PLC0415  as above

    try:
        if path == DEFAULT_PATH and not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(path, read_only=read_only)
    except (duckdb.Error, OSError) as error:
        raise _not_opened(path, error, read_only=read_only) from error
    try:
        yield Store(db, _prepare(db, path, read_only=read_only))
    except duckdb.Error as error:
        raise HostNotReadyError(
            f"store {path}", f"cannot be written or read: {_first_line(error)}", advice="is the disk full?"
        ) from error
    finally:
        try:
            db.close()
        except duckdb.Error as error:
            raise HostNotReadyError(
                f"store {path}", f"cannot be closed: {_first_line(error)}", advice="is the disk full?"
            ) from error


def _not_opened(path: Path, error: Exception, *, read_only: bool) -> HostNotReadyError:
    """Why a store cannot be opened, and what to do about just that."""
    where, text = f"store {path}", _first_line(error)
    if _LOCKED in text:
        holder = _HOLDER.search(text)
        who = f"process {holder[1]}" if holder else "another process"
        return HostNotReadyError(
            where, f"{who} has had it open for {LOCK_WAIT_S:g} s", advice="try again, or when that one has ended"
        )
    if read_only and not os.path.lexists(path):
        return HostNotReadyError(
            where, "there is no such file", advice="name the right one with --store, or fill it with `netprobe run`"
        )
    if "ermission denied" in text:
        advice = "run as its owner or root, or name another file with --store"
    elif "not a valid DuckDB" in text:
        advice = "it is no store, or damaged: name another file with --store"
    else:
        advice = "check the path, or name another file with --store"
    return HostNotReadyError(where, f"cannot be opened: {text}", advice=advice)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
